"""Progress that a user can plan by: a bar with rate and time left, or plain lines where there is no terminal."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0
SECONDS_OF_RATE = 30.0
NARROW = 120  # columns of a terminal below which words take the room of the drawn bar


def enabled() -> bool:
    """False if the user turned progress off with ``KLDISTILL_PROGRESS=0``."""
    return os.environ.get("KLDISTILL_PROGRESS", "1").strip().lower() not in {"0", "false", "no", "off"}


@contextmanager
def without_bars_of_transformers() -> Iterator[None]:
    """Meanwhile transformers draws no bars of its own, which last seconds and tell users of Python nothing."""
    from transformers.utils import logging  # Takes seconds to import, and who uses this has done so.

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def count(number: float) -> str:
    """A number for humans, three digits or so: ``7``, ``0.25``, ``1,234``, ``12.3k``, ``4.5M``."""
    if number >= 1e9:
        return f"{number / 1e9:.1f}G"
    if number >= 1e6:
        return f"{number / 1e6:.1f}M"
    if number >= 1e4:
        return f"{number / 1e3:.1f}k"
    if number >= 100 or number == int(number):
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def duration(seconds: float) -> str:
    """Seconds as ``8s``, ``3:20`` or ``1:02:03``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


class Bar:
    """Progress of one piece of work: ``with Bar("Encoding", total=12, unit="documents") as bar: bar.advance(3)``.

    Args:
        description: what is being done, for the user.
        total: how many units there are; ``None`` if unknown (then there is no time left to show).
        unit: what is counted, in the plural.
        stream: where to write; standard error by default, so that standard output stays clean for results.

    On a terminal it is a live bar. Elsewhere (a log file, a cluster job) it writes a line at most every ten seconds and
    nothing for work that ends sooner. With ``KLDISTILL_PROGRESS=0`` it is silent. Bars may be nested: inside a live bar
    an inner one writes nothing, since two live displays cannot share a terminal.
    """

    _live = False  # whether some bar of this process holds the terminal

    def __init__(
        self, description: str, total: float | None = None, unit: str = "it", *, stream: TextIO | None = None
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = 0.0
        self._stream = stream if stream is not None else sys.stderr
        self._progress: Progress | None = None
        self._started = self._written = time.monotonic()
        self._quiet = True
        self._note = ""

    def __enter__(self) -> Self:
        self._started = self._written = time.monotonic()
        self._quiet = not enabled()
        console = Console(file=self._stream)
        if not self._quiet and console.is_terminal:
            if Bar._live:
                self._quiet = True
            else:
                self._start(console)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            Bar._live = False

    def advance(self, amount: float = 1) -> None:
        """Count ``amount`` more units as done."""
        self.done += amount
        if self._quiet:
            return
        if self._progress is not None:
            self._progress.update(self._task, completed=self.done)
        elif (now := time.monotonic()) - self._written >= SECONDS_BETWEEN_LINES:
            self._written = now
            self._stream.write(self.line(now - self._started) + "\n")
            self._stream.flush()

    def note(self, text: str) -> None:
        """Show ``text`` beside the progress from now on, such as the loss of the last step."""
        self._note = text
        if self._progress is not None:
            self._progress.update(self._task, note=text)

    def line(self, elapsed: float) -> str:
        """The state as one plain line: description, done of total, rate, time left, note."""
        rate = self.done / elapsed if elapsed > 0 else 0.0
        text = f"{self.description}: {_amount(self.done, self.total, self.unit)}, {count(rate)} {self.unit}/s"
        if self.total is not None and rate > 0:
            text += f", {duration(max(self.total - self.done, 0) / rate)} left"
        return f"{text}; {self._note}" if self._note else text

    def _start(self, console: Console) -> None:
        wide = [BarColumn(bar_width=None), TimeElapsedColumn()] if console.width >= NARROW else []
        self._progress = progress = Progress(
            SpinnerColumn(),
            _Line(self.unit, compact=not wide),
            *wide,
            console=console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # results that go to a file stay there
            expand=True,
            speed_estimate_period=SECONDS_OF_RATE,
        )
        self._task = progress.add_task(self.description, total=self.total, note="")
        progress.start()
        Bar._live = True


class _Line(ProgressColumn):
    """Description, done of total, rate over the last half minute, time left, note: on one line, cut at its end.

    Args:
        compact: where there is a note, leave out unit and percentage, so that all of it is seen at 80 columns.
    """

    def __init__(self, unit: str, compact: bool) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self.unit, self.compact = unit, compact

    def render(self, task: Task) -> Text:
        note = task.fields.get("note")
        short = self.compact and note and task.total is not None
        amount = _amount(task.completed, task.total, self.unit)
        parts = [task.description, f"{count(task.completed)}/{count(task.total or 0)}" if short else amount]
        rate = task.finished_speed or task.speed
        if rate:
            parts.append(f"{count(rate)}/s")
            if task.total is not None and not task.finished:
                parts.append(f"{duration(max(task.total - task.completed, 0) / rate)} left")
        if note:
            parts.append(note)
        return Text(
            (" " if short else "  ").join(parts), style="progress.percentage", no_wrap=True, overflow="ellipsis"
        )


def _amount(done: float, total: float | None, unit: str) -> str:
    if total is None:
        return f"{count(done)} {unit}"
    share = f" ({done / total:.0%})" if total else ""
    return f"{count(done)} of {count(total)} {unit}{share}"


def track(iterable: Iterable[T], description: str, total: float | None = None, unit: str = "it") -> Iterator[T]:
    """Yield the items of ``iterable`` while showing how far it is; see ``Bar``.

    Args:
        total: number of items; taken from ``len(iterable)`` if there is one.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Bar(description, total, unit) as bar:
        for item in iterable:
            yield item
            bar.advance()
