"""The charts of a sweep's page: heat maps, where its runs stand, and what their new rows have learnt."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from kldistill.evaluation.metrics import LOWER, TEXT_METRICS, Metric
from kldistill.interpret import compare
from kldistill.interpret.style import CYCLE
from kldistill.report.chart import Chart, legend, new_axes
from kldistill.report.data import FINISHED, Run, curves
from kldistill.report.svg import inline, is_wide, of_figure
from kldistill.report.sweep.factors import SEED

_MAPPED = (
    "eval/domain/bits_per_byte",
    "eval/domain/kl_to_teacher",
    "eval/general/kl_to_teacher",
    "eval/domain/adoption",
)
_MOST_MAPS = 12
_MOST_INSIDE = 12  # runs that lines of one chart can tell apart
_SERIES = tuple(zip(CYCLE, "o^DsvP", strict=True))
# Both ends of the scale are told apart in greyscale; figures in the cells are black or white, as the cell is light or
# dark, not as the page is.
_COLOURS = "cividis"


def across(table: Mapping[str, Any]) -> str | None:
    """The factor whose values charts tell apart by column or colour.

    It is the compared one or, where that has one value only, the one with the fewest values beside the seed.
    """
    if table["factor"] in table["factors"]:
        return table["factor"]
    others = [name for name in table["factors"] if name != SEED]
    return min(others, key=lambda name: len(table["factors"][name]), default=None)


def sides(table: Mapping[str, Any]) -> tuple[str, str, list[str]] | None:
    """The factors down the rows and over the columns of a heat map, and those that are left.

    None where too little varies for a heat map.
    """
    column = across(table)
    others = [name for name in table["factors"] if name not in (SEED, column)]
    if column is None or not others:
        return None
    down = "init" if "init" in others else max(others, key=lambda name: len(table["factors"][name]))
    return down, column, [name for name in others if name != down]


def paint(share: float, better: str) -> tuple[str, bool]:
    """The colour of a value that is ``share`` of the way from the lowest to the highest, and whether it is light.

    The colour is brighter where the value is better.
    """
    red, green, blue, _ = colormaps[_COLOURS](1 - share if better == LOWER else share)
    return to_hex((red, green, blue)), 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18


def heat_maps(table: Mapping[str, Any]) -> Iterator[Chart]:
    """One heat map for each metric and combination of the remaining factors, of means over seeds.

    The compared factor (usually the loss) is over the columns, the init or what varies most of the others down the
    rows.
    """
    axes_of_map = sides(table)
    if axes_of_map is None:
        return
    down, column, rest = axes_of_map
    combinations = list(dict.fromkeys(tuple(entry["cell"][name] for name in rest) for entry in table["means"]))
    metrics = {entry["name"]: Metric(**entry) for entry in table["metrics"]}
    measured = {(entry["metric"], *(entry["cell"][name] for name in rest)) for entry in table["means"]}
    suites = [name for name in metrics if name.endswith(("/exact_match", "/pass@1", "/accuracy"))]
    drawn = 0
    for name in (*_MAPPED, *suites):
        for combination in combinations:
            if (name, *combination) not in measured:
                continue
            if drawn == _MOST_MAPS:
                return
            fixed = dict(zip(rest, combination, strict=True))
            drawn += 1
            yield _heat_map(f"heat-{drawn}", table, metrics[name], (down, column), fixed)


def _heat_map(
    name: str, table: Mapping[str, Any], metric: Metric, along: tuple[str, str], fixed: Mapping[str, str]
) -> Chart:
    down, over = along
    rows, columns = table["factors"][down], table["factors"][over]
    values = np.full((len(rows), len(columns)), np.nan)
    for entry in table["means"]:
        cell = entry["cell"]
        if entry["metric"] == metric.name and all(cell[key] == value for key, value in fixed.items()):
            values[rows.index(cell[down]), columns.index(cell[over])] = entry["mean"]
    figure, axes = new_axes((1.7 + 0.85 * len(columns), 0.7 + 0.42 * len(rows)))
    cells(axes, values, metric, rows, columns)
    axes.set(xlabel=over, ylabel=down)
    said = [
        f"{rows[row]} with {columns[column]}: {metric.show(value)}"
        for (row, column), value in np.ndenumerate(values)
        if not np.isnan(value)
    ]
    axes.grid(False)
    where = ", ".join(f"{key} {value}" for key, value in fixed.items())
    title = f"{metric.label}{f' ({where})' if where else ''}"
    return Chart(
        title,
        of_figure(figure, name, f"{title}, mean over seeds. {'; '.join(said)}."),
        f"{metric.unit}; {metric.better} is better, and brighter.",
    )


def cells(
    axes: Axes,
    values: NDArray[np.float64],
    metric: Metric,
    rows: Sequence[str],
    columns: Sequence[str],
    size: float | None = None,
) -> None:
    """Draw a heat map: a coloured cell a value with the value in it, a dash where it is nan.

    Args:
        size: the size of the letters, in points.
    """
    low, high = np.nanmin(values), np.nanmax(values)
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "–", ha="center", va="center", fontsize=size)
            continue
        share = 0.5 if high == low else (value - low) / (high - low)
        colour, light = paint(share, metric.better)
        axes.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=colour, linewidth=0)
        # Not quite black and white: those would follow the page.
        ink = "#000001" if light else "#fffffe"
        axes.text(column, row, metric.show(value), ha="center", va="center", color=ink, fontsize=size)
    axes.set_xticks(range(len(columns)), columns, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))


def standing(table: Mapping[str, Any]) -> Iterator[Chart]:
    """Every finished run: bits per byte against the KL to the teacher, and against tokens saved.

    Each value of the compared factor has its colour.
    """
    rows = [row for row in table["runs"] if row["figures"]]
    for name, x_name, x_label, factor, reading in (
        (
            "distance",
            "eval/domain/kl_to_teacher",
            "KL to the teacher (nats/position)",
            1,
            "Lower left is best: predicts the domain well and has stayed near the original model.",
        ),
        (
            "saved",
            "tokens/saved",
            "tokens saved, all test documents (%)",
            100,
            "Lower right is best: shorter text, predicted well.",
        ),
    ):
        shown = [row for row in rows if {x_name, "eval/domain/bits_per_byte"} <= row["figures"].keys()]
        if not shown:
            continue
        figure, axes = new_axes()
        said = []
        for (label, members), (colour, marker) in zip(_by_value(shown, across(table)), cycle(_SERIES), strict=False):
            x = [factor * row["figures"][x_name] for row in members]
            y = [row["figures"]["eval/domain/bits_per_byte"] for row in members]
            axes.plot(x, y, color=colour, marker=marker, linestyle="", markersize=7, alpha=0.75, label=label)
            said.append(f"{label}: bits per byte {min(y):.3f} to {max(y):.3f}, {x_label} {min(x):.3g} to {max(x):.3g}")
        axes.set(xlabel=x_label, ylabel="bits/byte, domain")
        legend(axes)
        against = "distance" if name == "distance" else "tokens saved"
        yield Chart(
            f"Domain text: fit against {against}",
            of_figure(figure, f"runs-{name}", f"Bits per byte against {x_label}, a point a run. {'; '.join(said)}."),
            f"A point is a run. {reading}",
        )


def learning(table: Mapping[str, Any], runs: Mapping[str, Run]) -> Iterator[Chart]:
    """Validation of every finished run while it trained, a line a run, a colour a value of the compared factor.

    Args:
        runs: the runs by their names in ``table["runs"]``.
    """
    for name in ("bits_per_byte", "kl_to_teacher"):
        metric = TEXT_METRICS[name]
        lines = []
        for row in table["runs"]:
            points = curves(runs[row["run"]], "distill").get(f"validation_{name}") if row["run"] in runs else None
            if row["status"] == FINISHED and points:
                lines.append({**row, "points": points})
        if not lines:
            continue
        figure, axes = new_axes((5.0, 3.4))
        said = []
        for (label, members), (colour, _) in zip(_by_value(lines, across(table)), cycle(_SERIES), strict=False):
            for number, line in enumerate(members):
                shown = label if number == 0 else None
                axes.plot(*zip(*line["points"], strict=True), color=colour, alpha=0.7, linewidth=1.3, label=shown)
            ends = [line["points"][-1][1] for line in members]
            said.append(f"{label} ends at {min(ends):.3g} to {max(ends):.3g}")
        axes.set(xlabel="step", ylabel=metric.unit)
        legend(axes)
        yield Chart(
            f"Validation: {metric.label}",
            of_figure(figure, f"learning-{name}", f"{metric.label} on validation text by step. {'; '.join(said)}."),
            "A line is a run. Lower is better; where a line still falls, more steps would help.",
        )


def inside(table: Mapping[str, Any], runs: Mapping[str, Run]) -> Iterator[Chart]:
    """The interpretations of the runs side by side: of every cell, the first seed that has one.

    Nothing where fewer than two cells have one.

    Args:
        runs: the runs by their names in ``table["runs"]``.
    """
    folders: dict[str, Path] = {}
    for row in table["runs"]:
        path = runs[row["run"]].file("interpret", "interpret.json") if row["run"] in runs else None
        if path is not None:
            own = [value for name, value in row["factors"].items() if name != SEED]
            folders.setdefault(", ".join(own) or row["run"], path.parent)
    shown = dict(islice(folders.items(), _MOST_INSIDE))
    with TemporaryDirectory() as scratch:
        path = compare(shown, Path(scratch))
        if path is None:
            return
        (about,) = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["figure"].values()
        svg = inline(path.read_text(encoding="utf-8"), "inside", about["alt"])
    note = f" The first {len(shown)} of {len(folders)} cells." if len(shown) < len(folders) else ""
    yield Chart(about["title"], svg, f"{about['caption']} One seed a cell.{note}", is_wide(svg))


def _by_value(rows: Sequence[Mapping[str, Any]], factor: str | None) -> list[tuple[str, list[Mapping[str, Any]]]]:
    by_value: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_value.setdefault("runs" if factor is None else row["factors"][factor], []).append(row)
    return list(by_value.items())
