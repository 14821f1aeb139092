"""Pictures of a run, for its folder: how the losses fell, and where the models stand between domain and teacher."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from kldistill.interpret.style import STYLE
from kldistill.report.data import read_run
from kldistill.report.run.charts import draw_curves, draw_distance, models_with_bits, panels


def learning(folder: Path) -> Path | None:
    """``learning.png`` from the run's ``metrics.jsonl``: each loss term and the validation metrics by step.

    Returns:
        The file, or None where nothing was trained.
    """
    shown = list(panels(read_run(folder)))
    if not shown:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(4.5 * len(shown), 3.4), layout="constrained", dpi=150)
        for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            draw_curves(axes, panel)
            axes.set_title(f"{panel.stage}: {panel.title}")
            if len(panel.series) > 1:
                axes.legend()
        figure.savefig(folder / "learning.png")
    return folder / "learning.png"


def standing(metrics: Mapping[str, float], folder: Path) -> Path | None:
    """``standing.png``: bits per byte on domain text against the KL to the teacher, with 95 % intervals.

    Lower left is best.

    Returns:
        The file, or None where no extended model was evaluated.
    """
    if len(models_with_bits(metrics)) < 2:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(5, 3.6), layout="constrained", dpi=150)
        axes = figure.subplots()
        draw_distance(axes, metrics)
        axes.set_title("Held-out domain text")
        axes.legend()
        figure.savefig(folder / "standing.png")
    return folder / "standing.png"
