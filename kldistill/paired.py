"""Means and differences with their intervals, and McNemar's test: two models on the same tasks.

Tasks of one group (lines of one document) are no independent evidence, so resampling draws whole groups.
"""

from collections.abc import Sequence

from kldistill.intervals import ratio_interval


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
