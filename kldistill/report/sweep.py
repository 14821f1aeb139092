"""Gathers the runs of a sweep: one table in three formats, and the sweep's page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kldistill.records import redact
from kldistill.report import compare, picture, sweep_page
from kldistill.report.catalog import Metric, present
from kldistill.report.data import ABSENT, FINISHED, Run, find_runs
from kldistill.report.factors import expected, factors
from kldistill.report.formats import as_csv, as_markdown
from kldistill.report.page import as_json, write

MISSING = "missing"  # a cell of the grid without a run
NO_RESULT = "no result"  # a run without a run.json
RESULTS = "results"


def collect(folder: Path, *, factor: str = "loss", baseline: str = "ce") -> dict[str, Any]:
    """Gather every run below ``folder`` into ``results.csv``, ``.md`` and ``.json``, ``report.html``
    and, where two things vary, ``heat_map.png`` there.

    Can be called at any time: runs that are still going, have failed, or are missing from the grid are shown as such,
    and the same runs always give the same files.

    Args:
        folder: of the sweep, such as ``outputs/runs/kl_vs_ce``.
        factor: what is compared within the same values of all the others.
        baseline: the value of ``factor`` that the others are compared with.

    Returns:
        The content of ``results.json``.

    Raises:
        ReportError: there is no run below ``folder``.
    """
    runs = find_runs(folder)
    table = gather(runs, folder, factor, baseline)
    write(folder / f"{RESULTS}.csv", as_csv(table))
    write(folder / f"{RESULTS}.md", as_markdown(table))
    write(folder / f"{RESULTS}.json", as_json(table))
    write(folder / "report.html", sweep_page.html(folder, table, runs))
    picture.heat_map(table, folder)
    return table


def gather(runs: Sequence[Run], folder: Path, factor: str, baseline: str) -> dict[str, Any]:
    """The whole table as plain JSON types.

    Returns:
        ``factor`` and ``baseline`` (None where no run has it); ``factors``: every factor's values; ``is_grid``: whether
        missing cells are listed; ``metrics``; ``runs``: a row a run or missing cell, with its ``status``, ``factors``
        and ``figures``; ``means`` and ``differences``: see ``kldistill.report.compare``.
    """
    values, labels = factors(runs)
    if "folder" in values:
        values["folder"] = [os.path.relpath(name, folder) for name in values["folder"]]
        labels = [{**own, "folder": os.path.relpath(own["folder"], folder)} for own in labels]
    metrics = present([run.final() for run in runs if run.status == FINISHED])
    grid = expected(values, len(runs))
    rows = [_row(run, own, folder, metrics) for run, own in zip(runs, labels, strict=True)]
    rows += [_absent(cell) for cell in grid if cell not in labels]
    order = {name: {value: at for at, value in enumerate(found)} for name, found in values.items()}
    rows.sort(key=lambda row: [order[name][row["factors"][name]] for name in values])
    comparable = baseline in values.get(factor, [])
    return redact(
        {
            "factor": factor,
            "baseline": baseline if comparable else None,
            "factors": values,
            "is_grid": bool(grid) or not values,
            "metrics": [metric._asdict() for metric in metrics],
            "runs": rows,
            "means": compare.means(runs, labels, metrics),
            "differences": compare.differences(runs, labels, metrics, factor, baseline) if comparable else [],
        }
    )


def _row(run: Run, labels: Mapping[str, str], folder: Path, metrics: Sequence[Metric]) -> dict[str, Any]:
    final = run.final() if run.status == FINISHED else {}
    figures = {}
    for metric in metrics:
        for name in (metric.name, f"{metric.name}/low", f"{metric.name}/high"):
            if name in final:
                figures[name] = final[name]
    status, error = run.status, run.error
    if status == ABSENT:
        status, error = NO_RESULT, "it has not begun, or ended before it could say why; see its log"
    return {
        "run": os.path.relpath(run.folder, folder),
        "status": status,
        "error": error,
        "factors": dict(labels),
        "model": run.last,
        "figures": figures,
    }


def _absent(cell: Mapping[str, str]) -> dict[str, Any]:
    return {"run": None, "status": MISSING, "error": "", "factors": dict(cell), "model": None, "figures": {}}
