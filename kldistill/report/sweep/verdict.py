"""Intervals over seeds and over documents, and what they allow to be said of a difference.

A difference is always paired: two runs that share everything but one choice, seed included, scored on the same texts.
Two things can make it chance. Another *seed* could have come out otherwise: Student's t over the seeds' differences.
Other *documents* could have come out otherwise: a bootstrap over documents of the mean difference, the same documents
drawn for both sides and all seeds. A verdict needs both to agree.
"""

from collections.abc import Sequence

from kldistill.evaluation.statistics import Interval, over_seeds
from kldistill.report.catalog import HIGHER, NEITHER

BETTER, WORSE, UNCERTAIN, SAME = "better", "worse", "cannot tell", "same"
ONE_SEED, MISSING = "one seed", "missing"


def verdict(better: str, differences: Sequence[float], documents: Interval | None) -> str:
    """What may be said of the paired differences of one cell.

    ``better`` and ``worse``: the 95 % interval over seeds, and that over documents where there is one, lie on one side
    of zero. ``cannot tell``: at least one of them does not. ``one seed``: there is nothing to tell chance by.
    ``same``: no difference at all.

    Args:
        better: which way is better, ``lower`` or ``higher``; where neither is, the verdict is empty.
        differences: one a seed.
        documents: the interval over documents, if there is one.
    """
    if not differences:
        return MISSING
    if all(value == 0 for value in differences):
        return SAME
    if better == NEITHER:
        return ""
    seeds = over_seeds(differences)
    if seeds is None:
        return ONE_SEED
    sides = {_side(interval) for interval in (seeds, documents) if interval is not None}
    if sides == {1}:
        return BETTER if better == HIGHER else WORSE
    if sides == {-1}:
        return WORSE if better == HIGHER else BETTER
    return UNCERTAIN


def _side(interval: Interval) -> int:
    """1 for an interval above zero, -1 for one below, 0 for one that holds it."""
    low, high = interval
    return 1 if low > 0 else -1 if high < 0 else 0
