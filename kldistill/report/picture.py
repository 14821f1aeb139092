"""``heat_map.png`` of a sweep: its main figures over what was compared, for documents that show no HTML."""

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kldistill.report.catalog import Metric
from kldistill.report.sweep_charts import paint, sides

NAME = "heat_map.png"
SHOWN = (
    "eval/domain/bits_per_byte",
    "eval/general/bits_per_byte",
    "eval/domain/kl_to_teacher",
    "eval/domain/new_token_nats",
    "eval/domain/adoption",
    "eval/completion/exact_match",
    "eval/completion/edit_similarity",
    "eval/humaneval/pass@1",
    "eval/mbpp/pass@1",
)


def heat_map(table: Mapping[str, Any], folder: Path) -> Path | None:
    """Write one panel a figure: means over seeds, what is compared over the columns, all else down the rows.

    Args:
        table: as ``sweep.gather`` makes it.

    Returns:
        The file, or None where too little varies for a heat map, or nothing was measured.
    """
    found = sides(table)
    measured = {entry["metric"] for entry in table["means"]}
    metrics = [Metric(**entry) for entry in table["metrics"] if entry["name"] in SHOWN and entry["name"] in measured]
    if found is None or not metrics:
        return None
    down, over, rest = found
    across = min(3, len(metrics))
    n_rows = len({tuple(entry["cell"][name] for name in (down, *rest)) for entry in table["means"]})
    lines = -(-len(metrics) // across)
    columns = table["factors"][over]
    size = (1.8 + across * (0.5 + 0.72 * len(columns)), lines * (0.8 + 0.3 * n_rows))
    figure = Figure(figsize=size, layout="constrained", facecolor="white", dpi=150)
    axes = figure.subplots(lines, across, squeeze=False, sharey=True)
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    for axis, metric in zip(axes.flat, metrics, strict=False):
        _panel(axis, table, metric, over, [*rest, down])
    path, temporary = folder / NAME, folder / f".{NAME}"
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)  # several runs of a sweep may collect at once
    return path


def _panel(axis: Axes, table: Mapping[str, Any], metric: Metric, over: str, down: list[str]) -> None:
    columns = table["factors"][over]
    values: dict[tuple[tuple[str, ...], str], float] = {
        (tuple(entry["cell"][name] for name in down), entry["cell"][over]): entry["mean"]
        for entry in table["means"]
        if entry["metric"] == metric.name
    }
    present = {tuple(entry["cell"][name] for name in down) for entry in table["means"]}
    rows = [row for row in product(*(table["factors"][name] for name in down)) if row in present]
    low, high = np.min(list(values.values())), np.max(list(values.values()))
    for (y, row), (x, column) in product(enumerate(rows), enumerate(columns)):
        value = values.get((row, column))
        if value is None:
            axis.text(x, y, "–", ha="center", va="center", fontsize=8)
            continue
        colour, light = paint(0.5 if high == low else float((value - low) / (high - low)), metric.better)
        axis.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, color=colour, linewidth=0)
        axis.text(x, y, metric.show(value), ha="center", va="center", fontsize=8, color="k" if light else "w")
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(rows)), [", ".join(row) for row in rows], fontsize=8)
    axis.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axis.set_title(f"{metric.label}\n({metric.better} is better)", fontsize=9)
    axis.tick_params(length=0)
