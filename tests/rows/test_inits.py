"""The maths of each initialisation, against a plain calculation of the same."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kldistill.rows import inits
from kldistill.runtime.errors import ConfigError

OLD = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) @ torch.randn(6, 6) + 3
PIECES = [[3, 4], [5], [7, 7, 9, 0], [39, 1, 2]]
METHODS = [inits.random, inits.mean, inits.subtoken_mean, inits.first_piece, inits.last_piece, inits.weighted_mean]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_random_has_the_old_rows_mean_and_covariance() -> None:
    drawn = inits.random(OLD, [[0]] * 200_000, seeded())
    assert torch.allclose(drawn.mean(0), OLD.mean(0), atol=0.05)
    assert torch.allclose(drawn.T.cov(), OLD.T.cov(), atol=0.02 * float(OLD.T.cov().abs().max()))


def test_random_stays_in_the_span_of_singular_rows() -> None:
    flat = OLD.clone()
    flat[:, 2] = flat[:, 0]  # covariance of rank 5: a Cholesky factor would need jitter
    drawn = inits.random(flat, [[0]] * 300, seeded())
    assert torch.allclose(drawn[:, 2], drawn[:, 0], atol=1e-4)


def test_random_follows_the_seed() -> None:
    first = inits.random(OLD, PIECES * 50, seeded(1))
    assert torch.equal(first, inits.random(OLD, PIECES * 50, seeded(1)))
    assert not torch.equal(first, inits.random(OLD, PIECES * 50, seeded(2)))
    assert len({tuple(row.tolist()) for row in first}) == 200


def test_mean_is_the_mean_of_all_rows() -> None:
    assert torch.allclose(inits.mean(OLD, PIECES, seeded()), OLD.mean(0).expand(4, 6))


def test_pieces_methods_against_plain_sums() -> None:
    assert torch.allclose(
        inits.subtoken_mean(OLD, PIECES, seeded()), torch.stack([OLD[p].mean(0) for p in PIECES]), atol=1e-6
    )
    assert torch.equal(inits.first_piece(OLD, PIECES, seeded()), OLD[[3, 5, 7, 39]])
    assert torch.equal(inits.last_piece(OLD, PIECES, seeded()), OLD[[4, 5, 0, 2]])


@given(st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=6), min_size=1, max_size=5), st.floats(-3, 3))
def test_weighted_mean_is_exponential_in_the_position(pieces: list[list[int]], rate: float) -> None:
    expected = []
    for part in pieces:
        weights = [math.exp(rate * place) for place in range(len(part))]
        total = sum(weights)
        expected.append(sum(OLD[p] * (w / total) for p, w in zip(part, weights, strict=True)))
    assert torch.allclose(inits.weighted_mean(OLD, pieces, seeded(), rate=rate), torch.stack(expected), atol=1e-4)


def test_weighted_mean_meets_its_neighbours_at_the_ends() -> None:
    assert torch.equal(inits.weighted_mean(OLD, PIECES, seeded(), rate=0.0), inits.subtoken_mean(OLD, PIECES, seeded()))
    assert torch.allclose(
        inits.weighted_mean(OLD, PIECES, seeded(), rate=50.0), inits.last_piece(OLD, PIECES, seeded())
    )
    assert torch.allclose(
        inits.weighted_mean(OLD, PIECES, seeded(), rate=-50.0), inits.first_piece(OLD, PIECES, seeded())
    )


@pytest.mark.parametrize("method", METHODS)
def test_no_method_shares_memory_with_the_old_rows_or_fails_on_none(method: inits.Method) -> None:
    old = OLD.clone()
    rows = method(old, PIECES, seeded())
    assert rows.shape == (4, 6) and rows.dtype == torch.float32
    rows.zero_()
    assert torch.equal(old, OLD)
    assert method(old, [], seeded()).shape == (0, 6)


def test_calibration_sets_the_norm_and_keeps_the_direction() -> None:
    rows = torch.cat([inits.subtoken_mean(OLD, PIECES, seeded()), torch.zeros(1, 6)])
    scaled = inits.calibrate(rows, OLD)
    assert torch.allclose(scaled[:4].norm(dim=1), OLD.norm(dim=1).median())
    assert torch.allclose(torch.cosine_similarity(scaled[:4], rows[:4]), torch.ones(4))
    assert torch.equal(scaled[4], torch.zeros(6))


def test_which_methods_need_pieces() -> None:
    needy = [inits.subtoken_mean, inits.first_piece, inits.last_piece, inits.weighted_mean]
    assert [method for method in METHODS if inits.needs_pieces(method)] == needy
    assert inits.needs_pieces(partial(inits.weighted_mean, rate=2.0))


@pytest.mark.parametrize("method", METHODS[2:])
def test_tokens_without_pieces_are_refused(method: inits.Method) -> None:
    with pytest.raises(ConfigError, match="AddedTokens"):
        method(OLD, [[1], []], seeded())
