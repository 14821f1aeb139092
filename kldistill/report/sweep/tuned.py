"""A sweep over a learning rate: which rate is best by validation in every cell, and what came of it.

The rate is chosen on validation text alone; test text is only looked at for the chosen one. Where the best rate is the
smallest or the largest of those tried, the range was too small, and the entry has the command that widens it.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kldistill.evaluation.metrics import Metric
from kldistill.interpret.style import CYCLE
from kldistill.report.data import FINISHED, Run
from kldistill.report.sweep.factors import SEED, natural
from kldistill.report.sweep.panels import panels, replace

RATES = ("loss.lr", "distill.lr", "distill.lora_lr")
BUDGET = "distill.steps"
NAME = "budgets.png"
# What the chosen models are shown by.
SHOWN = (
    "eval/domain/bits_per_byte",
    "eval/domain/kl_to_teacher",
    "eval/general/bits_per_byte",
    "eval/general/kl_to_teacher",
)
LOWEST, HIGHEST, ONLY, INSIDE = "lowest tried", "highest tried", "only one tried", ""
Labels = Mapping[str, str]


def rate_of(values: Mapping[str, Sequence[str]]) -> str | None:
    """The factor of a sweep that is a learning rate; None where none varies."""
    return next((name for name in RATES if name in values), None)


def tuned(runs: Sequence[Run], labels: Sequence[Labels], rate: str, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """One entry for each cell (everything but the rate and the seed) in which a finished run was validated.

    Args:
        runs, labels: the sweep's runs and their values of its factors.
        rate: the factor that is the rate.
        metrics: those that the chosen models are shown by.

    Returns:
        ``cell``; the ``rate`` that is best by ``judged`` (the figure of validation by which training with this loss is
        judged, ``distill.best_by``), a mean over seeds, and its ``validation``; ``tried``: pairs of a rate and that
        figure; ``edge``: whether it is at the end of what was tried, and the ``command`` that goes on from there;
        ``positions`` of the chosen runs, a seed each; ``figures``: their means by metric.
    """
    cells: dict[tuple[tuple[str, str], ...], dict[str, list[int]]] = {}
    for at, (run, label) in enumerate(zip(runs, labels, strict=True)):
        if run.status == FINISHED and _judged(run) in run.metrics:
            cells.setdefault(_others(label, rate), {}).setdefault(label[rate], []).append(at)
    entries = []
    for cell, by_rate in cells.items():
        tried = [
            (value, float(np.mean([runs[at].metrics[_judged(runs[at])] for at in by_rate[value]])))
            for value in sorted(by_rate, key=natural)
        ]
        best = min(range(len(tried)), key=lambda at: tried[at][1])
        chosen, validation = tried[best]
        positions = by_rate[chosen]
        edge = ONLY if len(tried) == 1 else {0: LOWEST, len(tried) - 1: HIGHEST}.get(best, INSIDE)
        finals = [runs[at].final() for at in positions]
        found = {
            metric.name: [final[metric.name] for final in finals if metric.name in final]
            for metric in metrics
            if metric.name in SHOWN
        }
        entries.append(
            {
                "cell": dict(cell),
                "judged": _judged(runs[positions[0]]),
                "rate": chosen,
                "validation": validation,
                "tried": tried,
                "edge": edge,
                "command": _wider([runs[at] for at in positions], rate, tried, best) if edge else None,
                "positions": positions,
                "figures": {name: float(np.mean(values)) for name, values in found.items() if values},
            }
        )
    return entries


def _others(label: Labels, rate: str) -> tuple[tuple[str, str], ...]:
    """The factors beside the rate and the seed, with their values."""
    return tuple((name, value) for name, value in label.items() if name not in (rate, SEED))


def _judged(run: Run) -> str:
    return f"distill/validation_{run.flat.get('distill.best_by') or 'bits_per_byte'}"


def _wider(runs: Sequence[Run], rate: str, tried: Sequence[tuple[str, float]], best: int) -> str | None:
    """The command of the chosen runs with the next rate beyond the end of the range, in the range's own steps."""
    if any(run.overrides is None for run in runs):
        return None
    rates = [float(value) for value, _ in tried]
    if len(rates) == 1:
        wanted = [rates[0] / 2, rates[0] * 2]
    else:
        neighbour = rates[1] if best == 0 else rates[-2]
        wanted = [rates[best] ** 2 / neighbour]
    given = {text.split("=", 1)[0]: text for text in runs[0].overrides or []}
    given[rate] = f"{rate}={','.join(f'{value:.2g}' for value in wanted)}"
    if SEED in given:
        given[SEED] = f"{SEED}={','.join(dict.fromkeys(str(run.flat.get(SEED, 0)) for run in runs))}"
    return shlex.join(["kldistill", "-m", *given.values()])


