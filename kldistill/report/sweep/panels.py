"""A sweep's pictures: some panels in a figure, written while other runs of the sweep may write the same."""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def panels(n: int, across: int, size: tuple[float, float], sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with ``n`` axes, at most ``across`` side by side.

    Args:
        size: width and height of the figure, in inches.
    """
    figure = Figure(figsize=size, layout="constrained", facecolor="white", dpi=150)
    axes = figure.subplots(-(-n // across), across, squeeze=False, sharey=sharey)
    for axis in axes.flat[n:]:
        axis.remove()
    return figure, list(axes.flat[:n])


def replace(figure: Figure, path: Path) -> Path:
    """Write a PNG in one step, as several runs of a sweep may collect at once; returns the file."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", metadata={"Software": None})
    os.replace(temporary, path)
    return path
