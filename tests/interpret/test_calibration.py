"""Calibration against a brute-force push-forward, and its summaries by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kldistill.interpret import calibration, reliability
from kldistill.interpret.calibration import MASSES, Cells, Positions
from kldistill.interpret.contexts import Context
from kldistill.losses.alignment import align
from kldistill.tokens.pieces import PieceTable
from tests.helpers.oracle import Oracle, close_under_prefixes

N = 3
CLOSED = close_under_prefixes([(0, 1, 2), (2, 0)])
OPEN = [(0, 1, 2), (1, 1), (2, 0, 0)]


def on_text(tokens: list[tuple[int, ...]], seed: int) -> tuple[Context, PieceTable, Tensor, Tensor]:
    """A text of an oracle, log q* after each of its student tokens but the last, and the teacher's logits."""
    oracle, table = Oracle(N, 1, tokens, seed), PieceTable(N, tokens)
    old_ids = np.random.default_rng(seed).integers(0, N, 9).tolist()
    new_ids = oracle.cut(old_ids)
    rows = [oracle.push_forward(new_ids[: at + 1]) for at in range(len(new_ids) - 1)]
    target = torch.tensor(np.log(np.maximum([*rows, rows[-1]], 1e-300)))
    context = Context("d", "", old_ids, new_ids, align(old_ids, new_ids, table))
    return context, table, target, oracle.teacher_logits(old_ids)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tokens", [CLOSED, OPEN])
def test_the_push_forward_itself_has_no_error(tokens: list[tuple[int, ...]], seed: int) -> None:
    context, table, target, teacher = on_text(tokens, seed)
    found, cells = calibration.measure(target, teacher, context, table)
    # With an open piece at hand the target is only known up to its share (docs/method.md, section 6).
    sure = np.ones(len(found.token), dtype=bool)
    sure[context.alignment.open_position.numpy()] = False
    known = np.isfinite(found.target["token"]) & sure
    assert known.any()
    for name in MASSES:
        np.testing.assert_allclose(found.student[name][known], found.target[name][known], atol=1e-6)
    at = np.arange(len(found.token))
    np.testing.assert_allclose(found.probability, target.exp().numpy()[at, found.token], atol=1e-9)
    np.testing.assert_allclose(found.new_mass, target.exp().numpy()[at, N:].sum(-1), atol=1e-9)
    assert np.abs(found.kl_first + found.kl_split).max() < 1e-6
    split_is_sure = [sure[position] for position in context.alignment.split_position.tolist()]
    if all(split_is_sure):
        np.testing.assert_allclose(cells.student, cells.target, atol=1e-6)


