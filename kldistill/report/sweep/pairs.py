"""Differences between chosen models of committed records, paired over the same documents or tasks: a page of them.

A sweep's own table (``compare``) takes one factor and one baseline. This one compares what a reader asks about: a model
with the original of the same run, or with a model of another run that was scored on the same text.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kldistill.evaluation.metrics import TEXT_METRICS, TEXTS, Metric, task_metric
from kldistill.evaluation.statistics import LEAST_UNITS, Estimate, difference_over_documents
from kldistill.evaluation.table import markdown_table
from kldistill.report.data import ReportError, Run
from kldistill.report.sweep.compare import sums_of
from kldistill.report.sweep.formats import interval

# The figures that are compared, where both models have records of them: of texts, and of suites.
_OF_TEXTS = ("bits_per_byte", "kl_to_teacher")
_OF_TASKS = {
    "completion": ("exact_match", "edit_similarity"),
    "humaneval": ("pass@1",),
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
        pairs: a YAML list; an entry has a ``name``, and ``ours`` and ``theirs``, each with ``archive``, ``run`` and
            ``model``.
        runs_of: the runs of an archive, by the name of their folder.

    Raises:
        ReportError: an entry names a run that its archive does not have, or two models that no figure compares.
    """
    rows: list[Sequence[str]] = []
    for entry in yaml.safe_load(pairs.read_text(encoding="utf-8")):
        found = dict(_differences(_side(pairs, entry, "ours", runs_of), _side(pairs, entry, "theirs", runs_of)))
        if not found:
            raise ReportError(f"{pairs}: {entry['name']}: the two models have no records of the same texts or tasks.")
        rows += [
            [
                entry["name"],
                metric.label,
                metric.show(estimate.value, sign=True),
                interval(metric, *estimate.interval()).strip() if estimate.n >= LEAST_UNITS else "–",
                str(estimate.n),
            ]
            for metric, estimate in found.items()
        ]
    head = (
        f"Rebuilt by `python scripts/results.py` from the records that `{pairs.name}` names.\n\n"
        "The first model minus the second, on the same documents (or tasks, in the groups that they come in), which "
        f"are the units of the 95 % interval (none below {LEAST_UNITS}); one seed each.\n\n"
    )
    return head + markdown_table(["models", "figure", "difference", "95 % interval", "units"], rows) + "\n"


def _side(
    pairs: Path, entry: Mapping[str, Any], side: str, runs_of: Callable[[str], Mapping[str, Run]]
) -> tuple[Run, str]:
    """A run and the model of it that is meant."""
    of = entry[side]
    runs = runs_of(of["archive"])
    if of["run"] not in runs:
        raise ReportError(f"{pairs}: {entry['name']}: {of['archive']} has no run {of['run']!r}; it has {sorted(runs)}.")
    return runs[of["run"]], of["model"]


def _differences(ours: tuple[Run, str], theirs: tuple[Run, str]) -> list[tuple[Metric, Estimate]]:
    """What both have records of, on the same texts. The original has no distance to itself."""
    found = []
    for metric in compared():
        sides = [sums_of(run, metric, model) for run, model in (ours, theirs)]
        if None in sides or ("original" in (ours[1], theirs[1]) and metric.trained):
            continue
        estimate = difference_over_documents([tuple(sides)])  # type: ignore[list-item]
        if estimate is not None:
            found.append((metric, estimate))
    return found
