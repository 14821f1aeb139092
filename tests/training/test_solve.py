"""The reduced problem of the output rows is the whole one at the teacher's states, and its solution is better than its
start.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from kldistill.losses import ce, hidden, kl, kl_first
from kldistill.losses.alignment import align
from kldistill.losses.sampled import Sampling
from kldistill.losses.weighted import Term
from kldistill.runtime.errors import ConfigError
from kldistill.training.config import DistillConfig, SolveConfig
from kldistill.training.cuts import TwoCuts
from kldistill.training.solve import Readout, in_turn, solve, teacher_rows
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.setting import Setting, make_setting, whole

TERMS = {"kl": kl, "kl_first": kl_first, "ce": ce}
TERMS |= {f"{name}_masked": partial(TERMS[name], masked=True) for name in ("kl", "ce")}


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def setting(
    request: pytest.FixtureRequest,
    tiny_model: MakeModel,
    fake_tokens: MakeTokens,
    tmp_path_factory: pytest.TempPathFactory,
) -> Setting:
    """Of an untied model, and of one that caps its logits."""
    model = tiny_model(request.param)
    return make_setting(model, fake_tokens(model), tmp_path_factory.mktemp("setting_"))


def whole_loss(setting: Setting, output_ND: torch.Tensor, name: str) -> torch.Tensor:
    """The loss over all of V and W, the student's states being the teacher's; per position over all texts."""
    student = setting.student
    total, n = output_ND.new_zeros(()), 0
    for index, new_ids in enumerate(setting.new_ids):
        aligned = align(setting.states.ids[index], new_ids, setting.pieces)
        hidden_UD = setting.states.hidden(index)
        rows_T = teacher_rows(aligned, len(new_ids))
        assert (rows_T[aligned.next_row] >= 0).all(), "every boundary of the student is the teacher's"
        old_UV = student.logits_old(hidden_UD)
        new_UN = student.logits_new(hidden_UD, output_ND)
        student_TW = torch.cat([old_UV, new_UN], -1)[rows_T.clamp_min(0)]
        arguments = [student_TW, aligned] if name.startswith("ce") else [student_TW, old_UV, aligned]
        whole = replace(aligned, n_common=1, n_next=1)
        total = total + TERMS[name](*arguments[:-1], whole)
        n += aligned.n_common
    return total / n


@pytest.mark.parametrize("name", TERMS)
def test_the_reduced_loss_is_the_whole_one(name: str, setting: Setting) -> None:
    """Value and gradient; for ce up to a constant, the share of each text's token among the pieces that are one
    column.
    """
    readout = Readout(setting.student, setting.cuts, chunk=16)
    terms = {name: Term(TERMS[name], 1.0)}
    values = []
    for scale in (1.0, -0.7):
        rows_ND = (scale * setting.student.rows.head.detach()).requires_grad_()
        whole = whole_loss(setting, rows_ND, name)
        (expected,) = torch.autograd.grad(whole, rows_ND)
        reduced = readout.loss(rows_ND, terms, backward=True)
        assert rows_ND.grad is not None
        torch.testing.assert_close(rows_ND.grad, expected, rtol=1e-3, atol=1e-6)
        values.append(reduced - whole.item())
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    if not name.startswith("ce"):
        assert values[0] == pytest.approx(0.0, abs=1e-4)


def test_texts_side_by_side_in_a_part_are_the_same_texts(setting: Setting) -> None:
    """Value and gradient do not depend on how many texts a part has; a text that is longer than a part is cut."""
    terms = {"kl": Term(kl, 1.0), "ce": Term(ce, 0.1)}
    longest, every = max(setting.cuts.lengths), sum(setting.cuts.lengths)
    found, n_parts = [], []
    for chunk in (longest // 2, longest, 2 * longest, every):
        readout = Readout(setting.student, setting.cuts, chunk=chunk)
        rows_ND = setting.student.rows.head.detach().clone().requires_grad_()
        found.append((readout.loss(rows_ND, terms, backward=True), rows_ND.grad))
        n_parts.append(len(readout.parts))
    assert n_parts[0] > n_parts[1] > n_parts[2] > n_parts[3] == 1
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-7)


def test_a_part_of_the_vocabulary_gives_the_pieces_as_they_are_and_the_rest_in_the_mean(setting: Setting) -> None:
    exact = Readout(setting.student, setting.cuts, chunk=64)
    size = setting.student.old_size
    no_others = Readout(setting.student, setting.cuts, chunk=64, sampling=Sampling(torch.ones(size).bool(), 5, 0))
    for part, one in zip(exact.parts, no_others.parts, strict=True):
        torch.testing.assert_close(one.old_AR, part.old_AR)
    masses: list[list[torch.Tensor]] = [[] for _ in exact.parts]
    for seed in range(30):
        drawn = Readout(
            setting.student, setting.cuts, chunk=64, sampling=Sampling(torch.zeros(size).bool(), size // 3, seed)
        )
        for part, one, of_part in zip(exact.parts, drawn.parts, masses, strict=True):
            torch.testing.assert_close(one.old_AR[:, :-1], part.old_AR[:, :-1])
            of_part.append(one.old_AR.double().exp().sum(-1))
    for part, of_part in zip(exact.parts, masses, strict=True):
        whole, mean = part.old_AR.double().exp().sum(-1), torch.stack(of_part).mean(0)
        error = torch.stack(of_part).std(0) / len(of_part) ** 0.5
        assert ((mean - whole).abs() < 5 * error + 1e-3 * whole).all()
        assert (error > 0).any()


def test_texts_are_grouped_in_order() -> None:
    assert in_turn([3, 3, 5, 1, 9, 2], 6) == [[0, 1], [2, 3], [4], [5]]
    assert in_turn([], 6) == []


def test_a_weighted_sum_takes_any_loss(setting: Setting) -> None:
    def halved(student_logits: torch.Tensor, teacher_logits: torch.Tensor, alignment: object) -> torch.Tensor:
        return kl(student_logits, teacher_logits, alignment) / 2  # type: ignore[arg-type]

    readout = Readout(setting.student, setting.cuts, chunk=64)
    rows_ND = setting.student.rows.head.detach()
    from kldistill.losses.facts import loss

    own = loss(exact_pieces=True)(halved)
    both = readout.loss(rows_ND, {"own": Term(own, 1.0), "kl": Term(kl, 0.5)})
    assert both == pytest.approx(readout.loss(rows_ND, {"kl": Term(kl, 1.0)}), rel=1e-5)


def test_the_first_texts_alone_are_used_where_there_are_many(setting: Setting) -> None:
    few = Readout(setting.student, setting.cuts, chunk=64, most=2)
    first = TwoCuts(setting.states, whole(setting.new_ids[:2]), setting.pieces)
    rows_ND, terms = setting.student.rows.head.detach(), {"kl": Term(kl, 1.0)}
    assert few.loss(rows_ND, terms) == Readout(setting.student, first, chunk=64).loss(rows_ND, terms)
    every = Readout(setting.student, setting.cuts, chunk=64, most=1000)
    assert len(every.parts) == len(Readout(setting.student, setting.cuts, chunk=64).parts) > len(few.parts)


def test_a_term_of_hidden_states_has_nothing_to_say_of_output_rows(setting: Setting) -> None:
    readout = Readout(setting.student, setting.cuts, chunk=64)
    rows_ND, alone = setting.student.rows.head.detach(), {"kl": Term(kl, 1.0)}
    assert readout.loss(rows_ND, {**alone, "hidden": Term(hidden, 0.5)}) == readout.loss(rows_ND, alone)


def test_solved_rows_are_better_on_both_texts_and_a_strong_ridge_stays_near(setting: Setting) -> None:
    half = len(setting.new_ids) // 2
    # The held-out text is the training text here: what is asked is the optimiser, not the generalisation.
    readout = Readout(setting.student, setting.cuts, chunk=64)
    assert half
    start_ND, terms = setting.student.rows.head.detach(), {"kl": Term(kl, 1.0)}
    moved = {}
    for ridge in (1000.0, 0.0):
        said: list[str] = []
        rows_ND, figures = solve(readout, readout, start_ND, terms, SolveConfig(8, ridges=[ridge]), said.append)
        assert figures["solve/train_after"] < figures["solve/train_before"]
        assert figures["solve/validation_after"] == pytest.approx(readout.loss(rows_ND, terms), rel=1e-6)
        assert figures["solve/ridge"] == ridge and "nats a position" in said[0]
        moved[ridge] = (rows_ND - start_ND).norm().item()
    assert moved[1000.0] < 0.5 * moved[0.0]


def test_rows_that_would_be_worse_on_held_out_text_are_not_taken(setting: Setting) -> None:
    train = Readout(setting.student, setting.cuts, chunk=64)

    class Rising(Readout):
        def __init__(self) -> None:
            self.asked = 0

        def loss(self, output_ND: torch.Tensor, terms: object, *, backward: bool = False) -> float:  # type: ignore[override]
            self.asked += 1
            return float(self.asked)

    start_ND = setting.student.rows.head.detach()
    rows_ND, figures = solve(
        train, Rising(), start_ND, {"kl": Term(kl, 1.0)}, SolveConfig(2, ridges=[1.0, 0.1]), lambda text: None
    )
    assert torch.equal(rows_ND, start_ND)
    assert "solve/ridge" not in figures and figures["solve/validation_after"] == figures["solve/validation_before"]


def test_values_out_of_range_name_their_key() -> None:
    for key, cfg in {"iterations": SolveConfig(-1), "ridges": SolveConfig(3, ridges=[])}.items():
        with pytest.raises(ConfigError, match=rf"distill\.solve\.{key}="):
            DistillConfig(solve=cfg)
