"""Gathers the runs of a sweep: one table in three formats, and the sweep's page."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kldistill.evaluation.metrics import Metric, present
from kldistill.report.data import ABSENT, FINISHED, Run, find_runs
from kldistill.report.html import as_json, write
from kldistill.report.sweep import compare, heat_map, page, tuned
from kldistill.report.sweep.factors import expected, factors, is_cell, related, told_apart, twins
from kldistill.report.sweep.formats import as_csv, as_markdown
from kldistill.runtime.secrets import redact

MISSING = "missing"  # a cell of the grid without a run
NO_RESULT = "no result"  # a run without a run.json
DUPLICATE = "duplicate"  # a finished run that another one with the same configuration stands for
RESULTS = "results"
BEST_RATE = "best by validation"
BEST = "eval/domain/bits_per_byte"


def collect(folder: Path, *, factor: str = "loss", baseline: str = "ce", like: Collection[Path] = ()) -> dict[str, Any]:
    """Gather every run below ``folder`` into ``results.csv``, ``.md`` and ``.json`` and ``report.html`` there.

    Where two things vary, ``heat_map.png`` is written too. It can be called at any time: runs that are still going,
    have failed, or are missing from the grid are shown as such, and the same runs always give the same files.

    Args:
        folder: the sweep's folder, such as ``outputs/runs/kl_vs_ce``.
        factor: what is compared within the same values of all the others.
        baseline: the value of ``factor`` that the others are compared with.
        like: folders of runs below ``folder``: only these count, and those that differ from them in nothing but the
            seed and what varies among them. None of them: all count.

    Returns:
        The content of ``results.json``.

    Raises:
        ReportError: there is no run below ``folder``.
    """
    runs = find_runs(folder)
    if like and (kept := related(runs, like)):
        runs = kept
    table = gather(runs, folder, factor, baseline)
    write(folder / f"{RESULTS}.csv", as_csv(table))
    write(folder / f"{RESULTS}.md", as_markdown(table))
    write(folder / f"{RESULTS}.json", as_json(table))
    write(folder / "report.html", page.html(folder, table, runs))
    for name, drawn in ((heat_map.NAME, heat_map.heat_map(table, folder)), (tuned.NAME, tuned.picture(table, folder))):
        if drawn is None:  # one that is there is of other runs
            (folder / name).unlink(missing_ok=True)
    return table


def gather(runs: Sequence[Run], folder: Path, factor: str, baseline: str) -> dict[str, Any]:
    """The whole table as plain JSON types.

    Returns:
        ``factor`` and ``baseline`` (None where no run has it); ``factors``: every factor's values; ``is_grid``: whether
        missing cells are listed; ``best``: the run with the fewest bits/byte on domain text; ``metrics``; ``runs``: a
        row a run or missing cell, with its ``status``, ``factors`` and ``figures``; ``means``, ``references`` and
        ``differences``: see ``kldistill.report.sweep.compare``; ``tuned``: where a learning rate varies, which is best
        by validation (see ``kldistill.report.sweep.tuned``), and then the differences are of the arms at these.
    """
    values, labels = factors(runs, factor)
    aside = twins(runs, labels)
    counted = [index for index in range(len(runs)) if index not in aside and is_cell(labels[index], values)]
    kept = [runs[index] for index in counted]
    values, own = told_apart(kept, values, [labels[index] for index in counted], folder)
    order = {name: {value: place for place, value in enumerate(listed)} for name, listed in values.items()}

    def place(labelled: Mapping[str, str]) -> list[int]:
        return [order[name].get(labelled[name], len(runs)) for name in values]

    by_place = sorted(range(len(kept)), key=lambda index: place(own[index]))
    kept, own = [kept[index] for index in by_place], [own[index] for index in by_place]
    metrics = present([run.final() for run in kept if run.status == FINISHED])
    # Runs of several experiments were never asked to fill each other's cells.
    one_sweep = len({run.folder.parent for run in kept}) <= 1
    grid = expected(values, len(kept)) if one_sweep else []
    rate = tuned.rate_of(values)
    best_rates = tuned.tuned(kept, own, rate, metrics) if rate else []
    if rate:
        grid = tuned.asked_of_all(grid, own, rate)
    # What is compared are the arms, each at its best rate, not arms at one and the same rate.
    chosen = [at for entry in best_rates for at in entry["positions"]] if best_rates else range(len(kept))
    arms = [{**own[at], rate: BEST_RATE} if rate and best_rates else own[at] for at in chosen]
    rows = [_row(run, cell, folder, metrics) for run, cell in zip(kept, own, strict=True)]
    rows += [_absent(cell) for cell in grid if cell not in own]
    for index in sorted(set(range(len(runs))).difference(counted)):
        cell = {name: labels[index].get(name, "") for name in values}  # it is of no folder's cell
        rows.append(_set_aside(_row(runs[index], cell, folder, metrics), runs, aside.get(index), folder))
    rows.sort(key=lambda row: (place(row["factors"]), row["run"] or ""))
    comparable = baseline in values.get(factor, [])
    is_grid = bool(grid) or not values
    differences = []
    if comparable:
        listed = compare.differences([kept[at] for at in chosen], arms, metrics, factor, baseline)
        # Where the runs are no grid, nobody asked for the pairs that are missing.
        differences = [entry for entry in listed if is_grid or entry["verdict"] != MISSING]
    return redact(
        {
            "factor": factor,
            "baseline": baseline if comparable else None,
            "factors": values,
            "is_grid": is_grid,
            "best": best(rows),
            "metrics": [metric._asdict() for metric in metrics],
            "runs": rows,
            "means": compare.means(kept, own, metrics),
            "references": compare.references(kept, metrics),
            "differences": differences,
            "tuned": [{key: value for key, value in entry.items() if key != "positions"} for entry in best_rates],
        }
    )


def best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The finished run with the fewest bits per byte on domain text; None where no run has that metric.

    Its ``run``, ``factors`` and ``value``, and out of how many runs (``of``).
    """
    scored = [row for row in rows if row["status"] == FINISHED and BEST in row["figures"]]
    if not scored:
        return None
    winner = min(scored, key=lambda row: row["figures"][BEST])
    return {"run": winner["run"], "factors": winner["factors"], "value": winner["figures"][BEST], "of": len(scored)}


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
        "run": run.below(folder),
        "status": status,
        "error": error,
        "factors": dict(labels),
        "model": run.last,
        "figures": figures,
    }


def _set_aside(row: dict[str, Any], runs: Sequence[Run], by: int | None, folder: Path) -> dict[str, Any]:
    """The row of a run that enters no mean, with the run that stands for it, if one does."""
    if by is None:
        return row
    note = f"{runs[by].below(folder)} stands for it"
    status = DUPLICATE if row["status"] == FINISHED else row["status"]
    return {**row, "status": status, "error": f"{row['error']} ({note})" if row["error"] else note}


def _absent(cell: Mapping[str, str]) -> dict[str, Any]:
    return {"run": None, "status": MISSING, "error": "", "factors": dict(cell), "model": None, "figures": {}}
