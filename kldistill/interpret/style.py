"""How the stage's pictures look, and what several of them share.

The paper is white and the ink black, so that a file can be read by itself anywhere; the report page replaces both, and
the colours, by those of its light or dark style. Text stays text.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Distinguishable by colour-blind readers (Okabe and Ito, 2008), in the order in which series take them; yellow is too
# pale for a line.
PALETTE = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
}
CYCLE = tuple(colour for name, colour in PALETTE.items() if name != "yellow")
INK, MUTED, GRID = "#000000", "#595959", "#b0b0b0"
# One colour and one marker a model in all pictures.
COLOURS = {
    "original": INK,
    "init": PALETTE["vermilion"],
    "distilled": PALETTE["blue"],
    "finetuned": PALETTE["green"],
    "control": PALETTE["orange"],
    "adapted": PALETTE["sky"],
    "carried": PALETTE["purple"],
}
MODEL_MARKERS = {
    "original": "s",
    "init": "^",
    "distilled": "o",
    "finetuned": "D",
    "control": "P",
    "adapted": "X",
    "carried": "v",
}
SERIES = {"original": COLOURS["original"], "init": COLOURS["init"], "trained": COLOURS["distilled"]}
LABELS = {"original": "original", "init": "before training", "trained": "after training"}
MARKERS = {"original": "s", "init": "^", "trained": "o"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kldistill",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
}


def panels(n: int, width: float = 3.9, height: float = 3.1) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure with ``n`` axes side by side."""
    figure = Figure(figsize=(width * n, height), layout="constrained")
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def save(figure: Figure, path: Path) -> None:
    """Write an SVG whose bytes depend on nothing but what it shows."""
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(path, metadata=metadata if path.suffix == ".svg" else None)


def styled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a drawing function in the package's style."""

    def inside(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return inside


def signed_bars(
    axis: Axes, runs: Mapping[str, tuple[str, Mapping[str, Any]]], shown: Mapping[str, tuple[str, str]]
) -> dict[str, list[float]]:
    """Draw groups of bars of mean log-ratios (nats), one bar a run, and return the values by run.

    Args:
        runs: the colour and the calibration of each run's model, by the run's label.
        shown: the group of contexts and the mass of each group of bars, by the group's label.
    """
    width = 0.8 / len(runs)
    values: dict[str, list[float]] = {}
    for number, (label, (colour, calibration)) in enumerate(runs.items()):
        values[label] = [calibration["groups"][group][mass]["nats"] or 0.0 for group, mass in shown.values()]
        positions = [group - 0.4 + width * (number + 0.5) for group in range(len(shown))]
        axis.bar(positions, values[label], width * 0.92, color=colour, label=label)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_xticks(range(len(shown)), list(shown))
    axis.tick_params(axis="x", length=0, labelsize=8)
    axis.grid(axis="x", visible=False)
    return values
