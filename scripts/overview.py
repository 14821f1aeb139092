"""The README's picture, from committed records alone: python scripts/overview.py

Above, the first of the held-out lines that a run's page shows, cut by the old and by the new tokenizer. Below, all runs
of the grid: bits per byte on the domain against distance from the original model, by loss (colour) and start (marker).

    python scripts/overview.py --lines outputs/runs/quickstart/default    takes the lines of another run first
"""

import argparse
import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

RESULTS = Path(__file__).parents[1] / "docs" / "results"
COLOURS = {"ce": "#d95f02", "kl": "#1b6ca8", "kl_ce": "#2e8b57"}
MARKERS = {"subtoken_mean": "o", "last_piece_subtoken_mean": "s", "mean": "^", "random": "x"}


def take_lines(run: Path) -> None:
    """Keep the held-out lines of a run's page (``report.json``) in ``docs/results/lines.json``."""
    lines = json.loads((run / "report.json").read_text(encoding="utf-8"))["lines"]
    record = {"run": run.name, "lines": lines}
    (RESULTS / "lines.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def draw_line(axes: Axes, tokens: list[dict[str, object]], name: str, y: float) -> None:
    """One row of boxes, a token a box; new tokens are filled."""
    axes.text(0, y, f"{name}, {len(tokens)} tokens", va="center", fontsize=9)
    x = 18.0
    for token in tokens:
        text = str(token["text"]).replace("\n", "⏎")
        width = 0.92 * max(1, len(text)) + 0.5
        colour = COLOURS["kl_ce"] if token["new"] else "white"
        axes.add_patch(Rectangle((x, y - 0.38), width, 0.76, facecolor=colour, edgecolor="#888888", lw=0.6))
        ink = "white" if token["new"] else "black"
        axes.text(
            x + width / 2,
            y,
            text.strip(" ") or "·",
            ha="center",
            va="center",
            family="monospace",
            fontsize=8,
            color=ink,
        )
        x += width + 0.15


def draw(rows: list[dict[str, str]], line: dict[str, list[dict[str, object]]], file: Path) -> None:
    """Write the picture."""
    figure, (top, below) = plt.subplots(2, 1, figsize=(9.6, 5.2), height_ratios=[1, 4], layout="constrained")
    top.set_xlim(0, 100)
    top.set_ylim(-0.6, 1.6)
    top.axis("off")
    draw_line(top, line["old"], "before", 1.0)
    draw_line(top, line["new"], "after", 0.0)
    for row in rows:
        x, y = float(row["eval/domain/kl_to_teacher"]), float(row["eval/domain/bits_per_byte"])
        below.scatter(x, y, c=COLOURS[row["loss"]], marker=MARKERS[row["init"]], s=36, lw=1.2, alpha=0.85)
    for loss, colour in COLOURS.items():
        below.scatter([], [], c=colour, marker="o", label=loss)
    for init, marker in MARKERS.items():
        below.scatter([], [], c="#555555", marker=marker, label=f"from {init}")
    below.set_xlabel("distance from the original model on the domain (KL, nats a position)")
    below.set_ylabel("bits per byte on the domain")
    below.set_title("Trained on 70 KB, three seeds; lower left is better", fontsize=10, loc="left")
    below.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    below.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=Path, help="folder of a run whose held-out lines are taken over first")
    parser.add_argument("--out", type=Path, default=RESULTS / "overview.png")
    arguments = parser.parse_args()
    if arguments.lines is not None:
        take_lines(arguments.lines)
    with (RESULTS / "kl_vs_ce.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "finished"]
    line = json.loads((RESULTS / "lines.json").read_text(encoding="utf-8"))["lines"][0]
    draw(rows, line, arguments.out)


if __name__ == "__main__":
    main()
