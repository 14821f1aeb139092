"""The figures of a run's page. Each says how to read it; each is small, so that a phone shows it whole."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from kldistill.evaluation.table import NAMES, suite_rates
from kldistill.report.chart import Chart, legend, new_axes
from kldistill.report.data import Run, curves
from kldistill.report.svg import GRID, INK, MUTED, of_figure

COLOURS = {"original": INK, "init": "#D55E00", "distilled": "#0072B2", "finetuned": "#009E73"}
MARKERS = {"original": "s", "init": "^", "distilled": "o", "finetuned": "D"}
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MOST_POINTS = 400  # of a curve: more than a screen shows
_MOST_TOKENS = 1_000  # in the calibration's scatter
_LOWEST = 1e-6  # probability there


def learning(run: Run) -> Iterator[Chart]:
    """What was trained on, and how validation went, for every stage that trained something."""
    for stage in ("distill", "finetune"):
        found = curves(run, stage)
        terms = [name for name in ("loss", "kl", "kl_first", "kl_old", "ce", "hidden") if name in found]
        if terms == ["loss", "ce"] or terms == ["loss", "kl"]:
            terms = terms[1:] if found["loss"] == found[terms[1]] else terms
        if terms:
            yield Chart(
                f"{stage}: training loss",
                _curves(
                    f"{stage}-training", f"Training loss of {stage}", {name: found[name] for name in terms}, smooth=True
                ),
                "Pale: every step. Strong: a running mean. The sum of all terms (loss) has their weights in it.",
            )
        for name, label in _VALIDATION.items():
            if f"validation_{name}" in found:
                yield Chart(
                    f"{stage}: {label}",
                    _curves(f"{stage}-{name}", f"{label} during {stage}", {label: found[f"validation_{name}"]}),
                    "On text that is not trained on. Lower is better; a curve that still falls asks for more steps.",
                )


_VALIDATION = {
    "bits_per_byte": "validation, bits/byte",
    "kl_to_teacher": "validation, KL to teacher",
    "new_token_nats": "validation, nats of a new token",
}


def _curves(name: str, alt: str, series: Mapping[str, Sequence[tuple[float, float]]], smooth: bool = False) -> Markup:
    figure, axes = new_axes()
    for colour, (label, points) in zip(_SERIES, series.items(), strict=False):
        x, y = thinned(points)
        if smooth and len(x) >= 20:
            axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(x, running_mean(y, len(y) // 12), color=colour, linewidth=2, label=label)
        else:
            axes.plot(x, y, color=colour, linewidth=2, marker="o" if len(x) < 30 else None, markersize=4, label=label)
    axes.set_xlabel("step")
    if len(series) > 1:
        legend(axes)
    ends = "; ".join(f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for label, points in series.items())
    return of_figure(figure, name, f"{alt} over steps: {ends}.")


def thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """At most ``_MOST_POINTS`` points: means of neighbours."""
    groups = np.array_split(np.asarray(points, dtype=float), min(len(points), _MOST_POINTS))
    means = [group.mean(axis=0) for group in groups]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean of each value and its ``half`` neighbours on both sides; towards the ends of fewer, as many on each side."""
    reach = [min(half, at, len(values) - 1 - at) for at in range(len(values))]
    return [float(np.mean(values[at - n : at + n + 1])) for at, n in enumerate(reach)]


