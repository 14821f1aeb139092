"""What the tests of the sandbox share."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kldistill.evaluation.sandbox import Limits, unavailable
from tests.helpers.patience import PATIENCE

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


def processes_with(word: str) -> list[str]:
    """Processes of this machine with a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_text().split("\0"):
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()
