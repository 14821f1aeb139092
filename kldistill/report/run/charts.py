"""The charts of a run's page. Each says how to read it; each is small, so that a phone shows it whole."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from kldistill.evaluation.metrics import MODELS, TEXT_METRICS, Name, in_percent, rates
from kldistill.interpret.style import COLOURS, CYCLE, GRID, MODEL_MARKERS, MUTED
from kldistill.report.chart import Chart, legend, new_axes
from kldistill.report.data import Run, curves
from kldistill.report.svg import of_figure

_MOST_POINTS = 400  # of a curve: more than a screen shows
_MOST_TOKENS = 1_000  # in the calibration's scatter
_LOWEST = 1e-6  # probability there


class Panel(NamedTuple):
    """One panel of learning curves: ``series`` has the points (step, value) of every line by its label."""

    stage: str
    title: str
    unit: str
    series: dict[str, list[tuple[float, float]]]
    reading: str
    smooth: bool = False


def panels(run: Run) -> Iterator[Panel]:
    """What was trained on, and how validation went, for every stage that trained something.

    The validation of the control, which is in the same units, stands beside that of the fine-tuned model.
    """
    beside = curves(run, "control")
    for stage in ("distill", "finetune", "control"):
        logged = curves(run, stage)
        terms = [name for name in ("loss", "kl", "kl_first", "kl_old", "ce", "hidden") if name in logged]
        if terms == ["loss", "ce"] or terms == ["loss", "kl"]:
            terms = terms[1:] if logged["loss"] == logged[terms[1]] else terms
        if terms:
            unit = "nats/position" if "hidden" not in terms else "nats/position; hidden: squared"
            reading = (
                "Pale: every step. Strong: a running mean, each point at the mean step of what it averages. The sum of "
                "all terms (loss) has their weights in it."
            )
            yield Panel(stage, "training loss", unit, {name: logged[name] for name in terms}, reading, smooth=True)
        for name in ("bits_per_byte", "kl_to_teacher", "new_token_nats"):
            points, others = (of.get(f"validation_{name}") for of in (logged, beside))
            if points and stage != "control":
                row = TEXT_METRICS[name]
                together = {MODELS["finetuned"]: points, MODELS["control"]: others or []}
                series = together if stage == "finetune" and others else {row.label: points}
                reading = (
                    "On text that is not trained on. Lower is better; a curve that still falls asks for more steps."
                )
                yield Panel(stage, f"validation, {row.label}", row.unit, series, reading)


def learning(run: Run) -> Iterator[Chart]:
    """The learning curves, a chart a panel."""
    for number, panel in enumerate(panels(run)):
        figure, axes = new_axes()
        draw_curves(axes, panel)
        if len(panel.series) > 1:
            legend(axes)
        ends = (f"{name} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in panel.series.items())
        alt = f"{panel.stage}, {panel.title} ({panel.unit}) over steps: {'; '.join(ends)}."
        title = f"{panel.stage}: {panel.title}"
        yield Chart(title, of_figure(figure, f"learning-{number}", alt), panel.reading)


def draw_curves(axes: Axes, panel: Panel) -> None:
    """Draw one panel: every line over the steps, with a running mean where it is noisy."""
    for colour, (label, points) in zip(CYCLE, panel.series.items(), strict=False):
        x, y = thinned(points)
        if panel.smooth and len(x) >= 20:
            axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(*running_mean(x, y, len(y) // 12), color=colour, linewidth=2, label=label)
        else:
            axes.plot(x, y, color=colour, linewidth=2, marker="o" if len(x) < 30 else None, markersize=4, label=label)
    axes.set(xlabel="step", ylabel=panel.unit)


def thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """At most ``_MOST_POINTS`` points: means of neighbours."""
    groups = np.array_split(np.asarray(points, dtype=float), min(len(points), _MOST_POINTS))
    means = [group.mean(axis=0) for group in groups]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def running_mean(x: Sequence[float], y: Sequence[float], half: int) -> tuple[list[float], list[float]]:
    """The mean of each point and its neighbours, ``half`` on both sides as far as there are any, in both coordinates.

    A window at an end holds more than ``half`` points and stands at their middle: a straight line stays what it is, and
    the last point alone turns nothing.
    """
    windows = [slice(max(index - half, 0), index + half + 1) for index in range(len(y))]
    return [float(np.mean(x[window])) for window in windows], [float(np.mean(y[window])) for window in windows]


def standing(metrics: Mapping[str, float]) -> Iterator[Chart]:
    """Bits per byte against the KL to the teacher, and against the tokens saved, of all models of the run."""
    shown = models_with_bits(metrics)
    if len(shown) < 2:
        return
    names = ", ".join(MODELS[model] for model in shown)
    if any(f"eval/{model}/domain/kl_to_teacher" in metrics for model in shown):
        figure, axes = new_axes()
        draw_distance(axes, metrics)
        legend(axes)
        yield Chart(
            "Domain text: fit against distance",
            of_figure(
                figure, "standing", f"Bits per byte against KL to the teacher, for {names}. {_figures(metrics, shown)}"
            ),
            "Lower left is best: predicts the domain well and has stayed what it was. Bars: 95 % intervals over "
            "documents. All models are scored on the same documents, so differences between models are surer than the "
            "bars suggest.",
        )
    base = metrics.get("eval/original/domain/tokens_per_1000_bytes")
    if base:
        figure, axes = new_axes()
        for model in shown:
            saved = 100 * (1 - metrics[f"eval/{model}/domain/tokens_per_1000_bytes"] / base)
            _point(axes, metrics, model, None, saved)
        axes.set(xlabel="tokens saved on these texts (%)", ylabel="bits/byte")
        legend(axes)
        yield Chart(
            "Domain text: fit against tokens saved",
            of_figure(figure, "saved", f"Bits per byte against tokens saved, for {names}. {_figures(metrics, shown)}"),
            "Lower right is best: shorter text, predicted as well as before. The original model saves nothing.",
        )


def models_with_bits(metrics: Mapping[str, float]) -> list[str]:
    """The models that were scored on domain text."""
    return [model for model in MODELS if f"eval/{model}/domain/bits_per_byte" in metrics]


def draw_distance(axes: Axes, metrics: Mapping[str, float]) -> None:
    """Draw where the models stand between fit (bits/byte) and distance (KL), with 95 % intervals."""
    for model in models_with_bits(metrics):
        _point(axes, metrics, model, f"eval/{model}/domain/kl_to_teacher")
    axes.set(xlabel="KL to the teacher (nats/position)", ylabel="bits/byte")


def _point(axes: Axes, metrics: Mapping[str, float], model: str, x_key: str | None, x: float = 0.0) -> None:
    """A model with its intervals. The original one has no KL to itself: 0."""
    value, x_error = (x, None) if x_key is None else _with_error(metrics, x_key)
    y, y_error = _with_error(metrics, f"eval/{model}/domain/bits_per_byte")
    style: dict[str, Any] = {"fmt": MODEL_MARKERS[model], "color": COLOURS[model], "label": MODELS[model]}
    axes.errorbar(value, y, xerr=x_error, yerr=y_error, capsize=3, markersize=7, **style)


def _with_error(metrics: Mapping[str, float], key: str) -> tuple[float, list[list[float]]]:
    """A metric and its interval as distances; 0 where it is absent."""
    value = metrics.get(key, 0.0)
    low, high = metrics.get(f"{key}/low", value), metrics.get(f"{key}/high", value)
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _figures(metrics: Mapping[str, float], shown: Sequence[str]) -> str:
    parts = [f"{MODELS[model]}: {metrics[f'eval/{model}/domain/bits_per_byte']:.3f} bits per byte" for model in shown]
    return "; ".join(parts) + "."


def suites(metrics: Mapping[str, float]) -> Iterator[Chart]:
    """Every rate of every suite of tasks that is a share of them: a line a model, with its interval."""
    by_suite: dict[str, list[Name]] = {}
    for name in rates(metrics):
        if in_percent(name.metric):
            by_suite.setdefault(name.subject, []).append(name)
    for suite, names_of_suite in by_suite.items():
        names = list(dict.fromkeys(name.metric for name in names_of_suite))
        models = [model for model in MODELS if any(model == name.model for name in names_of_suite)]
        figure, axes = new_axes((4.2, 0.8 + 0.28 * len(names_of_suite)))
        heights, said = {}, []
        for line, rate in enumerate(names):
            for place, model in enumerate(models):
                key = f"eval/{model}/{suite}/{rate}"
                if key not in metrics:
                    continue
                value, error = _with_error(metrics, key)
                height = line + 0.8 * ((place + 0.5) / len(models) - 0.5)
                heights[rate] = line
                axes.errorbar(
                    100 * value,
                    height,
                    xerr=100 * np.array(error),
                    fmt=MODEL_MARKERS[model],
                    color=COLOURS[model],
                    capsize=3,
                    label=MODELS[model] if line == 0 else None,
                )
                said.append(f"{rate} of {MODELS[model]}: {100 * value:.1f} %")
        axes.set_yticks(list(heights.values()), list(heights))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of tasks" if names != ["edit_similarity"] else "similarity (%)")
        legend(axes)
        yield Chart(
            suite,
            of_figure(figure, f"suite-{suite}", f"Rates on {suite}. {'; '.join(said)}."),
            "Right is better. Bars: 95 % intervals over tasks. The models answer the same tasks: the table's paired "
            "difference says whether they differ, not the overlap of the bars.",
        )


def calibration(tokens: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The mean probability that the student gives each new token where it stands, against its target.

    The target is what the teacher's probabilities make of the token (the push-forward).

    Args:
        tokens: what the interpret stage found of each: ``n`` uses, and the mean of both probabilities over those whose
            target is known, ``token_student`` and ``token_target``.

    Returns:
        None where no token has both.
    """
    keys = ("token_student", "token_target")
    known = [row for row in tokens if row["n"] and all(row.get(key) is not None for key in keys)]
    known = sorted(known, key=lambda row: -row["n"])[:_MOST_TOKENS]
    rows = [row for row in known if min(row[key] for key in keys) >= _LOWEST]
    if not rows:
        return None
    student, target = (np.array([row[key] for row in rows], dtype=float) for key in keys)
    uses = np.array([row["n"] for row in rows], dtype=float)
    lowest = 10 ** math.floor(math.log10(min(student.min(), target.min())))
    figure, axes = new_axes((4.2, 3.8))
    axes.plot([lowest, 1], [lowest, 1], color=MUTED, linewidth=1, linestyle="--", label="equal")
    axes.scatter(target, student, s=6 + 60 * uses / uses.max(), color=COLOURS["distilled"], alpha=0.35, linewidths=0)
    centres, means = binned(target, student, uses, lowest)
    axes.plot(centres, means, color=COLOURS["init"], linewidth=2, marker="o", markersize=5, label="mean of a band")
    axes.set(xscale="log", yscale="log", xlim=(lowest, 1.1), ylim=(lowest, 1.1))
    axes.set(xlabel="target: pushed-forward teacher (probability)", ylabel="student (probability)")
    axes.grid(color=GRID)
    legend(axes)
    given, asked = (sum(row["n"] * row[key] for row in known) for key in keys)
    said = f"{len(known)} new tokens; weighted by use, the student gives {given / asked:.2f} times the target."
    if len(rows) < len(known):
        said += f" {len(known) - len(rows)} lie below the axes."
    return Chart(
        "Probability of new tokens: student against target",
        of_figure(figure, "calibration", f"Student's mean probability of each new token against the target. {said}"),
        f"A dot is a new token, larger if held-out text uses it more. On the dashed line the student gives a new token "
        f"what the original model gives its pieces; below it the token is still too rare. {said}",
    )


def binned(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, lowest: float, n_bins: int = 8
) -> tuple[list[float], list[float]]:
    """Weighted means of x and y in bands of equal width of log x; empty bands are left out."""
    edges = np.geomspace(lowest, 1 + 1e-9, n_bins + 1)
    band = np.clip(np.digitize(x, edges) - 1, 0, n_bins - 1)
    used = [index for index in range(n_bins) if weights[band == index].sum() > 0]
    return (
        [float(np.average(x[band == index], weights=weights[band == index])) for index in used],
        [float(np.average(y[band == index], weights=weights[band == index])) for index in used],
    )
