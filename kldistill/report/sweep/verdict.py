"""What may be said of the differences in a sweep.

A difference is always paired: two runs that share everything but one choice, seed included, scored on the same texts.
Two things can make it chance: another *seed* could have come out otherwise, and so could other *documents*. Both are
taken as random and crossed (``kldistill.evaluation.statistics.crossed``), which gives one interval and one p-value. A
sweep asks many such questions at once: the p-values are adjusted for their number after Holm, so that a sweep of arms
that are all alike gets any verdict at most once in twenty.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kldistill.evaluation.metrics import HIGHER, Metric
from kldistill.evaluation.statistics import LEAST_UNITS, LEVEL, Estimate, crossed, holm, mean_over_runs
from kldistill.report.data import Run

BETTER, WORSE, UNCERTAIN, SAME = "better", "worse", "cannot tell", "same"
ONE_SEED, FEW, NO_RECORDS, TRAINED, MISSING = (
    *("one seed", "too few documents", "no records", "trained on it", "missing"),
)
OPEN = ""  # to be judged together with all the others


def difference(
    values: Sequence[float], documents: Estimate | None, *, by_document: bool, trained: bool = False
) -> tuple[Estimate | None, str]:
    """A paired difference, and what already stands in the way of a verdict.

    Args:
        values: one difference a seed.
        documents: the mean difference with its variance over documents, if the runs kept records of the same texts.
        by_document: whether the metric is scored document by document at all.
        trained: whether one of the arms trains on this metric.

    Returns:
        The difference with the variance of seeds and documents together (of documents alone where there is one seed;
        None where there is neither), and ``OPEN``, or the reason why there is no verdict.
    """
    runs = mean_over_runs(values)
    enough = documents is not None and documents.n >= LEAST_UNITS
    both = crossed(runs, documents) if runs and documents and enough else None
    alone = documents if enough and not runs else None
    if not values:
        return None, MISSING
    if all(value == 0 for value in values):
        return None, SAME
    if trained:
        return both or alone, TRAINED
    if by_document and documents is None:
        return None, NO_RECORDS
    if by_document and not enough:
        return None, FEW
    if runs is None:
        return alone, ONE_SEED
    return both or runs, OPEN


def judge(entries: Sequence[dict[str, Any]], metrics: Mapping[str, Metric]) -> None:
    """Give every open entry its adjusted p-value and its verdict.

    Args:
        entries: with ``metric``, ``difference``, ``p`` and ``verdict``; those whose verdict is ``OPEN`` are judged,
            and counted as asked, where their metric is evidence.
        metrics: the metrics by name.
    """
    asked = [
        entry
        for entry in entries
        if entry["verdict"] == OPEN and metrics[entry["metric"]].better and metrics[entry["metric"]].evidence
    ]
    for entry, adjusted in zip(asked, holm([entry["p"] for entry in asked]), strict=True):
        entry["p_holm"] = adjusted
        better = (entry["difference"] > 0) == (metrics[entry["metric"]].better == HIGHER)
        entry["verdict"] = UNCERTAIN if adjusted >= 1 - LEVEL else BETTER if better else WORSE


def trains_on_kl(run: Run) -> bool:
    """Whether a run's loss, or the anchor of its fine-tuning, has a KL to the teacher in it."""
    loss, finetune = (run.config.get(group) or {} for group in ("loss", "finetune"))
    targets = [str(term.get("_target_", "")) for term in (loss.get("terms") or {}).values()]
    names = [target.rpartition(".")[2] for target in targets] or [str(loss.get("name", run.choices.get("loss", "")))]
    anchored = finetune.get("method", "none") != "none" and finetune.get("anchor") == "kl"
    return anchored or any("kl" in name.split("_") for name in names)
