"""Intervals over documents: by hand, and what they cover."""

import numpy as np
import pytest
from scipy import stats

from kldistill.evaluation.statistics import (
    Estimate,
    Sums,
    crossed,
    difference_over_documents,
    holm,
    mean_interval,
    mean_over_runs,
    ratio_estimate,
    ratio_interval,
)

NAMES = [f"d{index}" for index in range(60)]


def test_documents_of_one_size_give_students_t() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0]
    expected = stats.t.interval(0.95, 7, np.mean(values), stats.sem(values))
    assert ratio_interval(NAMES[:8], [10 * value for value in values], [10.0] * 8) == pytest.approx(expected)


def test_the_degrees_of_freedom_are_those_of_the_quadratic_form() -> None:
    """Satterthwaite's from the eigenvalues of the form, which the module has in closed form."""
    below = np.random.default_rng(0).lognormal(size=12)
    estimate = ratio_estimate(NAMES[:12], (below * np.arange(12)).tolist(), below.tolist())
    weight = below / below.sum()
    residual = np.eye(12) - np.outer(np.ones(12), weight)
    spread = (residual @ residual.T).diagonal()
    values = np.linalg.eigvals(residual.T @ np.diag(weight**2 / spread) @ residual).real
    assert estimate is not None
    ((_, degrees),) = estimate.parts
    assert degrees == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert degrees < 6, "twelve documents of such sizes are worth fewer"


def test_fewer_than_eight_documents_have_no_interval() -> None:
    values = np.random.default_rng(0).normal(5, 1, size=8).tolist()
    assert ratio_interval(NAMES[:8], values, [1.0] * 8) is not None
    assert ratio_interval(NAMES[:7], values[:7], [1.0] * 7) is None
    assert ratio_interval(["one"] * 3, [1, 2, 3], [4, 4, 4]) is None
    assert ratio_interval(NAMES[:9], [*values, 0.0], [*[1.0] * 7, 0.0, 0.0]) is None, (
        "what has nothing below counts not"
    )


def test_whole_documents_are_the_unit() -> None:
    """Cutting every document into many equal texts must not make the interval narrower."""
    values = np.random.default_rng(0).normal(5, 2, size=20)
    whole = ratio_interval(NAMES[:20], values.tolist(), [1.0] * 20)
    parts = ratio_interval(np.repeat(NAMES[:20], 10).tolist(), np.repeat(values / 10, 10).tolist(), [0.1] * 200)
    assert whole == pytest.approx(parts)


def test_shares_stay_between_0_and_1_and_are_exact_where_all_tasks_come_out_alike() -> None:
    low, high = mean_interval(NAMES, [1.0] * 2 + [0.0] * 58) or (None, None)
    assert low == 0.0 and high is not None and 2 / 60 < high < 0.12
    expected = stats.binomtest(0, 60).proportion_ci(0.95)
    assert mean_interval(NAMES, [0.0] * 60) == pytest.approx((expected.low, expected.high))
    assert mean_interval(NAMES, [1.0] * 60) == pytest.approx((1 - expected.high, 1.0))


def draw(rng: np.random.Generator, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of ``n`` documents. Sizes are log-normal, so that a few hold most of the text; bits/byte differ
    from document to document symmetrically, with a long tail, or are lower in large documents than in small ones.
    """
    log_size = rng.normal(size=n)
    rate = {
        "symmetric": 0.9 + 0.25 * rng.normal(size=n),
        "long tail": 0.5 * np.exp(0.5 * rng.normal(size=n)),
        "by size": 0.5 * np.exp(0.4 * rng.normal(size=n) - 0.2 * log_size),
    }[kind]
    size = 8000 * np.exp(log_size)
    return rate * size, size


def truth(kind: str) -> float:
    above, below = draw(np.random.default_rng(99), 2_000_000, kind)
    return float(above.sum() / below.sum())


@pytest.mark.parametrize(("n", "least"), [(8, 0.93), (14, 0.93), (60, 0.94)])
@pytest.mark.parametrize("kind", ["symmetric", "long tail", "by size"])
def test_the_interval_covers_the_truth_as_often_as_it_says(kind: str, n: int, least: float) -> None:
    """A percentile bootstrap covers 81 to 88 % of 14 such documents, and 91 to 94 % of 60."""
    rng, value, trials = np.random.default_rng(1), truth(kind), 600
    covered = 0
    for _ in range(trials):
        low, high = ratio_interval(NAMES[:n], *(side.tolist() for side in draw(rng, n, kind))) or (1.0, 0.0)
        covered += low <= value <= high
    assert covered / trials >= least


def sums(above: list[float], groups: list[str] | None = None, below: float = 10.0) -> Sums:
    keys = tuple(str(index) for index in range(len(above)))
    return Sums(keys, tuple(groups or keys), np.array(above), np.full(len(above), below))


def test_a_difference_is_of_the_same_documents() -> None:
    hard = np.linspace(1, 9, 30)
    a, b = sums(list(hard + 0.5)), sums(list(hard))
    same = difference_over_documents([(a, b)])
    assert same is not None and same.n == 30
    assert same.interval() == pytest.approx((0.05, 0.05)), "the same in every document: no document changes it"
    noise = np.random.default_rng(0).normal(size=30)
    noisy = difference_over_documents([(sums(list(hard + 0.5 + noise)), b), (a, b)])
    assert noisy is not None
    assert noisy.variance == pytest.approx((0.5 * 0.1) ** 2 * np.var(noise, ddof=1) / 30)  # half the pairs are noisy
    assert noisy.parts[0][1] == pytest.approx(29)


def test_other_texts_cannot_be_compared() -> None:
    a, b = sums([1.0, 2.0]), sums([1.0, 2.0])
    moved = Sums(("x", "y"), b.groups, b.above, b.below)
    assert difference_over_documents([(a, moved)]) is None
    assert difference_over_documents([]) is None
    one = Sums(a.keys, ("all", "all"), a.above, a.below)
    assert difference_over_documents([(one, one)]) is None


def test_a_mean_over_runs_by_hand() -> None:
    estimate = mean_over_runs([1.0, 2.0, 3.0])
    assert estimate is not None
    assert estimate.interval() == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-5)
    assert mean_over_runs([1.0]) is None


def test_half_widths_over_runs_and_documents_add_up_in_squares() -> None:
    runs, documents = Estimate(0.3, ((0.0001, 2),), 3), Estimate(0.3, ((0.0003, 13),), 14)
    both = crossed(runs, documents)
    assert (both.value, both.n) == (0.3, 14) and both.variance == pytest.approx(0.0004)
    half = np.hypot(0.01 * stats.t.ppf(0.975, 2), 0.0003**0.5 * stats.t.ppf(0.975, 13))
    assert both.interval() == pytest.approx((0.3 - half, 0.3 + half))
    assert both.half_width(both.p_value()) == pytest.approx(0.3), "the interval of that level ends at 0"
    assert documents.p_value() == pytest.approx(2 * stats.t.sf(0.3 / 0.0003**0.5, 13))
    assert Estimate(0.3, ((0.0, 2),), 3).p_value() == 0.0 and Estimate(0.0, ((0.0, 2),), 3).p_value() == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
