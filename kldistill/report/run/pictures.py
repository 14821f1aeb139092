"""Pictures of a run, for its folder: how the losses fell, and where the models stand between domain and teacher."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from kldistill.interpret.style import COLOURS

matplotlib.use("Agg")  # files only: no screen is needed, nor asked for

from matplotlib import pyplot as plt

from kldistill.evaluation.table import NAMES
from kldistill.runtime.files import read_lines


def learning(folder: Path) -> Path | None:
    """``learning.png`` from the run's ``metrics.jsonl``: each loss term and the validation figures by step.

    Returns:
        The file, or None where nothing was trained.
    """
    lines: list[dict[str, Any]] = [json.loads(line) for line in read_lines(folder / "metrics.jsonl")]
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if line["stage"] != "distill" or line["step"] is None:
            continue
        for name, value in line.items():
            if name.startswith("distill/") and value is not None:
                curves.setdefault(name.removeprefix("distill/"), []).append((line["step"], value))
    panels = {
        "training, per student position": [
            n for n in ("loss", "kl", "kl_first", "kl_old", "ce", "hidden") if n in curves
        ],
        "validation, bits/byte": [n for n in ("validation_bits_per_byte",) if n in curves],
        "validation, KL to teacher (nats/position)": [n for n in ("validation_kl_to_teacher",) if n in curves],
    }
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            steps, values = zip(*curves[name], strict=True)
            axis.plot(steps, values, marker="o" if len(steps) < 20 else None, markersize=3, label=name)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(frameon=False)
    return _save(figure, folder / "learning.png")


def standing(metrics: Mapping[str, float], folder: Path) -> Path | None:
    """``standing.png``: bits per byte on domain text against the KL to the teacher, with 95 % intervals; lower left
    is best.

    Returns:
        The file, or None where no extended model was evaluated.
    """
    shown = [key for key in NAMES if f"eval/{key}/domain/bits_per_byte" in metrics]
    if len(shown) < 2:
        return None
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for key in shown:
        x, x_error = _with_error(metrics, f"eval/{key}/domain/kl_to_teacher")
        y, y_error = _with_error(metrics, f"eval/{key}/domain/bits_per_byte")
        axis.errorbar(x, y, xerr=x_error, yerr=y_error, fmt="o", capsize=3, color=COLOURS[key], label=NAMES[key])
    axis.set(xlabel="KL to the teacher on domain text (nats/position)", ylabel="bits/byte on domain text")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return _save(figure, folder / "standing.png")


def _with_error(metrics: Mapping[str, float], key: str) -> tuple[float, list[list[float]]]:
    """A figure and its interval as distances; the original model is its own teacher: 0."""
    value = metrics.get(key, 0.0)
    low, high = metrics.get(f"{key}/low", value), metrics.get(f"{key}/high", value)
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
