"""The stage's pictures as SVG, each described in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from kldistill.interpret.style import GRID, INK, LABELS, MARKERS, MUTED, SERIES, panels, save, signed_bars, styled

Description = dict[str, str]


def draw(report: Mapping[str, Any], points: Mapping[str, Any], out: Path) -> dict[str, Description]:
    """Draw all that ``interpret.json`` has the numbers for.

    Args:
        report: the content of ``interpret.json``.
        points: principal coordinates by side and set of rows (see ``geometry.principal``).
        out: gets the files.

    Returns:
        Title, alternative text and caption of each file, in the order in which a page should show them.
    """
    made: dict[str, Description] = {}
    for part, draw_part in (
        ("calibration", _calibration), ("lens", _lens), ("agreement", _agreement), ("attention", _attention),
        ("geometry", _geometry),
    ):  # fmt: skip
        if part in report:
            made |= draw_part(report[part], out)
    for side, sets in points.items():
        made |= _principal(side, sets, report["geometry"][side]["principal_variance"], out)
    return made


def _lines(axis: Axes, curves: Mapping[str, Mapping[str, Any]], key: str, statistic: str = "mean") -> None:
    for name, curve in curves.items():
        if key in curve:
            axis.plot(curve[key][statistic], color=SERIES[name], marker=MARKERS[name], markersize=3, label=LABELS[name])
    axis.set_xlabel("layer (0: embedding)")


@styled
def _lens(lens: Mapping[str, Any], out: Path) -> dict[str, Description]:
    figure, (left, right) = panels(2)
    after = lens["after"]
    _lines(left, after, "probability")
    left.set_title("probability of the next piece")
    left.set_ylim(bottom=0)
    left.legend()
    _lines(right, after, "js")
    right.set_title("distance to the original (JS, nats)")
    right.set_ylim(bottom=0)
    save(figure, out / "lens.svg")
    last = {name: curve["probability"]["mean"][-1] for name, curve in after.items()}
    trained, init = after["trained"], after["init"]
    meets = trained["meeting_layer"]
    return {
        "lens.svg": {
            "title": "Logit lens, right after a new token",
            "alt": "Two line charts over layers, read with the final norm and the head. Left: mean probability of the "
            f"piece that follows; at the last layer the original gives {last['original']:.3f}, the extended model "
            f"{last['init']:.3f} before and {last['trained']:.3f} after training. Right: Jensen-Shannon divergence to "
            f"the original at the same layer; at the last {init['js']['mean'][-1]:.3f} before and "
            f"{trained['js']['mean'][-1]:.3f} after training.",
            "caption": "What each model would predict if it stopped at a layer; the extended one's is summed over all "
            "tokens that start with a piece. After training both think the same piece likeliest at the last layer for "
            f"{trained['meeting_share']:.0%} of the uses"
            + (f", at the median from layer {meets:.0f} on." if meets is not None else "."),
        }
    }


@styled
def _agreement(agreement: Mapping[str, Any], out: Path) -> dict[str, Description]:
    figure, (left, right) = panels(2)
    _lines(left, agreement, "centred")
    trained = agreement["trained"]
    if "others" in trained:
        left.plot(trained["others"]["mean"], color=MUTED, linestyle=":", label="states of other tokens")
    left.set_title("centred cosine to the original's state")
    left.set_ylim(-0.2, 1.02)
    left.legend(loc="center right", bbox_to_anchor=(1, 0.4))
    _lines(right, agreement, "ahead")
    right.set_title("nearer to this word than to others (share)")
    right.set_ylim(0, 1.02)
    save(figure, out / "agreement.svg")
    values = {name: measured["centred"]["mean"][-1] for name, measured in agreement.items()}
    layer, share = trained["detokenised_layer"], trained["detokenised_share"]
    words = "Right: only where other places with the same last piece were at hand."
    if share is not None:
        lasting = "" if layer is None else f", at the median from layer {layer:.0f} on"
        words = f"After training {share:.0%} of the uses are so up to the last layer{lasting}: the word is detokenised."
    shares = [f"{measured['ahead']['mean'][-1]:.0%}" for measured in agreement.values() if "ahead" in measured]
    return {
        "agreement.svg": {
            "title": "State at the new token against the state at its last piece",
            "alt": "Two line charts over layers. Left: centred cosine between the extended model's state at a new "
            f"token and the original's at its last piece; at the last layer {values['init']:.2f} before and "
            f"{values['trained']:.2f} after training. Right: share of uses whose state is nearer to the original's at "
            "this very word than at other words with the same last piece; at the last layer "
            f"{' before and '.join(shares) or 'not known'} after training.",
            "caption": f"Left: 1 is the same direction, 0 what states of unrelated words have. {words}",
        }
    }


@styled
def _attention(attention: Mapping[str, Any], out: Path) -> dict[str, Description]:
    figure, (left, right) = panels(2)
    trained = attention["trained"]
    layers = range(1, len(trained["pieces"]) + 1)
    left.plot(layers, trained["pieces"], color=INK, marker="s", markersize=3, label="original, all pieces")
    left.plot(layers, trained["last_piece"], color=MUTED, linestyle=":", label="original, last piece")
    for name, measured in attention.items():
        style = {"color": SERIES[name], "marker": MARKERS[name], "markersize": 3, "label": LABELS[name]}
        left.plot(layers, measured["student"], **style)
        right.plot(layers, measured["variation"], **style)
    left.set_title("attention to the word")
    right.set_title("difference of all attention")
    for axis in (left, right):
        axis.set_xlabel("layer")
        axis.set_ylim(bottom=0)
    left.legend()
    save(figure, out / "attention.svg")
    return {
        "attention.svg": {
            "title": "Attention of later positions to a new token",
            "alt": "Two line charts over layers. Left: mean share of attention that later positions give to a word. "
            f"Over all layers the new token gets {attention['init']['ratio']:.2f} times before and "
            f"{trained['ratio']:.2f} times after training what the original gives to all its pieces together. Right: "
            "total variation between the two models' attention over the same spans; on average "
            f"{attention['init']['mean_variation']:.3f} before and {trained['mean_variation']:.3f} after training.",
            "caption": "Means over heads and over the boundaries that follow a new token. In the original, the last "
            f"piece alone gets {trained['last_piece_share']:.0%} of what all pieces get.",
        }
    }


@styled
def _calibration(calibration: Mapping[str, Any], out: Path) -> dict[str, Description]:
    figure, (left, right) = panels(2)
    shown = {
        "the new token": ("new", "token"),
        "all that starts\nlike it": ("new", "first"),
        "its first piece alone,\nwhere the text\nhas that": ("old", "own"),
    }
    bars = signed_bars(left, {LABELS[name]: (SERIES[name], measured) for name, measured in calibration.items()}, shown)
    left.set_title("log of probability over target (nats)")
    left.legend(loc="best")
    for name, measured in calibration.items():
        bins = measured["reliability"]["student"]
        right.plot(
            [b["student"] for b in bins], [b["target"] for b in bins], color=SERIES[name], marker=MARKERS[name],
            markersize=4, label=f"target, {LABELS[name]}",
        )  # fmt: skip
    bins = calibration["trained"]["reliability"]["student"]
    right.plot(
        [b["student"] for b in bins], [b["observed"] for b in bins], color=SERIES["trained"], linestyle=":", marker="x",
        label="text, after training",
    )  # fmt: skip
    right.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    right.set(xlabel="the extended model's probability", title="given the first piece: into a new token")
    right.legend()
    save(figure, out / "calibration.svg")
    t, i = (calibration[name]["given_first_piece"] for name in ("trained", "init"))
    numbers = "; ".join(
        f"{label.replace(chr(10), ' ')}: {bars[LABELS['init']][n]:+.2f} before, {bars[LABELS['trained']][n]:+.2f} after"
        for n, label in enumerate(shown)
    )
    return {
        "calibration.svg": {
            "title": "Probabilities of new tokens against the original model's",
            "alt": f"Left: bars of the mean log of probability over target, in nats. {numbers}. Right: reliability "
            "diagram of the conditional probability that the text goes on into a new token once its first piece is "
            "given, against the original model's and against how often the text did.",
            "caption": "Left: 0 is exactly what the original model asks for; above, the extended one says it more "
            f"often. Right: given the first piece, the text went on into a new token {t['observed']} times; the "
            f"original expects {t['target']:.0f}, the extended model {i['expected']:.0f} before and "
            f"{t['expected']:.0f} after training.",
        }
    }


@styled
def _geometry(geometry: Mapping[str, Any], out: Path) -> dict[str, Description]:
    sides = [side for side in ("input", "output") if side in geometry]
    figure, axes = panels(2)
    keys = {"mean_of_pieces": "mean of\npieces", "first_piece": "first\npiece", "last_piece": "last\npiece"}
    hatches = {"input": None, "output": "///"}
    groups = [(side, name) for side in sides for name in ("init", "trained")]
    width = 0.8 / len(groups)
    for number, (side, name) in enumerate(groups):
        measured = geometry[side]
        label = LABELS[name] if len(sides) == 1 else f"{side}, {LABELS[name]}"
        style = {"color": SERIES[name], "hatch": hatches[side], "edgecolor": "#ffffff", "linewidth": 0, "label": label}
        shift = -0.4 + width * (number + 0.5)
        ratio = measured[name]["norm"]["median"] / measured["old"]["norm"]["median"]
        axes[0].bar([shift], [ratio], width * 0.92, **style)
        axes[1].bar(
            [index + shift for index in range(len(keys))],
            [measured[name][f"cosine_to_{key}"]["mean"] for key in keys], width * 0.92, **style,
        )  # fmt: skip
    axes[0].axhline(1, color=INK, linewidth=0.8)
    # Room above the bars for the legend.
    axes[0].set(title="norm, as a multiple of the old rows'", xticks=[], xlim=(-0.7, 0.7))
    axes[0].set_ylim(top=1.4 * max(1.0, axes[0].get_ylim()[1]))
    axes[1].set_xticks(range(len(keys)), list(keys.values()))
    axes[1].set_title("cosine to the token's own pieces")
    axes[0].legend(loc="upper center")
    for axis in axes:
        axis.grid(axis="x", visible=False)
    save(figure, out / "geometry.svg")
    words = []
    for side in sides:
        measured = geometry[side]
        ratios = [measured[name]["norm"]["median"] / measured["old"]["norm"]["median"] for name in ("init", "trained")]
        cosines = [measured[name]["cosine_to_mean_of_pieces"]["mean"] for name in ("init", "trained")]
        words.append(
            f"{'one row for input and output' if geometry['tied'] else side}: norm {ratios[0]:.2f} times the old rows' "
            f"before and {ratios[1]:.2f} after training, cosine to the mean of its pieces {cosines[0]:.2f} and "
            f"{cosines[1]:.2f}, mean cosine of pairs of new rows {measured['init']['anisotropy']:.2f} and "
            f"{measured['trained']['anisotropy']:.2f} (old rows {measured['old']['anisotropy']:.2f})"
        )
    return {
        "geometry.svg": {
            "title": "The new rows beside the old ones",
            "alt": f"Two bar charts. {'; '.join(words)}.",
            "caption": "Training moves a row by "
            + " and ".join(f"{geometry[s]['moved']['median']:.0%} of its length ({s})" for s in sides)
            + " (median).",
        }
    }


@styled
def _principal(side: str, sets: Mapping[str, Any], variance: Sequence[float], out: Path) -> dict[str, Description]:
    figure, (axis,) = panels(1, 5.0, 3.8)
    style = {
        "old": (GRID, "old rows"),
        "init": (SERIES["init"], LABELS["init"]),
        "trained": (SERIES["trained"], LABELS["trained"]),
    }
    for name, (colour, label) in style.items():
        # Thousands of points as one image: as vectors they would weigh more than all other pictures.
        axis.scatter(*sets[name].T, s=5, color=colour, label=label, rasterized=True, alpha=0.6, linewidths=0)
    axis.set(xlabel=f"first component ({variance[0]:.1%} of variance)", ylabel=f"second ({variance[1]:.1%})")
    axis.legend(markerscale=2)
    name = f"principal_{side}.svg"
    save(figure, out / name)
    return {
        name: {
            "title": f"Principal components of the {side} rows",
            "alt": f"Scatter plot of {len(sets['old'])} old rows and {len(sets['trained'])} new rows before and after "
            f"training, along the two directions of most variance ({variance[0]:.1%} and {variance[1]:.1%}).",
            "caption": "Where new rows lie apart from the old ones, every layer can tell them by it. Two directions "
            "show little of the whole.",
        }
    }
