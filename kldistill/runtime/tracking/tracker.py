"""Figures of a run: ``metrics.jsonl`` of the stage and of the run, the console, and a dashboard if wanted.

A stage's own ``metrics.jsonl`` belongs to its artifact; the run's file holds the lines of all its stages. Both have one
JSON object a line: ``stage``, ``step`` (or null), ``time`` (Unix seconds), and the figures by name. A figure that is
not finite is null. A run that reuses an artifact takes over its lines, so every run shows every curve.
"""

import io
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kldistill.runtime.config import LoggerConfig, RuntimeConfig
from kldistill.runtime.console import spelt
from kldistill.runtime.files import append, dump, read_lines, replace, truncate
from kldistill.runtime.job import Job
from kldistill.runtime.secrets import redact, shown
from kldistill.runtime.tracking.trackio_run import TrackioRun
from kldistill.runtime.tracking.wandb_run import WandbRun, chosen_mode

METRICS = "metrics.jsonl"
TABLES = "tables.jsonl"
LOG = "kldistill.log"
WIDTH = 160  # of the console where there is no terminal, and of the log


class Tracker:
    """Takes the figures of one run. Use it as a context manager: leaving it by an exception marks the run as failed.

    Whatever it shows on the console is in the folder's ``kldistill.log`` too.

    Args:
        folder: the run's folder; made if need be. Running again in it continues the dashboard's same run.
        config: which dashboard. ``none`` and mode ``disabled`` never import wandb.
        resolved: the whole resolved configuration, for the dashboard.
        name: what the dashboard calls the run.
        job_type: the kind of run that the dashboard shows beside the name.
        group: the dashboard's group of the run, unless ``config`` names one.
        console: where tables and lines for the user go; standard output by default.

    Raises:
        ConfigError: if the dashboard's package cannot be imported or started.
    """

    def __init__(
        self,
        folder: Path,
        config: LoggerConfig,
        *,
        resolved: Mapping[str, Any] | None = None,
        name: str | None = None,
        job_type: str | None = None,
        group: str | None = None,
        console: Console | None = None,
    ) -> None:
        self.folder = folder
        self.console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
        self._finished = False
        folder.mkdir(parents=True, exist_ok=True)
        truncate(folder / METRICS, read_lines(folder / METRICS))
        mode = chosen_mode(config)
        self._board: WandbRun | TrackioRun | None = None
        if config.name == "trackio" and config.mode != "disabled":
            self._board = TrackioRun(folder, config, resolved or {}, name, job_type, group)
        elif mode != "disabled":
            self._board = WandbRun(folder, config, mode, resolved or {}, name, job_type, group)
        if self._board is not None:
            self.say(self._board.where)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("finished" if kind is None else "failed")

    def job(self, stage: str, runtime: RuntimeConfig, out: Path) -> Job:
        """What ``stage`` gets to report with while it writes into ``out``.

        What an interrupted build left in ``out`` counts as logged; what this run's file has of the stage beyond that
        (from a build that was thrown away) is dropped.
        """
        lines = read_lines(out / METRICS)
        truncate(out / METRICS, lines)
        self._adopt(stage, lines)
        return Job(
            runtime=runtime,
            log=lambda metrics, step=None: self.log(metrics, step, stage=stage, out=out),
            table=lambda name, columns, rows: self.table(name, columns, rows, stage=stage, out=out),
            say=self.say,
            rewind=lambda step: self.rewind(stage, step, out),
        )

    def log(self, metrics: Mapping[str, Any], step: int | None = None, *, stage: str, out: Path | None = None) -> None:
        """Write one line of figures to ``out`` (if given), to the run's file and to the dashboard.

        Args:
            metrics: numbers by name. A name without a slash gets the stage's name in front: ``loss`` of ``distill`` is
                ``distill/loss``.
            step: the stage's own step, the x-axis of its curves.
        """
        figures = {key if "/" in key else f"{stage}/{key}": _number(value) for key, value in metrics.items()}
        assert f"{stage}/step" not in figures, "the step is an argument of its own"
        line = dump({"stage": stage, "step": step, "time": round(time.time(), 3), **figures})
        for folder in (out, self.folder):
            if folder is not None:
                append(folder / METRICS, line)
        self._send(line)

    def table(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        stage: str | None = None,
        out: Path | None = None,
    ) -> None:
        """Show a table on the console and in the dashboard; keep it in ``out`` so that a reused artifact has it too.

        Text in it stands on one line, its control characters spelt.
        """
        name = spelt(name)
        key = name if "/" in name or stage is None else f"{stage}/{name}"
        plain = [[_cell(value) for value in row] for row in rows]
        heads = [spelt(column) for column in columns]
        line = dump({"table": key, "columns": heads, "rows": plain})
        if out is not None and line not in (kept := read_lines(out / TABLES)):  # a resumed stage shows it again
            truncate(out / TABLES, kept)
            append(out / TABLES, line)
        self._show(redact(name), redact(heads), redact(plain))
        self._send(line)

    def image(self, name: str, path: Path) -> None:
        """Send a picture or a page to the dashboard; it stays where it is on disk."""
        if self._board is not None:
            self._board.image(name, path)

    def model(self, folder: Path) -> None:
        """Tell the dashboard where the exported model lies."""
        if isinstance(self._board, WandbRun):
            self._board.model(folder)

    def say(self, text: str, wrap: bool = False) -> None:
        """Tell the user something, on the console and in the run's log, with control characters spelt.

        Args:
            wrap: break its lines at the console's width, for prose; a line with a path in it stays in one piece.
        """
        text = shown(" ".join(text.split()) if wrap else text, keep="")
        self.console.print(Text(text), soft_wrap=not wrap)
        self._log(text)

    def _show(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table on the console, in a form that fits there, and in the log."""
        for table in _fitting(title, columns, rows, self.console):
            self.console.print(table)
        plain = Console(file=io.StringIO(), width=WIDTH)
        plain.print(_render(title, columns, rows))
        assert isinstance(plain.file, io.StringIO)
        self._log(plain.file.getvalue())

    def _log(self, text: str) -> None:
        """Add to the run's log what the console shows. A disk that is full ends a run elsewhere, not here."""
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError), (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(f"[{when}] {text.rstrip()}\n")

    def rewind(self, stage: str, step: int, out: Path) -> None:
        """Forget what ``stage`` logged after the last line whose step is at most ``step``; ``-1`` forgets all of it.

        A dashboard's history can only grow: there, steps that are done again appear twice, with the same x.
        """
        lines = read_lines(out / METRICS)
        steps = [json.loads(line)["step"] for line in lines]
        end = max((index + 1 for index, done in enumerate(steps) if done is not None and done <= step), default=0)
        truncate(out / METRICS, lines[:end])
        self._adopt(stage, lines[:end])

    def replay(self, stage: str, artifact: Path) -> None:
        """Take over the lines and tables of a reused artifact that this run has not had yet."""
        self._adopt(stage, read_lines(artifact / METRICS))
        for line in read_lines(artifact / TABLES):
            self._send(line)

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Set the run's final figures in the dashboard (``run.json`` is the pipeline's)."""
        if self._board is not None:
            self._board.summary({key: _number(value) for key, value in figures.items()})

    def finish(self, status: Literal["finished", "failed"]) -> None:
        """Close the dashboard's run. Further calls do nothing."""
        if self._board is not None and not self._finished:
            self._board.finish(failed=status != "finished")
        self._finished = True

    def _adopt(self, stage: str, lines: Sequence[str]) -> None:
        """Make ``lines`` the run's lines of ``stage``, and send the dashboard those it has not had."""
        path = self.folder / METRICS
        before = read_lines(path)
        after = [line for line in before if json.loads(line)["stage"] != stage] + list(lines)
        if sorted(after) != sorted(before):
            replace(path, after)
        for line in lines:
            self._send(line)

    def _send(self, line: str) -> None:
        if self._board is not None:
            self._board.send(line)


def _number(value: Any) -> int | float | str | None:
    if value is None or isinstance(value, str | int):
        return value
    return number if math.isfinite(number := float(value)) else None


def _cell(value: Any) -> int | float | str | None:
    return _number(value) if value is None or isinstance(value, int | float) else spelt(str(value))


def _render(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=Text(title) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(not isinstance(row[index], str) or row[index][:1] in set("0123456789+-–.") for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))
    return table


def _fitting(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], console: Console) -> list[Table]:
    """The table, if the console is wide enough for it; else turned on its side, in as many pieces as it needs."""

    def fits(table: Table) -> bool:
        return Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width

    table = _render(title, columns, rows)
    if not rows or fits(table):
        return [table]
    tables: list[Table] = []
    left = list(rows)
    while left:
        n = len(left)
        while n > 1 and not fits(_turned(title, columns, left[:n])):
            n -= 1
        tables.append(_turned("" if tables else title, columns, left[:n]))
        left = left[n:]
    return tables


def _turned(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table on its side: a line for each column but the first, whose cells are the heads."""
    heads = [columns[0], *(_shown(row[0]) for row in rows)]
    lines = [[name, *(row[index] for row in rows)] for index, name in enumerate(columns) if index]
    return _render(title, heads, lines)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
