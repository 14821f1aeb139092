"""Two models on the same tasks."""

import numpy as np
import pytest

from kldistill.evaluation.statistics import difference_interval, mcnemar, mean_interval

NAMES = [f"t{index}" for index in range(400)]


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar(7, 2) == pytest.approx(2 * (1 + 9 + 36) / 512)
    assert mcnemar(3, 3) == 1.0
    below = 1 + 19 + 171 + 969 + 3876 + 11628 + 27132 + 50388  # of Pascal's triangle, line 19
    assert mcnemar(12, 7) == pytest.approx(2 * below / 2**19)


def test_mcnemar_of_many_tasks_does_not_overflow() -> None:
    assert 0 < mcnemar(900, 1100) < 1e-4
    assert mcnemar(3000, 3001) == pytest.approx(1.0)


def test_mcnemar_is_right_under_the_null() -> None:
    """An exact test rejects at 5 % at most once in twenty where both models are alike."""
    tosses = np.random.default_rng(0).binomial(40, 0.5, size=2000)
    rejected = np.mean([mcnemar(int(gained), 40 - int(gained)) < 0.05 for gained in tosses])
    assert 0.02 < rejected <= 0.05


def test_interval_of_a_share() -> None:
    values = [1.0] * 100 + [0.0] * 300
    low, high = mean_interval(NAMES, values)
    assert (low + high) / 2 == pytest.approx(0.25, abs=0.01)
    assert (high - low) / 2 == pytest.approx(1.96 * (0.25 * 0.75 / 400) ** 0.5, rel=0.1)


def test_groups_widen_the_interval() -> None:
    values = [1.0] * 100 + [0.0] * 300
    alone = mean_interval(NAMES, values)
    grouped = mean_interval([f"g{index // 20}" for index in range(400)], values)
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


def test_pairing_narrows_the_interval() -> None:
    """Tasks differ far more than the two models do; the difference of each task is what varies."""
    rng = np.random.default_rng(2)
    hardness = rng.normal(0, 1, size=400)
    theirs = (hardness + rng.normal(0, 0.05, size=400)).tolist()
    ours = (hardness + 0.1 + rng.normal(0, 0.05, size=400)).tolist()
    low, high = difference_interval(NAMES, ours, theirs)
    alone = mean_interval(NAMES, ours)
    assert low < 0.1 < high and low > 0
    assert high - low < 0.2 * (alone[1] - alone[0])


def test_a_model_against_itself_differs_by_nothing() -> None:
    values = np.random.default_rng(0).normal(size=400).tolist()
    assert difference_interval(NAMES, values, values) == (0.0, 0.0)


def test_other_tasks_cannot_be_compared() -> None:
    with pytest.raises(AssertionError, match="same tasks"):
        difference_interval(["a"], [1.0], [1.0, 0.0])
