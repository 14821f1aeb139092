"""Intervals and verdicts of the report."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from kldistill.evaluation import statistics
from kldistill.evaluation.statistics import Sums, over_documents, over_seeds, t_quantile
from kldistill.report import catalog
from kldistill.report.sweep import compare
from kldistill.report.sweep.verdict import verdict
from kldistill.training.scoring import FIGURES

NORMAL = NormalDist()


def t_density(x: np.ndarray, degrees: int) -> np.ndarray:
    constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    return np.exp(constant - (degrees + 1) / 2 * np.log1p(x**2 / degrees))


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 12, 19, 26, 30, 31, 40, 120])
def test_quantiles_of_t_enclose_95_per_cent(degrees: int) -> None:
    x = np.linspace(0, t_quantile(degrees), 20_001)
    y = t_density(x, degrees)
    inside = 2 * float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)))
    assert inside == pytest.approx(0.95, abs=1e-4)


def test_interval_over_seeds_by_hand() -> None:
    low, high = over_seeds([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2.0)
    assert high - low == pytest.approx(2 * 4.303 / math.sqrt(3))
    assert over_seeds([1.0]) is None
    assert over_seeds([]) is None


def sums(above: list[float], groups: list[str] | None = None, below: float = 10.0) -> Sums:
    keys = tuple(str(at) for at in range(len(above)))
    return Sums(keys, tuple(groups or keys), np.array(above), np.full(len(above), below))


def test_documents_are_drawn_for_both_sides_at_once() -> None:
    hard = np.linspace(1, 9, 30)
    a, b = sums(list(hard + 0.5)), sums(list(hard))
    low, high = over_documents([(a, b)])
    assert low == pytest.approx(0.05)  # the difference is the same in every document: no draw changes it
    assert high == pytest.approx(0.05)
    rng = np.random.default_rng(0)
    noisy = sums(list(hard + 0.5 + rng.normal(size=30)))
    low, high = over_documents([(noisy, b), (a, b)])
    width = 0.5 * 0.1 / math.sqrt(30) * 2 * NORMAL.inv_cdf(0.975)  # half the pairs are noisy: 0.1 a document
    assert low < 0.05 < high
    assert high - low == pytest.approx(width, rel=0.4)


def test_whole_documents_are_drawn() -> None:
    above = [float(at % 7) for at in range(40)]
    other = sums([0.0] * 40)
    single = over_documents([(sums(above), other)])
    grouped = [f"{at // 20}" for at in range(40)]
    double = over_documents([(sums(above, grouped), Sums(other.keys, tuple(grouped), other.above, other.below))])
    assert double[1] - double[0] < single[1] - single[0]  # two documents, both with nearly the same mean
    one = ["all"] * 40
    assert over_documents([(sums(above, one), Sums(other.keys, tuple(one), other.above, other.below))]) is None


def test_other_texts_cannot_be_compared() -> None:
    a, b = sums([1.0, 2.0]), sums([1.0, 2.0])
    moved = Sums(("x", "y"), b.groups, b.above, b.below)
    assert over_documents([(a, b)]) == (0.0, 0.0)
    assert over_documents([(a, moved)]) is None
    assert over_documents([]) is None


@pytest.mark.parametrize(
    ("differences", "documents", "expected"),
    [
        ([-0.1, -0.11, -0.12], (-0.2, -0.05), "better"),
        ([-0.1, -0.11, -0.12], None, "better"),
        ([0.1, 0.11, 0.12], (0.05, 0.2), "worse"),
        ([-0.1, -0.11, -0.12], (-0.2, 0.05), "cannot tell"),  # other documents could change it
        ([-0.1, 0.05, -0.12], (-0.2, -0.05), "cannot tell"),  # other seeds could
        ([-0.1, -0.11, -0.12], (0.05, 0.2), "cannot tell"),  # they contradict each other
        ([-0.1], (-0.2, -0.05), "one seed"),
        ([0.0, 0.0], None, "same"),
        ([], None, "missing"),
    ],
)
def test_verdicts(differences: list[float], documents: tuple[float, float] | None, expected: str) -> None:
    assert verdict("lower", differences, documents) == expected
    turned = {"better": "worse", "worse": "better"}
    assert verdict("higher", differences, documents) == turned.get(expected, expected)


def test_no_verdict_on_what_has_no_better_side() -> None:
    assert verdict("", [1.0, 1.1, 1.2], None) == ""


def test_records_are_summed_as_the_stage_sums_them() -> None:
    for name, (above, below) in catalog.SUMS.items():
        assert FIGURES[name][:2] == (above, below)
        assert FIGURES[name][2] == (1 / math.log(2) if name == "bits_per_byte" else 1.0)
    names = {metric.name.rsplit("/", 1)[-1] for metric in catalog.METRICS if metric.name.startswith("eval/")}
    assert names == set(catalog.SUMS)
    assert compare.ALL not in catalog.TEXTS
    assert statistics.RESAMPLES >= 1_000


def test_numbers_are_shown_with_their_unit() -> None:
    share, bits = catalog.METRICS[0], catalog.METRICS[1]
    assert share.show(0.1706) == "17.1 %"
    assert share.show(-0.01, sign=True) == "-1.0 pp"
    assert bits.show(0.02, sign=True) == "+0.020"
    assert bits.show(None) == "–"
    assert catalog.SECONDS.show(1234.5) == "1,234"
