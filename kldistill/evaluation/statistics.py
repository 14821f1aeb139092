"""Intervals and tests, one document or task as the unit: texts of one document are not independent.

Metrics are ratios of sums, such as nats over bytes, and documents differ much in size: a few large ones carry most of
the weight. A percentile bootstrap over few such documents covers 80 to 90 % where it promises 95 %. What is used
instead is a cluster-robust variance that is unbiased where documents are equally variable, with Student's t of as
many degrees of freedom as the weights leave (Bell and McCaffrey, 2002, "Bias reduction in standard errors for linear
regression with multi-stage samples", with an intercept as the only regressor). With documents of one size it is the
usual t interval. tests/evaluation/test_statistics.py shows what it covers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import special

LEVEL = 0.95
LEAST_UNITS = 8  # fewer documents, or tasks, get no interval
_SMALLEST_P = 1e-30

Interval = tuple[float, float]


class Estimate(NamedTuple):
    """A value and how sure it is.

    Attributes:
        value: the ratio, mean or difference.
        parts: for every independent source of chance, an estimate of the variance that it gives the value, and the
            degrees of freedom of that estimate.
        n: units (documents, tasks or runs) that it rests on.
    """

    value: float
    parts: tuple[tuple[float, float], ...]
    n: int

    @property
    def variance(self) -> float:
        """The variance of the value, from all sources of chance together."""
        return sum(variance for variance, _ in self.parts)

    def half_width(self, alpha: float) -> float:
        """Half the width of the interval that misses the true value with probability ``alpha`` at most.

        Student's t for one source. For several, the squares of their half-widths add up, which never covers less than
        it says, however unequal the variances and few the degrees of freedom (Banerjee, 1960, Sankhya 22).
        """
        quantiles = [float(special.stdtrit(degrees, alpha / 2)) for _, degrees in self.parts]
        return math.sqrt(sum(t**2 * part[0] for t, part in zip(quantiles, self.parts, strict=True)))

    def interval(self) -> Interval:
        """The 95 % interval: its lower and upper end."""
        half = self.half_width(1 - LEVEL)
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """The two-sided p-value: the smallest ``alpha`` whose interval does not hold 0."""
        if self.variance == 0:
            return 1.0 if self.value == 0 else 0.0
        low, high = _SMALLEST_P, 1.0
        if self.half_width(low) < abs(self.value):
            return low
        for _ in range(60):  # the half-width falls with alpha: bisection, on its logarithm
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.half_width(middle) > abs(self.value) else (low, middle)
        return high


@dataclass(frozen=True)
class Sums:
    """A metric as the records keep it: the ratio of two sums, with a summand of each for every text (or task).

    Attributes:
        keys: what each text is, so that two runs are compared on the same ones only.
        groups: the document that each text belongs to.
        above, below: the summands.
    """

    keys: tuple[str, ...]
    groups: tuple[str, ...]
    above: NDArray[np.float64]
    below: NDArray[np.float64]


def ratio_interval(groups: Sequence[str], above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """95 % interval of sum(above) / sum(below) over documents.

    Sums that cannot be negative have no interval below 0, and shares none above 1. Where all tasks come out alike (all
    right or all wrong), it is the exact binomial one (Clopper and Pearson, 1934).

    Args:
        groups: the document that each summand belongs to.
        above, below: the summands.

    Returns:
        Lower and upper end; None for fewer than eight documents that have anything below.
    """
    estimate = ratio_estimate(groups, above, below)
    if estimate is None or estimate.n < LEAST_UNITS:
        return None
    low, high = estimate.interval()
    non_negative = min(above) >= 0
    share = non_negative and all(part <= whole for part, whole in zip(above, below, strict=True))
    if share and estimate.value in (0.0, 1.0):
        end = ((1 - LEVEL) / 2) ** (1 / estimate.n)
        return (0.0, 1 - end) if estimate.value == 0 else (end, 1.0)
    return max(low, 0.0) if non_negative else low, min(high, 1.0) if share else high


def mean_interval(groups: Sequence[str], values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean over tasks, which come in ``groups``. See ``ratio_interval``."""
    assert len(groups) == len(values) > 0, "one value for each of at least one task"
    return ratio_interval(groups, values, [1.0] * len(values))


