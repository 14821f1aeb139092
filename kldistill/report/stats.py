"""Intervals over seeds and over documents, and what they allow to be said of a difference.

A difference is always paired: two runs that share everything but one choice, seed included, scored on the same texts.
Two things can make it chance. Another *seed* could have come out otherwise: Student's t over the seeds' differences.
Other *documents* could have come out otherwise: a bootstrap over documents of the mean difference, the same documents
drawn for both sides and all seeds. A verdict needs both to agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from kldistill.intervals import LEVEL
from kldistill.report.catalog import HIGHER, NEITHER

RESAMPLES = 2_000

BETTER, WORSE, UNCERTAIN, SAME = "better", "worse", "cannot tell", "same"
ONE_SEED, MISSING = "one seed", "missing"

Interval = tuple[float, float]

# Two-sided 95 % quantile of Student's t for 1 to 30 degrees of freedom (any statistics textbook's table).
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def t_quantile(degrees: int) -> float:
    """Half-width of a 95 % interval in standard errors."""
    assert degrees >= 1
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    # Abramowitz and Stegun, 26.7.5, two terms: right to 0.001 from 30 degrees on.
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def over_seeds(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of one value a seed; None for fewer than two."""
    if len(values) < 2:
        return None
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


@dataclass(frozen=True)
class Sums:
    """A figure as the records keep it: ratio of the sums of ``above`` and ``below``, a text (or task) each.

    Attributes:
        keys: what each text is, so that two runs are compared on the same ones only.
        groups: the document that each text belongs to.
    """

    keys: tuple[str, ...]
    groups: tuple[str, ...]
    above: NDArray[np.float64]
    below: NDArray[np.float64]


def over_documents(pairs: Sequence[tuple[Sums, Sums]], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """95 % percentile interval of the mean over pairs (seeds) of ratio(a) - ratio(b), whole documents drawn, the same
    for everything (Efron and Tibshirani, 1993).

    Returns:
        None where there is no pair, or where the two sides, or two seeds, were not scored on the same texts.
    """
    sides = [side for pair in pairs for side in pair]
    if not sides or any(side.keys != sides[0].keys for side in sides):
        return None
    _, index = np.unique(np.asarray(sides[0].groups), return_inverse=True)
    n = int(index.max()) + 1
    if n < 2:
        return None
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)

    def ratios(side: Sums) -> NDArray[np.float64]:
        above, below = (weights @ np.bincount(index, weights=part, minlength=n) for part in (side.above, side.below))
        return np.divide(above, below, out=np.full(resamples, np.nan), where=below > 0)

    means = np.mean([ratios(a) - ratios(b) for a, b in pairs], axis=0)
    means = means[~np.isnan(means)]
    if not len(means):
        return None
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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
