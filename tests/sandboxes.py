"""What the tests of the sandbox share."""

import pytest

from kldistill.sandbox import Limits, unavailable

REASON = unavailable()
# A bubblewrap that is there, in a kernel that lets it, has to work.
needs_bubblewrap = pytest.mark.skipif(
    REASON is not None and ("not installed" in REASON or "forbids" in REASON or "needs Linux" in REASON),
    reason=str(REASON),
)


def small(**changes: float) -> Limits:
    """Limits that an attack meets soon."""
    limits = Limits(
        cpu_seconds=0.25, wall_seconds=60, memory_bytes=96 << 20, processes=8, file_bytes=1 << 20, output_bytes=1 << 16
    )
    for key, value in changes.items():
        assert hasattr(limits, key)
        setattr(limits, key, value)
    return limits
