"""The table of a sweep as CSV and Markdown, and its figures as text."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from kldistill.evaluation.metrics import Metric
from kldistill.evaluation.table import markdown_table
from kldistill.report.data import FINISHED
from kldistill.report.sweep import tuned
from kldistill.report.sweep.compare import ALL
from kldistill.report.sweep.factors import SEED
from kldistill.report.sweep.verdict import MISSING, SAME

# The columns of a difference: p is adjusted for all the differences of the sweep (Holm).
DIFFERENCE = ("difference", "95 % interval", "seeds", "documents", "p (Holm)", "verdict")


def as_csv(table: Mapping[str, Any]) -> str:
    """A row a run; empty where a run has no such figure."""
    figures = list(dict.fromkeys(name for row in table["runs"] for name in row["figures"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table["factors"], "status", "model", *figures, "run", "error"])
    for row in table["runs"]:
        own = [row["figures"].get(name, "") for name in figures]
        writer.writerow([*row["factors"].values(), row["status"], row["model"], *own, row["run"], row["error"]])
    return text.getvalue()


def as_markdown(table: Mapping[str, Any]) -> str:
    """Means over seeds, paired differences with their verdicts, and the runs that are not finished."""
    metrics = [Metric(**entry) for entry in table["metrics"]]
    names = [name for name in table["factors"] if name != SEED]
    parts = ["Means over seeds with 95 % intervals (Student's t); n: seeds.", ""]
    rows = []
    for cell, entries in by_cell(table["means"]).items():
        n = max(entry["n"] for entry in entries.values())
        shown = [with_interval(metric, entries.get(metric.name)) for metric in metrics]
        rows.append([*cell, str(n), *shown])
    parts += [markdown_table([*names, "n", *(f"{metric.label} ({metric.unit})" for metric in metrics)], rows), ""]
    if table["tuned"]:
        parts += [
            "The best rate by validation of those tried, a mean over seeds, and the test figures of its runs:",
            "",
        ]
        parts += [markdown_table(*tuned.rows(table)), ""]
    if wider := tuned.commands(table):
        parts += ["At these ends of the range the best rate may lie beyond it:", "", "```sh", *wider, "```", ""]
    if table["references"]:
        parts += ["On the same texts and tasks, with 95 % intervals over documents or tasks:", ""]
        rows = [
            [model, *(with_interval(metric, entries.get(metric.name)) for metric in metrics)]
            for model, entries in by_model(table["references"]).items()
        ]
        parts += [markdown_table(["model", *(f"{metric.label} ({metric.unit})" for metric in metrics)], rows), ""]
    if table["differences"]:
        what = f"{table['factor']}: difference to {table['baseline']}"
        parts += [f"{what}, paired within everything else and the seed; 95 % intervals over seeds and documents.", ""]
        rows = [
            [*cell_names(entry, table), entry["value"], metric.label, *difference(metric, entry)]
            for metric in metrics
            for entry in telling(table)
            if entry["metric"] == metric.name
        ]
        others = [name for name in names if name != table["factor"]]
        parts += [markdown_table([*others, table["factor"], "metric", *DIFFERENCE], rows), ""]
    open_rows = [row for row in table["runs"] if row["status"] != FINISHED]
    if open_rows:
        parts += ["Not in the means:", ""]
        rows = [[*row["factors"].values(), row["status"], row["error"]] for row in open_rows]
        parts += [markdown_table([*table["factors"], "status", "reason"], rows), ""]
    return "\n".join(parts)


def telling(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The differences without those of metrics that are no evidence, have no better side, or differ in no cell."""
    better = {metric["name"] for metric in table["metrics"] if metric["better"] and metric["evidence"]}
    varying = {entry["metric"] for entry in table["differences"] if entry["verdict"] not in (SAME, MISSING)}
    return [entry for entry in table["differences"] if entry["metric"] in better & varying]


def by_cell(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], dict[str, Mapping[str, Any]]]:
    """Entries of ``means`` by cell and metric."""
    cells: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        cells.setdefault(tuple(entry["cell"].values()), {})[entry["metric"]] = entry
    return cells


def by_model(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Entries of ``references`` by model and metric."""
    models: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        models.setdefault(entry["model"], {})[entry["metric"]] = entry
    return models


def cell_names(entry: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    """The values of a difference's cell; ``all`` for all cells together, or how many of them have pairs."""
    others = [name for name in table["factors"] if name not in (SEED, table["factor"])]
    return [together(entry)] * len(others) if entry["cell"] is None else [entry["cell"][name] for name in others]


def together(entry: Mapping[str, Any]) -> str:
    """Which cells a difference over several cells is of."""
    return ALL if entry["cells"] in (0, entry["of"]) else f"{entry['cells']} of {entry['of']} cells"


def with_interval(metric: Metric, entry: Mapping[str, Any] | None) -> str:
    """A mean with its interval over seeds."""
    if entry is None:
        return "–"
    return metric.show(entry["mean"]) + interval(metric, entry["low"], entry["high"], sign=False)


def difference(metric: Metric, entry: Mapping[str, Any]) -> list[str]:
    """A difference as text, in the columns of ``DIFFERENCE``."""
    return [
        metric.show(entry["difference"], sign=True),
        interval(metric, entry["low"], entry["high"]).strip() or "–",
        str(entry["n"]),
        "–" if entry["documents"] is None else str(entry["documents"]),
        "–" if entry["p_holm"] is None else f"{entry['p_holm']:.3f}" if entry["p_holm"] >= 0.001 else "< 0.001",
        entry["verdict"],
    ]


def interval(metric: Metric, low: float | None, high: float | None, sign: bool = True) -> str:
    """`` [low, high]``, or nothing where there is no interval, or all values are one."""
    if low is None or high is None or low == high:
        return ""
    return f" [{metric.show(low, sign)}, {metric.show(high, sign)}]"
