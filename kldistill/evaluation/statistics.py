"""Intervals and tests, one document or task as the unit: texts of one document are not independent, so whole documents
are drawn. Arms are compared paired, on the same texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2_000

Interval = tuple[float, float]


def ratio_interval(
    documents: Sequence[str], above: Sequence[float], below: Sequence[float], *, resamples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of sum(above) / sum(below) under resampling of documents (Efron and Tibshirani, 1993).

    Args:
        documents: the document that each summand belongs to.
        above, below: the summands.

    Returns:
        Lower and upper end; (nan, nan) where no resample has anything below.
    """
    _, index = np.unique(np.asarray(documents), return_inverse=True)
    n = int(index.max()) + 1
    sums = np.stack(
        [np.bincount(index, weights=np.asarray(values, dtype=float), minlength=n) for values in (above, below)]
    )
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    totals = weights @ sums.T
    valid = totals[:, 1] > 0
    if not valid.any():
        return float("nan"), float("nan")
    low, high = np.quantile(totals[valid, 0] / totals[valid, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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


def mean_interval(groups: Sequence[str], values: Sequence[float], *, resamples: int, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over tasks.

    Args:
        groups: the group that each task belongs to.
        values: what each task scores.

    Returns:
        Lower and upper end.
    """
    assert len(groups) == len(values) > 0, "one value for each of at least one task"
    return ratio_interval(groups, values, [1.0] * len(values), resamples=resamples, seed=seed)


def difference_interval(
    groups: Sequence[str], ours: Sequence[float], theirs: Sequence[float], *, resamples: int, seed: int
) -> tuple[float, float]:
    """95 % bootstrap interval of mean(ours) - mean(theirs) on the same tasks, in the same order.

    Paired: both means are of the same resamples, so what makes a task hard for both cancels.
    """
    assert len(ours) == len(theirs), "both models were given the same tasks"
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    return mean_interval(groups, differences, resamples=resamples, seed=seed)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test (binomial; McNemar, 1947): is one of two models right more often?

    Tasks that both solve, or neither, say nothing. If both models are equally good, each of the others is gained with
    probability 1/2. The test takes tasks as independent; where they come in groups, look at the interval.

    Args:
        gained: tasks that only the first model solves.
        lost: tasks that only the second model solves.

    Returns:
        min(1, 2 * P(X <= min(gained, lost))) with X binomial of gained + lost tosses; 1 if there are none.
    """
    assert gained >= 0 and lost >= 0, "counts of tasks"
    n = gained + lost
    ways = tail = 1  # C(n, 0), C(n, 1), ... one from the other, and their sum
    for count in range(min(gained, lost)):
        ways = ways * (n - count) // (count + 1)
        tail += ways
    # Integers of any size: their quotient is rounded once, at the end.
    return min(1.0, 2 * tail / 2**n)