def standing(metrics: Mapping[str, float]) -> Iterator[Chart]:
    """Bits per byte against the KL to the teacher, and against the tokens saved, of all models of the run."""
    shown = [of for of in NAMES if f"eval/{of}/domain/bits_per_byte" in metrics]
    if len(shown) < 2:
        return
    names = ", ".join(NAMES[of] for of in shown)
    if any(f"eval/{of}/domain/kl_to_teacher" in metrics for of in shown):
        figure, axes = new_axes()
        for of in shown:
            _point(axes, metrics, of, f"eval/{of}/domain/kl_to_teacher")
        axes.set(xlabel="KL to the teacher (nats/position)", ylabel="bits/byte")
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
        for of in shown:
            saved = 100 * (1 - metrics[f"eval/{of}/domain/tokens_per_1000_bytes"] / base)
            _point(axes, metrics, of, None, saved)
        axes.set(xlabel="tokens saved on these texts (%)", ylabel="bits/byte")
        legend(axes)
        yield Chart(
            "Domain text: fit against tokens saved",
            of_figure(figure, "saved", f"Bits per byte against tokens saved, for {names}. {_figures(metrics, shown)}"),
            "Lower right is best: shorter text, predicted as well as before. The original model saves nothing.",
        )


def _point(axes: Axes, metrics: Mapping[str, float], of: str, x_key: str | None, x: float = 0.0) -> None:
    """A model with its intervals. The original one has no KL to itself: 0."""
    value, x_error = (x, None) if x_key is None else _with_error(metrics, x_key)
    y, y_error = _with_error(metrics, f"eval/{of}/domain/bits_per_byte")
    axes.errorbar(
        value,
        y,
        xerr=x_error,
        yerr=y_error,
        fmt=MARKERS[of],
        color=COLOURS[of],
        capsize=3,
        markersize=7,
        label=NAMES[of],
    )


def _with_error(metrics: Mapping[str, float], key: str) -> tuple[float, list[list[float]]]:
    value = metrics.get(key, 0.0)
    low, high = metrics.get(f"{key}/low", value), metrics.get(f"{key}/high", value)
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _figures(metrics: Mapping[str, float], shown: Sequence[str]) -> str:
    found = [f"{NAMES[of]}: {metrics[f'eval/{of}/domain/bits_per_byte']:.3f} bits per byte" for of in shown]
    return "; ".join(found) + "."


def suites(metrics: Mapping[str, float]) -> Iterator[Chart]:
    """Every rate of every suite of tasks: a line a model, with its interval."""
    rates: dict[str, list[tuple[str, str]]] = {}
    for suite, of, rate in suite_rates(metrics):
        rates.setdefault(suite, []).append((rate, of))
    for suite, found in rates.items():
        names = list(dict.fromkeys(rate for rate, _ in found))
        models = [of for of in NAMES if any(of == other for _, other in found)]
        figure, axes = new_axes((4.2, 0.8 + 0.28 * len(found)))
        heights, said = {}, []
        for at, rate in enumerate(names):
            for place, of in enumerate(models):
                key = f"eval/{of}/{suite}/{rate}"
                if key not in metrics:
                    continue
                value, error = _with_error(metrics, key)
                height = at + 0.8 * ((place + 0.5) / len(models) - 0.5)
                heights[rate] = at
                axes.errorbar(
                    100 * value,
                    height,
                    xerr=100 * np.array(error),
                    fmt=MARKERS[of],
                    color=COLOURS[of],
                    capsize=3,
                    label=NAMES[of] if at == 0 else None,
                )
                said.append(f"{rate} of {NAMES[of]}: {100 * value:.1f} %")
        axes.set_yticks(list(heights.values()), list(heights))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of tasks" if names != ["edit_similarity"] else "%")
        legend(axes)
        yield Chart(
            suite,
            of_figure(figure, f"suite-{suite}", f"Rates on {suite}. {'; '.join(said)}."),
            "Right is better. Bars: 95 % intervals over tasks. The models answer the same tasks: the table's paired "
            "difference says whether they differ, not the overlap of the bars.",
        )


def calibration(tokens: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Mean probability that the student gives each new token where it stands, against what the teacher's probabilities
    make of it (the push-forward).

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
    axes.set(xlabel="target: pushed-forward teacher", ylabel="student")
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
    used = [at for at in range(n_bins) if weights[band == at].sum() > 0]
    return (
        [float(np.average(x[band == at], weights=weights[band == at])) for at in used],
        [float(np.average(y[band == at], weights=weights[band == at])) for at in used],
    )
