"""``heat_map.png`` of a sweep: its main figures over what was compared, for documents that show no HTML."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from kldistill.evaluation.metrics import Metric
from kldistill.report.sweep.charts import cells, sides
from kldistill.report.sweep.panels import panels, replace

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
    """Write one panel for each metric: means over seeds, what is compared over the columns, all else down the rows.

    Args:
        table: as ``sweep.gather`` makes it.

    Returns:
        The file, or None where too little varies for a heat map, or nothing was measured.
    """
    axes_of_map = sides(table)
    metrics = [Metric(**entry) for entry in table["metrics"] if entry["name"] in SHOWN]
    if axes_of_map is None or not metrics:
        return None
    down, over, rest = axes_of_map
    names = [*rest, down]
    measured = {tuple(entry["cell"][name] for name in names) for entry in table["means"]}
    rows = [row for row in product(*(table["factors"][name] for name in names)) if row in measured]
    columns = table["factors"][over]
    across = min(3, len(metrics))
    lines = -(-len(metrics) // across)
    size = (1.8 + across * (0.5 + 0.72 * len(columns)), lines * (0.8 + 0.3 * len(rows)))
    figure, axes = panels(len(metrics), across, size, sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        values = np.full((len(rows), len(columns)), np.nan)
        for entry in table["means"]:
            if entry["metric"] == metric.name:
                row = tuple(entry["cell"][name] for name in names)
                values[rows.index(row), columns.index(entry["cell"][over])] = entry["mean"]
        cells(axis, values, metric, [", ".join(row) for row in rows], columns, size=8)
        axis.set_title(f"{metric.label}\n({metric.better} is better)", fontsize=9)
        axis.tick_params(length=0)
    return replace(figure, folder / NAME)
