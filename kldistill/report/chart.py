"""A chart of a page, and the axes and legend that all of them share."""

from typing import NamedTuple

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kldistill.report.svg import RC

_SMALL = (4.2, 3.0)


class Chart(NamedTuple):
    """A picture with its title, and a sentence or two on how to read it. A ``wide`` one needs two columns."""

    title: str
    svg: Markup
    reading: str
    wide: bool = False


def new_axes(size: tuple[float, float] = _SMALL) -> tuple[Figure, Axes]:
    """An empty chart in the page's style."""
    with rc_context(RC):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.add_subplot()


def legend(axes: Axes) -> None:
    """The legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), 3)
    axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
