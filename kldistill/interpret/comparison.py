"""Several runs of the stage side by side: one picture, and a table of its key numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from kldistill.interpret.style import CYCLE, INK, MUTED, PALETTE, panels, save, signed_bars, styled
from kldistill.runtime.errors import ArtifactError

_STYLES = ("-", "--")  # with the colours, twelve runs can be told apart


@styled
def compare(folders: Mapping[str, Path], out: Path) -> Path | None:
    """See ``kldistill.interpret.compare``."""
    if len(folders) < 2:
        return None
    reports = {name: _read(folder) for name, folder in folders.items()}
    look = {
        name: {"color": CYCLE[n % len(CYCLE)], "linestyle": _STYLES[n // len(CYCLE) % len(_STYLES)]}
        for n, name in enumerate(reports)
    }
    drawn = [draw for draw in (_bars, _kl, _lens, _agreement) if draw(None, reports, look)]
    if not drawn:
        return None
    figure, axes = panels(len(drawn), width=3.6)
    for axis, draw in zip(axes, drawn, strict=True):
        draw(axis, reports, look)
    axes[0].legend()
    save(figure, out / "interpret_compare.svg")
    table = {name: key_numbers(report) for name, report in reports.items()}
    words = "; ".join(
        f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items() if value is not None)
        for name, row in table.items()
    )
    about = {
        "title": "What the new rows have learnt, run by run",
        "alt": f"Panels side by side for {', '.join(table)}. {words}.",
        "caption": "Probabilities against the original model's (0: exactly those); where the KL to the original "
        "arises; distance of the predictions right after a new token, and centred cosine of the states there, layer by "
        "layer.",
    }
    content = {"figure": {"interpret_compare.svg": about}, "table": table}
    (out / "interpret_compare.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return out / "interpret_compare.svg"


def key_numbers(report: Mapping[str, Any]) -> dict[str, float | None]:
    """One row of the table: the trained model of one run."""
    row: dict[str, float | None] = {}
    if "calibration" in report:
        trained = report["calibration"]["trained"]
        new, old, counts = trained["groups"]["new"], trained["groups"]["old"], trained["new_tokens"]
        row |= {
            "new token, nats over target": new["token"]["nats"],
            "first piece before a new token, nats over target": new["first"]["nats"],
            "first piece alone, nats over target": old["own"]["nats"],
            "expected / observed new tokens": counts["expected"] / max(counts["observed"], 1),
            "KL after a new token": trained["kl"]["mean_after_new"],
            "KL elsewhere": trained["kl"]["mean_elsewhere"],
        }
    if "lens" in report:
        row["JS at the last layer"] = report["lens"]["after"]["trained"]["js"]["mean"][-1]
    if "agreement" in report:
        row["centred cosine at the last layer"] = report["agreement"]["trained"]["centred"]["mean"][-1]
    if "attention" in report:
        row["attention to the token / to its pieces"] = report["attention"]["trained"]["ratio"]
    return row


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "interpret.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: interpret.json cannot be read: {error}. Build the stage again.") from error


# Each draws one panel, on runs that have its numbers; without an axis it only says whether all have.


def _bars(axis: Axes | None, reports: Mapping[str, Any], look: Mapping[str, Any]) -> bool:
    has = all("calibration" in report for report in reports.values())
    if axis is not None:
        shown = {
            "new\ntoken": ("new", "token"),
            "starts\nlike it": ("new", "first"),
            "first piece\nalone": ("old", "own"),
        }
        runs = {name: (look[name]["color"], report["calibration"]["trained"]) for name, report in reports.items()}
        signed_bars(axis, runs, shown)
        axis.set_title("log probability over target")
    return has


def _kl(axis: Axes | None, reports: Mapping[str, Any], look: Mapping[str, Any]) -> bool:
    has = all("calibration" in report for report in reports.values())
    if axis is not None:
        parts = {
            "first_after_new": ("first piece, after a new token", PALETTE["blue"]),
            "first_elsewhere": ("first piece, elsewhere", PALETTE["sky"]),
            "split_after_new": ("split, after a new token", PALETTE["vermilion"]),
            "split_elsewhere": ("split, elsewhere", PALETTE["orange"]),
        }
        base = [0.0] * len(reports)
        for key, (label, colour) in parts.items():
            values = [report["calibration"]["trained"]["kl"][key] for report in reports.values()]
            axis.bar(range(len(reports)), values, 0.7, bottom=base, color=colour, label=label)
            base = [below + value for below, value in zip(base, values, strict=True)]
        long = max(map(len, reports)) > 8  # names would run into each other
        axis.set_xticks(
            range(len(reports)), list(reports), rotation=30 if long else 0, ha="right" if long else "center"
        )
        axis.grid(axis="x", visible=False)
        axis.set(title="KL to the original (nats)", ylim=(0, 1.5 * max(base)))
        axis.legend(fontsize=8)
    return has


def _lens(axis: Axes | None, reports: Mapping[str, Any], look: Mapping[str, Any]) -> bool:
    has = all("lens" in report for report in reports.values())
    if axis is not None:
        for name, report in reports.items():
            axis.plot(report["lens"]["after"]["trained"]["js"]["mean"], label=name, **look[name])
        axis.set(title="logit lens: JS to the original", xlabel="layer")
        axis.set_ylim(bottom=0)
    return has


def _agreement(axis: Axes | None, reports: Mapping[str, Any], look: Mapping[str, Any]) -> bool:
    has = all("agreement" in report for report in reports.values())
    if axis is not None:
        for name, report in reports.items():
            axis.plot(report["agreement"]["trained"]["centred"]["mean"], label=name, **look[name])
        others = next(iter(reports.values()))["agreement"]["trained"].get("others")
        if others:
            axis.plot(others["mean"], color=MUTED, linestyle=":", label="other tokens")
        axis.set(title="centred cosine of states", xlabel="layer", ylim=(-0.2, 1.02))
        axis.axhline(0, color=INK, linewidth=0.6)
    return has