def difference_interval(groups: Sequence[str], ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """95 % interval of mean(ours) - mean(theirs) on the same tasks, in the same order.

    It is the interval of the tasks' differences, so what makes a task hard for both models cancels.
    """
    assert len(ours) == len(theirs), "both models were given the same tasks"
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    estimate = ratio_estimate(groups, differences, [1.0] * len(differences))
    return None if estimate is None or estimate.n < LEAST_UNITS else estimate.interval()


def with_ends(name: str, value: float, interval: Interval | None) -> dict[str, float]:
    """A metric as summaries keep it: ``name``, and ``name/low`` and ``name/high`` where it has an interval."""
    return {name: value} if interval is None else {name: value, f"{name}/low": interval[0], f"{name}/high": interval[1]}


def ratio_estimate(groups: Sequence[str], above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """sum(above) / sum(below) with its variance over documents; None where fewer than two have anything below."""
    totals = _by_group(groups, np.asarray(above, dtype=float), np.asarray(below, dtype=float))
    above_G, below_G = totals[:, totals[1] > 0]
    if len(below_G) < 2:
        return None
    value = float(above_G.sum() / below_G.sum())
    return _clustered(value, (above_G - value * below_G) / below_G.sum(), below_G / below_G.sum())


def difference_over_documents(pairs: Sequence[tuple[Sums, Sums]]) -> Estimate | None:
    """Mean over pairs (runs) of ratio(a) - ratio(b), with its variance over documents, the same ones for everything.

    Returns:
        None where there is no pair, where the two sides, or two pairs, were not scored on the same texts, or where
        fewer than two documents have anything below.
    """
    sides = [side for pair in pairs for side in pair]
    if not sides or any(side.keys != sides[0].keys for side in sides):
        return None
    value, influence_G, weight_G = 0.0, 0.0, 0.0
    for pair in pairs:
        for sign, side in zip((1, -1), pair, strict=True):
            above_G, below_G = _by_group(side.groups, side.above, side.below)
            if below_G.sum() <= 0:
                return None
            ratio = above_G.sum() / below_G.sum()
            value += sign * float(ratio) / len(pairs)
            influence_G = influence_G + sign * (above_G - ratio * below_G) / below_G.sum() / len(pairs)
            weight_G = weight_G + below_G / below_G.sum() / len(sides)
    used = np.asarray(weight_G) > 0
    if used.sum() < 2:
        return None
    return _clustered(value, np.asarray(influence_G)[used], np.asarray(weight_G)[used])


def mean_over_runs(values: Sequence[float]) -> Estimate | None:
    """The mean of one value a run (a seed), with its variance over runs; None for fewer than two."""
    if len(values) < 2:
        return None
    variance = float(np.var(values, ddof=1)) / len(values)
    return Estimate(float(np.mean(values)), ((variance, len(values) - 1),), len(values))


def crossed(runs: Estimate, documents: Estimate) -> Estimate:
    """A mean difference whose runs and documents are both random, and crossed: every run is scored on every document.

    What one run does on one document is in the variances of both, which errs on the side of caution. Degrees of
    freedom after Satterthwaite would not do: with three seeds, 60 documents, and p-values adjusted for 40 differences,
    13 % of sweeps of equal arms got a verdict.

    Returns:
        The value of ``runs`` with both sources of chance; ``n`` is the number of documents.
    """
    return Estimate(runs.value, (*runs.parts, *documents.parts), documents.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, so that the chance of any wrong rejection stays below the level (Holm, 1979).

    Returns:
        The adjusted values in the given order: reject those below the level.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test (binomial; McNemar, 1947): is one of two models right more often?

    Tasks that both solve, or neither, say nothing. If both models are equally good, each of the others is gained with
    probability 1/2. The test takes tasks as independent; where they come in groups, look at the interval.

    Args:
        gained: tasks that only the first model solves.
        lost: tasks that only the second model solves.
    """
    assert gained >= 0 and lost >= 0, "counts of tasks"
    return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))


def _by_group(
    groups: Sequence[str], above: NDArray[np.float64], below: NDArray[np.float64]
) -> Float[np.ndarray, "2 G"]:
    """The sums of ``above`` and of ``below`` over the texts of each document."""
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    return np.stack([np.bincount(index, weights=values) for values in (above, below)])


def _clustered(value: float, influence_G: Float[np.ndarray, " G"], weight_G: Float[np.ndarray, " G"]) -> Estimate:
    """The variance of a weighted mean over documents, and its degrees of freedom.

    The residual of document g is e_g = r_g - sum(w r), of variance s^2 a_g with a_g = 1 - 2 w_g + sum(w^2) where all
    documents are equally variable. Then sum of w_g^2 e_g^2 / a_g is unbiased: a quadratic form whose trace, and whose
    square's trace, give the degrees of freedom.

    Args:
        influence_G: w_g * e_g of each document.
        weight_G: w_g; they sum to 1.
    """
    w, q = weight_G, float((weight_G**2).sum())
    a = 1 - 2 * w + q
    c = w**2 / a
    trace = (c * a).sum()
    c_0, c_1, c_2 = c.sum(), (c * w).sum(), (c * w**2).sum()
    square = q**2 * c_0**2 + 2 * c_0 * c_2 + 2 * c_1**2 - 4 * q * c_0 * c_1 + (c**2 * (a**2 - (q - 2 * w) ** 2)).sum()
    return Estimate(value, ((float((influence_G**2 / a).sum()), float(trace**2 / square)),), len(w))
