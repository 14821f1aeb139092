"""Makes a Weights & Biases workspace of the runs that kldistill has sent: python scripts/dashboard.py ENTITY [PROJECT]

Needs `pip install "kldistill[dashboard]"` and a wandb login. The workspace is built and serialised in the tests, but
its saving is untested: that needs a server. docs/wandb.md says how to make the same panels by hand.
"""

import argparse
import json
import sys
from typing import Any

from kldistill.evaluation.metrics import DOMAIN, GENERAL, SAVED, TEXT_METRICS, Name

# What panels show of a model: text and metric.
SHOWN = ((DOMAIN, "bits_per_byte"), (GENERAL, "bits_per_byte"), (DOMAIN, "kl_to_teacher"), (DOMAIN, "adoption"))
LABELS = ("labels.init", "labels.loss")  # see kldistill.runtime.tracking.labels.labels


def workspace(entity: str, project: str, group: str | None = None, model: str = "distilled") -> Any:
    """The workspace as an object of ``wandb_workspaces``; nothing is sent.

    Args:
        entity: user or team that owns the project.
        group: shows the runs of one sweep only.
        model: whose figures: ``distilled`` or ``finetuned``.
    """
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    rows = {str(Name(model, text, name)): TEXT_METRICS[name].for_subject(text) for text, name in SHOWN}
    bits, general, kl, adoption = rows
    short = {key: f"{row.label} ({row.unit})" for key, row in rows.items()}
    grid: list[Any] = [
        wr.ParallelCoordinatesPlot(
            title="Init, loss, and what came of them",
            columns=[
                *(wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key)) for key in (*LABELS, "seed")),
                *(
                    wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(key), display_name=short[key])
                    for key in (bits, general, kl, adoption)
                ),
            ],
            layout=wr.Layout(w=24, h=10),
        ),
        wr.ScatterPlot(
            title="Domain against teacher: lower left is best",
            x=wr.SummaryMetric(kl),
            y=wr.SummaryMetric(bits),
            layout=wr.Layout(w=12, h=8),
        ),
        *(
            wr.BarPlot(
                title=f"{short[metric]}, by {key.removeprefix('labels.')}",
                metrics=[wr.SummaryMetric(metric)],
                groupby=wr.Config(key),
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
                orientation="h",
                layout=wr.Layout(w=12, h=6),
            )
            for metric in (bits, kl)
            for key in LABELS
        ),
    ]
    curves: list[Any] = [
        wr.LinePlot(title=title, x="distill/step", y=[metric], layout=wr.Layout(w=8, h=6))
        for title, metric in (
            ("Loss that is trained on", "distill/loss"),
            ("Validation, bits/byte", "distill/validation_bits_per_byte"),
            ("Validation, KL to the teacher", "distill/validation_kl_to_teacher"),
        )
    ]
    costs: list[Any] = [
        wr.BarPlot(title=SAVED.label, metrics=[wr.SummaryMetric(SAVED.name)], layout=wr.Layout(w=12, h=6)),
        wr.BarPlot(
            title="Seconds of training", metrics=[wr.SummaryMetric("distill/seconds")], layout=wr.Layout(w=12, h=6)
        ),
    ]
    shown: list[Any] = [
        wr.WeavePanelSummaryTable(table_name="result", layout=wr.Layout(w=24, h=8)),
        wr.MediaBrowser(media_keys=["pictures/standing", "pictures/learning", "report"], layout=wr.Layout(w=24, h=8)),
    ]
    only = [ws.Metric("Group") == group] if group else []
    return ws.Workspace(
        entity=entity,
        project=project,
        name="kldistill",
        sections=[
            ws.Section(name="Results", panels=grid, is_open=True),
            ws.Section(name="Training", panels=curves, is_open=True),
            ws.Section(name="Cost", panels=costs),
            ws.Section(name="Tables and pictures", panels=shown),
        ],
        runset_settings=ws.RunsetSettings(
            filters=[*only, ws.Metric("JobType") == "train"],
            pinned_columns=[
                "config:labels.init",
                "config:labels.loss",
                "config:seed",
                f"summary:{bits}",
                f"summary:{kl}",
            ],
        ),
    )


def main() -> None:
    """Build the workspace, and save it or show it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("entity", help="user or team on wandb")
    parser.add_argument("project", nargs="?", default="kldistill")
    parser.add_argument("--group", help="show one sweep only, such as kl_vs_ce")
    parser.add_argument("--model", choices=("distilled", "finetuned"), default="distilled", help="whose figures")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace as JSON and send nothing")
    given = parser.parse_args()
    try:
        made = workspace(given.entity, given.project, given.group, given.model)
    except ModuleNotFoundError as error:
        sys.exit(f'{error}. Install it with `pip install "kldistill[dashboard]"`.')
    if given.dry_run:
        print(json.dumps(made._to_model().model_dump(by_alias=True, exclude_none=True, mode="json"), indent=2))
    else:
        made.save()
        print(made.url)


if __name__ == "__main__":
    main()