def test_an_example_by_hand() -> None:
    """The example of docs/method.md: independent pieces a, b, c, and the new tokens ab and abc."""
    a, b, c = 0, 1, 2
    table = PieceTable(3, [(a, b), (a, b, c)])
    p, q = [0.5, 0.3, 0.2], [0.30, 0.25, 0.15, 0.20, 0.10]
    old_ids, new_ids = [c, a, b, a, c, c], [c, 3, a, c, c]
    context = Context("d", "", old_ids, new_ids, align(old_ids, new_ids, table))
    student, teacher = torch.tensor(q).log().expand(5, 5), torch.tensor(p).log().expand(6, 3)
    found, cells = calibration.measure(student, teacher, context, table)
    assert found.token.tolist() == [3, a, c, c]
    assert found.after_new.tolist() == [False, True, False, False]
    # After ab the piece c is forbidden; after a alone, b is.
    np.testing.assert_allclose(found.target["first"], [0.5, 0.5 / 0.8, 0.2 / 0.7, 0.2], rtol=1e-5)
    np.testing.assert_allclose(found.student["first"], [0.6, 0.6, 0.15, 0.15], rtol=1e-5)
    np.testing.assert_allclose(found.target["own"][:2], [0.35, 0.7 * 0.5 / 0.8], rtol=1e-5)
    np.testing.assert_allclose(found.student["own"][:2], [0.3, 0.3], rtol=1e-5)
    np.testing.assert_allclose(found.target["children"][:2], [0.15, 0.3 * 0.5 / 0.8], rtol=1e-5)
    np.testing.assert_allclose(found.student["children"], [0.3, 0.3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.target["token"], [0.12, 0.7 * 0.5 / 0.8, 0.2 / 0.7, 0.2], rtol=1e-5)
    np.testing.assert_allclose(found.student["token"], [0.2, 0.3, 0.15, 0.15], rtol=1e-5)
    assert found.candidates.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found.new_mass, 0.3, rtol=1e-5)
    # Given a, on into ab or abc: the text did so the first time, not the second.
    assert cells.observed.tolist() == [True, False]
    np.testing.assert_allclose(cells.student, 0.5, rtol=1e-5)
    np.testing.assert_allclose(cells.target, 0.3, rtol=1e-5)
    summary = reliability.summarise(found, cells, 3)
    new, old = summary["groups"]["new"], summary["groups"]["old"]
    assert (new["n"], old["n"], summary["groups"]["plain"]["n"]) == (1, 1, 2)
    assert new["token"]["nats"] == pytest.approx(math.log(0.2 / 0.12))  # the new token is said too often,
    assert new["token"]["difference"] == pytest.approx(0.08)
    assert old["own"]["nats"] == pytest.approx(math.log(0.3 / 0.4375))  # and its first piece alone too seldom
    assert summary["new_tokens"]["observed"] == 1
    assert summary["new_tokens"]["expected"] == pytest.approx(1.2)
    assert summary["given_first_piece"] == pytest.approx({"n": 2, "observed": 1, "expected": 1.0, "target": 0.6})
    parts = summary["kl"]
    assert sum(parts[key] for key in parts if key.startswith(("first_", "split_"))) == pytest.approx(parts["total"])
    assert reliability.by_token(found, 3) == {
        3: pytest.approx(
            {
                "n": 1, "nll": -math.log(0.2), "adoption": 0.2, "target": 0.12, "error_nats": math.log(0.2 / 0.12),
                "first_student": 0.6, "first_target": 0.5, "own_student": 0.3, "own_target": 0.35,
                "children_student": 0.3, "children_target": 0.15, "token_student": 0.2, "token_target": 0.12,
            }
        )
    }  # fmt: skip


def test_what_has_no_target_is_left_out() -> None:
    table = PieceTable(4, [(0, 1), (2, 3, 3)])
    # The cut 0 | 1 contradicts the forest; after 2, the piece 3 is open (it leads towards 2, 3, 3).
    old_ids, new_ids = [1, 0, 1, 2, 3, 0, 0], [1, 0, 1, 2, 3, 0, 0]
    context = Context("d", "", old_ids, new_ids, align(old_ids, new_ids, table))
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, width, generator=generator) for width in (6, 4))
    found, _ = calibration.measure(student, teacher, context, table)
    known = np.isfinite(found.target["token"])
    assert known.tolist() == [False, False, True, False, True, True]
    assert np.isfinite(found.kl_first).all()
    assert reliability.summarise(found, _, 4)["resolved"] == pytest.approx(0.5)


def test_reliability_bins() -> None:
    cells = Cells(np.array([0.0, 0.5, 0.55, 1.0]), np.array([0.1, 0.3, 0.5, 0.9]), np.array([False, True, False, True]))
    bins = reliability._bins(cells.student, cells)
    assert [(b["from"], b["to"], b["n"]) for b in bins] == [(0.0, 0.001, 1), (0.4, 0.6, 2), (0.8, 1.0, 1)]
    assert bins[1] == pytest.approx({"from": 0.4, "to": 0.6, "n": 2, "student": 0.525, "target": 0.4, "observed": 0.5})


def test_texts_are_joined_in_order() -> None:
    parts = []
    for seed in (1, 2):
        context, table, target, teacher = on_text(CLOSED, seed)
        parts.append(calibration.measure(target, teacher, context, table))
    positions, cells = reliability.join(parts)
    assert isinstance(positions, Positions)
    assert positions.token.tolist() == [*parts[0][0].token, *parts[1][0].token]
    np.testing.assert_array_equal(positions.student["own"][len(parts[0][0].token) :], parts[1][0].student["own"])
    assert len(cells.target) == len(parts[0][1].target) + len(parts[1][1].target)