def asked_of_all(cells: Sequence[Mapping[str, str]], own: Sequence[Labels], rate: str) -> list[Mapping[str, str]]:
    """Of the cells of a grid, those whose rate most of the others tried: a range that was widened somewhere is missing
    nowhere else.
    """
    tried = {(cell[rate], _others(cell, rate)) for cell in own}
    n_others = len({others for _, others in tried})
    usual = {value for value, n in Counter(value for value, _ in tried).items() if 2 * n > n_others}
    return [cell for cell in cells if cell[rate] in usual]


def rows(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of the table of chosen rates; no rows where no rate varies."""
    metrics = [Metric(**entry) for entry in table["metrics"] if entry["name"] in SHOWN]
    names = list(table["tuned"][0]["cell"]) if table["tuned"] else []
    columns = [
        *names,
        "rate",
        "tries",
        "chosen by",
        "on validation",
        "edge",
        *(f"{metric.label} ({metric.unit})" for metric in metrics),
    ]
    lines = [
        [
            *entry["cell"].values(),
            entry["rate"],
            str(len(entry["tried"])),
            entry["judged"].removeprefix("distill/validation_"),
            f"{entry['validation']:.3f}",
            entry["edge"] or "inside",
            *(metric.show(entry["figures"].get(metric.name)) for metric in metrics),
        ]
        for entry in table["tuned"]
    ]
    return columns, lines


def commands(table: Mapping[str, Any]) -> list[str]:
    """The commands that widen the range of rates where the best one is at its end."""
    return [entry["command"] for entry in table["tuned"] if entry["command"]]


def picture(table: Mapping[str, Any], folder: Path) -> Path | None:
    """``budgets.png``: what the chosen models came to over the number of steps, a line a value of what is compared.

    Returns:
        The file, or None where the budget does not vary, or no rate was chosen.
    """
    metrics = [Metric(**entry) for entry in table["metrics"] if entry["name"] in SHOWN]
    if not table["tuned"] or BUDGET not in table["tuned"][0]["cell"] or not metrics:
        return None
    across = min(2, len(metrics))
    figure, axes = panels(len(metrics), across, (4.4 * across, 3.2 * -(-len(metrics) // across)))
    for axis, metric in zip(axes, metrics, strict=True):
        curves(axis, table, metric)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False, fontsize=9)
    return replace(figure, folder / NAME)


def curves(axes: Axes, table: Mapping[str, Any], metric: Metric) -> None:
    """Draw one metric of the chosen models over the budget; hollow points have their rate at the end of the range."""
    lines: dict[str, list[tuple[float, float, bool]]] = {}
    for entry in table["tuned"]:
        if metric.name in entry["figures"]:
            name = ", ".join(value for key, value in entry["cell"].items() if key != BUDGET)
            point = (float(entry["cell"][BUDGET]), entry["figures"][metric.name], bool(entry["edge"]))
            lines.setdefault(name, []).append(point)
    for (name, points), colour in zip(sorted(lines.items()), cycle(CYCLE), strict=False):
        x, y, _ = zip(*sorted(points), strict=True)
        axes.plot(x, y, color=colour, linewidth=1.3, label=name)
        for steps, value, at_edge in points:
            axes.plot(steps, value, marker="o", color=colour, markerfacecolor="white" if at_edge else colour)
    axes.set(xscale="log", xlabel="steps", ylabel=metric.unit, title=metric.label)
    ticks = sorted({steps for points in lines.values() for steps, _, _ in points})
    axes.set_xticks(ticks, [f"{steps:g}" for steps in ticks])
    axes.minorticks_off()
