"""Differences between chosen models of committed records, paired over the same documents or tasks: a page of them.

A sweep's own table (``compare``) takes one factor and one baseline. This one compares what a reader asks about: a model
with the original of the same run, or with a model of another run that was scored on the same text. A model may stand
for several runs that differ in their seed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kldistill.evaluation.metrics import TEXT_METRICS, TEXTS, Metric, task_metric
from kldistill.evaluation.statistics import LEAST_UNITS, Estimate, crossed, difference_over_documents, mean_over_runs
from kldistill.evaluation.table import markdown_table
from kldistill.report.data import ReportError, Run
from kldistill.report.sweep.compare import sums_of
from kldistill.report.sweep.formats import interval

# The figures that are compared, where both models have records of them: of texts, and of suites.
_OF_TEXTS = ("bits_per_byte", "kl_to_teacher")
_OF_TASKS = {
    "completion": ("exact_match", "edit_similarity"),
    "humaneval": ("pass@1",),
    "mbpp": ("pass@1",),
    "solution": ("bits_per_byte",),
}


def compared() -> list[Metric]:
    """The figures of every text and suite, under the names that a run's last model has them by."""
    of_texts = [TEXT_METRICS[name].for_subject(text) for name in _OF_TEXTS for text in TEXTS]
    of_tasks = [(suite, task_metric(name)) for suite, names in _OF_TASKS.items() for name in names]
    return [*of_texts, *(metric.for_subject(suite) for suite, metric in of_tasks if metric is not None)]


def page(pairs: Path, runs_of: Callable[[str], Mapping[str, Run]]) -> str:
    """The Markdown page of the differences that ``pairs`` lists.

    Args:
        pairs: a YAML list; an entry has a ``name``, and ``ours`` and ``theirs``, each with ``archive``, ``run`` (or a
            list of runs, a seed each, in the same order on both sides; a single one on one side stands beside all of
            the other's) and ``model``.
        runs_of: the runs of an archive, by the name of their folder.

    Raises:
        ReportError: an entry names a run that its archive does not have, other numbers of runs, or two models that no
            figure compares.
    """
    rows: list[Sequence[str]] = []
    for entry in yaml.safe_load(pairs.read_text(encoding="utf-8")):
        sides = [_side(pairs, entry, side, runs_of) for side in ("ours", "theirs")]
        n = max(len(side) for side in sides)
        if any(len(side) not in (1, n) for side in sides):
            counts = f"one side has {len(sides[0])} runs, the other {len(sides[1])}"
            raise ReportError(f"{pairs}: {entry['name']}: {counts}. List as many on both, or one on one of them.")
        ours, theirs = (side * (n // len(side)) for side in sides)
        found = _differences(list(zip(ours, theirs, strict=True)))
        if not found:
            raise ReportError(f"{pairs}: {entry['name']}: the two models have no records of the same texts or tasks.")
        rows += [
            [
                entry["name"],
                metric.label,
                metric.show(estimate.value, sign=True),
                interval(metric, *estimate.interval()).strip() if estimate.n >= LEAST_UNITS else "–",
                str(estimate.n),
                str(n),
            ]
            for metric, estimate in found
        ]
    head = (
        f"Rebuilt by `python scripts/results.py` from the records that `{pairs.name}` names.\n\n"
        "The first model minus the second, on the same documents (or tasks, in the groups that they come in), which "
        f"are the units of the 95 % interval (none below {LEAST_UNITS}). Of several seeds it is the mean, and the "
        "interval is over units and seeds, crossed.\n\n"
    )
    return head + markdown_table(["models", "figure", "difference", "95 % interval", "units", "seeds"], rows) + "\n"


def _side(
    pairs: Path, entry: Mapping[str, Any], side: str, runs_of: Callable[[str], Mapping[str, Run]]
) -> list[tuple[Run, str]]:
    """The runs of one side, each with the model of it that is meant."""
    of = entry[side]
    runs = runs_of(of["archive"])
    names = [of["run"]] if isinstance(of["run"], str) else of["run"]
    for name in names:
        if name not in runs:
            raise ReportError(f"{pairs}: {entry['name']}: {of['archive']} has no run {name!r}; it has {sorted(runs)}.")
    return [(runs[name], of["model"]) for name in names]


def _differences(pairs: Sequence[tuple[tuple[Run, str], tuple[Run, str]]]) -> list[tuple[Metric, Estimate]]:
    """What all have records of, on the same texts: the mean over the pairs. The original has no distance to itself."""
    found = []
    against_original = any("original" in (ours[1], theirs[1]) for ours, theirs in pairs)
    for metric in compared():
        sums = [tuple(sums_of(run, metric, model) for run, model in pair) for pair in pairs]
        if any(None in pair for pair in sums) or (against_original and metric.trained):
            continue
        documents = difference_over_documents(sums)  # type: ignore[arg-type]
        if documents is None:
            continue
        each = [difference_over_documents([pair]) for pair in sums]  # type: ignore[list-item]
        runs = mean_over_runs([one.value for one in each if one is not None])
        found.append((metric, documents if runs is None else crossed(runs, documents)))
    return found
