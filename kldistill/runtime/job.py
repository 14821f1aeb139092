"""What a stage may use beside its config slice and its folders: the runtime, and the ways to report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kldistill.runtime.config import RuntimeConfig


def _drop(*_args: object, **_kwargs: object) -> None:
    """Report to nobody: for stages called from Python or from a test."""


def short_of(key: str, wanted: int, had: int, what: str, meaning: str, say: Callable[[str], None]) -> None:
    """Warn where there is less than a key asks for.

    Args:
        what: of which there is too little, as in ``bytes of the test split``.
        meaning: a sentence or two: what follows from it, and what would give more.
    """
    if had < wanted:
        say(f"Warning: {key}={wanted}: there are only {had:,} {what}. {meaning}")


@dataclass(frozen=True)
class Job:
    """Handed to every stage. Nothing in it may change what a stage writes, so none of it enters a fingerprint.

    Attributes:
        runtime: device, worker processes and the like.
        log: ``log(metrics, step=None)`` writes named figures to ``metrics.jsonl`` and to the logger.
        table: ``table(name, columns, rows)`` shows a table on the console and in the logger.
        say: ``say(text)`` tells the user one line.
        rewind: ``rewind(step)`` forgets what the stage logged beyond ``step`` (a resumed training loop calls it).
    """

    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    log: Callable[..., None] = _drop
    table: Callable[[str, Sequence[str], Sequence[Sequence[object]]], None] = _drop
    say: Callable[[str], None] = _drop
    rewind: Callable[[int], None] = _drop
