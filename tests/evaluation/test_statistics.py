"""Bootstrap intervals over documents."""

import math

import numpy as np
import pytest

from kldistill.evaluation.statistics import ratio_interval


def test_one_document_gives_a_point() -> None:
    assert ratio_interval(["a"] * 3, [1, 2, 3], [4, 4, 4], resamples=50, seed=0) == (0.5, 0.5)


def test_equal_documents_give_a_point() -> None:
    low, high = ratio_interval(list("abcd"), [2.0] * 4, [8] * 4, resamples=50, seed=0)
    assert (low, high) == (0.25, 0.25)


def test_two_documents_by_hand() -> None:
    # Both twice (1/4 each): the ratio is 0 or 1; one of each (1/2): 10 / 40. So the ends are 0 and 1.
    assert ratio_interval(["a", "b"], [0, 10], [30, 10], resamples=4000, seed=1) == (0.0, 1.0)


def test_whole_documents_are_drawn() -> None:
    """Cutting every document into many equal texts must not make the interval narrower."""
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, size=20)
    names = [f"d{i}" for i in range(20)]
    whole = ratio_interval(names, values.tolist(), [1.0] * 20, resamples=2000, seed=0)
    parts = ratio_interval(
        np.repeat(names, 10).tolist(), np.repeat(values / 10, 10).tolist(), [0.1] * 200, resamples=2000, seed=0
    )
    assert whole == pytest.approx(parts)


def test_it_covers_the_truth_about_19_times_in_20() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        below = rng.integers(50, 150, size=60)
        above = rng.normal(0.7 * below, 10)
        names = [str(i) for i in range(60)]
        low, high = ratio_interval(names, above.tolist(), below.tolist(), resamples=300, seed=trial)
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_width_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(0, 1, size=400)
    low, high = ratio_interval([str(i) for i in range(400)], values.tolist(), [1.0] * 400, resamples=4000, seed=0)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_the_seed_decides() -> None:
    arguments = ([str(i) for i in range(9)], list(range(9)), [1.0] * 9)
    first = ratio_interval(*arguments, resamples=100, seed=0)
    assert first == ratio_interval(*arguments, resamples=100, seed=0)
    assert first != ratio_interval(*arguments, resamples=100, seed=1)


def test_nothing_to_divide_by() -> None:
    assert all(math.isnan(end) for end in ratio_interval(["a", "b"], [1, 1], [0, 0], resamples=10, seed=0))
    # Resamples without the only document that has anything below are left out.
    assert ratio_interval(["a", "b"], [0, 3], [0, 4], resamples=200, seed=0) == (0.75, 0.75)
