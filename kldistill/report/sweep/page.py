"""The page of a sweep: what was compared, the verdicts, heat maps, and every run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kldistill.evaluation.metrics import Metric
from kldistill.report.data import Run
from kldistill.report.html import render
from kldistill.report.sweep import charts, tuned
from kldistill.report.sweep.compare import ALL
from kldistill.report.sweep.factors import FOLDER, SEED
from kldistill.report.sweep.formats import (
    DIFFERENCE,
    by_cell,
    by_model,
    cell_names,
    difference,
    interval,
    telling,
    together,
    with_interval,
)
from kldistill.report.sweep.verdict import (
    BETTER,
    FEW,
    MISSING,
    NO_RECORDS,
    ONE_SEED,
    SAME,
    TRAINED,
    UNCERTAIN,
    WORSE,
)

_VERDICTS = (BETTER, WORSE, UNCERTAIN, ONE_SEED, FEW, NO_RECORDS, TRAINED, SAME, MISSING)


def html(folder: Path, table: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """The page as text.

    Args:
        folder: the sweep's folder.
        table: content of ``results.json``.
        runs: the sweep's runs, for what they were asked in common.
    """
    metrics = {entry["name"]: Metric(**entry) for entry in table["metrics"]}
    rows = summary(table, metrics)
    tuned_columns, tuned_rows = tuned.rows(table)
    return render(
        "sweep.html.j2",
        **table,
        name=folder.resolve().name,
        counts=Counter(row["status"] for row in table["runs"]),
        command=command(table, runs),
        changes=common_changes(runs),
        answers=answers(table, metrics),
        summary=rows,
        verdicts=[kind for kind in _VERDICTS if any(row["counts"].get(kind) for row in rows)],
        columns=DIFFERENCE,
        cells=[
            {"names": cell, "n": max(entry["n"] for entry in means_of_cell.values()), "means": means_of_cell}
            for cell, means_of_cell in by_cell(table["means"]).items()
        ],
        tuned_columns=tuned_columns,
        tuned_rows=tuned_rows,
        wider=tuned.commands(table),
        reference_models=by_model(table["references"]),
        named=metrics,
        compared=[
            {"names": cell_names(entry, table), "metric": metrics[entry["metric"]], "entry": entry, "shown": shown}
            for entry in telling(table)
            for shown in [difference(metrics[entry["metric"]], entry)]
        ],
        others=[name for name in table["factors"] if name not in (SEED, table["factor"])],
        with_interval=with_interval,
        interval=interval,
        pages={row["run"] for row in table["runs"] if row["run"] and (folder / row["run"] / "report.html").is_file()},
        charts={
            "learning": list(charts.learning(table, {run.below(folder): run for run in runs})),
            "heat": list(charts.heat_maps(table)),
            "standing": list(charts.standing(table)),
            "inside": list(charts.inside(table, {run.below(folder): run for run in runs})),
        },
    )


def common_changes(runs: Sequence[Run]) -> list[Mapping[str, str | None]]:
    """What all runs that have a configuration were asked alike, other than the defaults."""
    changes = [run.changes for run in runs if run.config]
    return [change for change in changes[0] if all(change in other for other in changes)] if changes else []


def command(table: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    """What all runs were given alike, and the values of what varies; empty where Hydra had no part in some run."""
    if any(run.overrides is None for run in runs):
        return []
    varying = tuple(f"{name}=" for name in table["factors"])
    first, *others = [[text for text in run.overrides or [] if not text.startswith(varying)] for run in runs]
    shared = [text for text in first if all(text in other for other in others)]
    return [*shared, *(f"{name}={','.join(values)}" for name, values in table["factors"].items() if name != FOLDER)]


def summary(table: Mapping[str, Any], metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """For every value that is compared with the baseline, and every metric, the verdicts and the difference.

    ``counts`` is how many cells got which verdict; the difference is over all cells.
    """
    entries: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in telling(table):
        entries.setdefault((entry["value"], entry["metric"]), []).append(entry)
    lines = []
    for (value, name), own in entries.items():
        cells = [entry for entry in own if entry["cell"] is not None]
        whole = next((entry for entry in own if entry["cell"] is None), cells[0])  # a single cell is all there is
        counts = Counter(entry["verdict"] for entry in cells)
        shown = difference(metrics[name], whole)
        lines.append({"value": value, "metric": metrics[name], "counts": counts, "shown": shown, "whole": whole})
    return lines


def answers(table: Mapping[str, Any], metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """For every value that is compared: the metrics by verdict over all cells, with their mean differences."""
    by_value: dict[str, dict[str, list[str]]] = {}
    for row in summary(table, metrics):
        by_verdict = by_value.setdefault(row["value"], {verdict: [] for verdict in _VERDICTS})
        verdict, counts = row["whole"]["verdict"], row["counts"]
        note = row["shown"][0]
        if row["whole"]["cell"] is None and (cells := together(row["whole"])) != ALL:
            note += f", {cells}"
        if verdict not in (BETTER, WORSE) and counts.total() > 1:  # what the single cells say all the same
            note += "; cells: " + ", ".join(f"{n} {kind}" for kind, n in counts.items())
        by_verdict[verdict].append(f"{row['metric'].label} ({note})")
    return [
        {"value": value, "said": {verdict: names for verdict, names in by_verdict.items() if names}}
        for value, by_verdict in by_value.items()
    ]
