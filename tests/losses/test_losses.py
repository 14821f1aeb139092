"""The losses against brute force: a Markov chain over pieces, its text enumerated (``oracle.py``)."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kldistill.losses import ce, hidden, kl, kl_first, kl_old
from kldistill.losses.alignment import Alignment, align
from kldistill.losses.kl import kl_terms, log_masses, segment_logsumexp, unresolved_mass
from kldistill.tokens.pieces import PieceTable
from tests.helpers.contexts import (
    SETTINGS,
    Context,
    MergeContext,
    N,
    closed_contexts,
    contexts,
    merge_contexts,
    student,
    tokens,
)
from tests.helpers.oracle import Oracle


@SETTINGS
@given(closed_contexts, st.integers(0, 999))
def test_mean_over_texts_is_the_exact_kl_if_prefixes_are_tokens(context: Context, seed: int) -> None:
    row = student(context, seed)
    mean = sum(weight * (first + split) for weight, first, split in context.losses(row))
    assert context.table.prefix_closed
    assert mean == pytest.approx(context.exact(row), abs=1e-9)


@SETTINGS
@given(contexts, st.integers(0, 999))
def test_mean_over_texts_never_exceeds_the_exact_kl_and_is_zero_at_the_push_forward(
    context: Context, seed: int
) -> None:
    assert context.target.sum() == pytest.approx(1)
    assert (context.target >= 0).all(), "the push-forward is a distribution"
    row = student(context, seed)
    losses = context.losses(row)
    assert sum(weight * (first + split) for weight, first, split in losses) <= context.exact(row) + 1e-9
    assert all(first > -1e-9 and split > -1e-9 for _, first, split in losses)
    at_target = torch.tensor(np.log(np.maximum(context.target, 1e-40)))
    assert max(abs(first) + abs(split) for _, first, split in context.losses(at_target)) < 1e-9


@settings(max_examples=60)
@given(merge_contexts, st.integers(0, 999))
def test_cut_by_merges_it_is_a_lower_bound_and_zero_at_the_push_forward(context: MergeContext, seed: int) -> None:
    row = student(context, seed)
    losses = context.losses(row)
    assert sum(weight * (first + split) for weight, first, split in losses) <= context.exact(row) + 1e-9
    assert all(first > -1e-9 and split > -1e-9 for _, first, split in losses)
    at_target = torch.tensor(np.log(np.maximum(context.target, 1e-40)))
    assert max(abs(first) + abs(split) for _, first, split in context.losses(at_target)) < 1e-9


def test_what_was_merged_first_is_no_longest_match() -> None:
    """With bc merged before ab, ``abc`` is a|bc: after ``ab`` no c can follow, and after ``a`` a b may, as bc.

    Longest match, which knows nothing of this, asks after ``ab`` for all of p(c): unbounded where the student rightly
    gives it nothing, and above the exact KL for others.
    """
    a, b, c = range(3)
    merges = [(b, c), (a, b)]
    context = MergeContext(merges, [c, a, b, a, a, a], 2, 1, 3)
    assert context.prefix == [c, N + 1]
    assert context.target[[c]] == 0
    row = torch.tensor(np.log(np.maximum(context.target, 1e-40)))
    assert max(abs(first) + abs(split) for _, first, split in context.losses(row)) < 1e-9
    after_a = MergeContext(merges, [c, a, a, a, a, a], 2, 1, 3)
    assert after_a.prefix == [c, a]
    assert after_a.target[N] > 0 and after_a.target[b] == 0
    for one in (context, after_a):
        merged, longest = one.table, PieceTable(N, one.oracle.tokens)
        at_target = torch.tensor(np.log(np.maximum(one.target, 1e-40)))
        far = student(one, 1)
        values, others = {}, {}
        for table in (merged, longest):
            one.table = table
            values[table] = sum(weight * (first + split) for weight, first, split in one.losses(at_target))
            others[table] = sum(weight * (first + split) for weight, first, split in one.losses(far))
        assert abs(values[merged]) < 1e-9 and others[merged] <= one.exact(far) + 1e-9
        assert values[longest] > (1 if one is context else 0.1)
        if one is after_a:
            assert others[longest] > one.exact(far) + 0.01, "by longest match it is no bound"


def test_open_pieces_need_a_cell_of_their_own() -> None:
    """Zeroing only the pieces that complete a longer token at once is not enough if a prefix of it is no token.

    With the one new token (0, 1, 2), after the student token 0 the piece 1 is still possible, but less so: the text
    that goes on with 1, 2 has been cut differently. A target that gives 1 its full probability is not the
    push-forward: the loss then is not zero there, and exceeds the exact KL.
    """
    context = Context([(0, 1, 2)], [0, 2, 0, 1, 0, 1], 1, 1, 2)

    def without_cell(alignment: Alignment) -> Alignment:
        none = alignment.open_position[:0]
        return replace(alignment, open_position=none, open_piece=none)

    row = torch.tensor(np.log(np.maximum(context.target, 1e-40)))
    assert max(first for _, first, _ in context.losses(row, without_cell)) > 0.1
    assert max(abs(first) for _, first, _ in context.losses(row)) < 1e-9


def whole_text(seed: int, new_tokens: list[tuple[int, ...]]) -> tuple[Alignment, Tensor, Tensor]:
    """Alignment, random student logits and the teacher's logits of one text of 24 pieces."""
    oracle = Oracle(N, 2, new_tokens, seed)
    text = np.random.default_rng(seed).integers(0, N, 24).tolist()
    new = oracle.cut(text)
    alignment = align(text, new, PieceTable(N, new_tokens))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(new), N + len(new_tokens), generator=generator, dtype=torch.float64)
    return alignment, logits, oracle.teacher_logits(text)


@SETTINGS
@given(tokens, st.integers(0, 999))
def test_first_pieces_bound_the_kl_from_below(new_tokens: list[tuple[int, ...]], seed: int) -> None:
    alignment, logits, teacher = whole_text(seed, new_tokens)
    assert -1e-9 <= kl_first(logits, teacher, alignment).item() <= kl(logits, teacher, alignment).item() + 1e-9


@pytest.mark.parametrize("loss", [kl, kl_first, kl_old, partial(kl, masked=True), partial(kl_first, masked=True)])
@pytest.mark.parametrize("new_tokens", [[(0, 1), (0, 1, 2), (1, 2)], [(0, 1, 2), (2, 0, 1, 1)]])
def test_gradients_agree_with_finite_differences(loss, new_tokens: list[tuple[int, ...]]) -> None:
    alignment, logits, teacher = whole_text(5, new_tokens)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, alignment), logits.requires_grad_())


def test_gradient_of_ce_agrees_with_finite_differences() -> None:
    alignment, logits, _ = whole_text(5, [(0, 1)])
    for masked in (False, True):
        assert torch.autograd.gradcheck(lambda x: ce(x, alignment, masked=masked), logits.requires_grad_())  # noqa: B023


def test_ce_is_torchs_cross_entropy() -> None:
    alignment, logits, _ = whole_text(1, [(0, 1), (1, 2)])
    expected = torch.nn.functional.cross_entropy(logits[:-1], alignment.next_token)
    assert ce(logits, alignment).item() == pytest.approx(expected.item())


def test_kl_old_by_hand_and_blind_to_new_tokens() -> None:
    alignment, logits, teacher = whole_text(2, [(0, 1)])
    p = torch.log_softmax(teacher[alignment.teacher_row], -1)
    q = torch.log_softmax(logits[alignment.student_row, :N], -1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert kl_old(logits, teacher, alignment).item() == pytest.approx(expected.item())
    logits.requires_grad_()
    kl_old(logits, teacher, alignment).backward()
    assert logits.grad is not None
    assert logits.grad[:, N:].abs().max() == 0
    assert logits.grad[:, :N].abs().max() > 0


def test_hidden_is_zero_for_equal_states_and_a_share_of_the_teachers_size_else() -> None:
    alignment, _, _ = whole_text(2, [(0, 1), (1, 2)])
    teacher = torch.randn(24, 5, dtype=torch.float64)
    states = torch.zeros(len(alignment.next_row) + 1, 5, dtype=torch.float64)
    states[alignment.student_row] = teacher[alignment.teacher_row]
    assert hidden(states, teacher, alignment).item() == 0
    shares = 4 * 5 / teacher[alignment.teacher_row].square().sum(-1)  # every entry is 2 away
    assert hidden(states + 2, teacher, alignment).item() == pytest.approx(shares.mean().item())
    assert hidden(7 * (states + 2), 7 * teacher, alignment).item() == pytest.approx(shares.mean().item())
    assert hidden(0 * states, teacher, alignment).item() == pytest.approx(1)


def test_without_new_tokens_in_reach_kl_is_the_plain_kl() -> None:
    """A new token that shares no first piece with any position's text still takes mass; with none of it, plain KL."""
    alignment, logits, teacher = whole_text(3, [(0, 1)])
    logits[:, N:] = -1e4
    p = torch.log_softmax(teacher[alignment.teacher_row], -1)
    q = torch.log_softmax(logits[alignment.student_row, :N], -1)
    free = ~torch.isin(torch.arange(len(alignment.student_row)), torch.cat([alignment.zero_position]))
    plain = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(kl_terms(logits, teacher, alignment).first_P[free], plain[free])


def test_products_of_pieces_count_twice_and_the_loss_sees_it() -> None:
    """A student whose new token has the product of its pieces while old tokens keep theirs is not the push-forward."""
    context = Context([(0, 1)], [2, 0, 1, 0, 2, 1], 1, 1, 11)
    p = context.oracle.next_probabilities(context.texts[0][1][:1])
    double = torch.tensor(np.log([*p, p[0] * context.oracle.next_probabilities((2, 0))[1]]))
    assert np.exp(double.numpy()).sum() > 1.001
    mean = sum(weight * (first + split) for weight, first, split in context.losses(double))
    assert mean == pytest.approx(context.exact(double))
    assert mean > 1e-3


def test_unresolved_mass_is_zero_if_prefixes_are_tokens_and_a_share_else() -> None:
    alignment, _, teacher = whole_text(4, [(0, 1), (0, 1, 2)])
    assert unresolved_mass(teacher, alignment).item() == 0
    alignment, _, teacher = whole_text(4, [(0, 1, 2)])
    assert 0 < unresolved_mass(teacher, alignment).item() < 1


def test_half_precision_logits_give_float32_losses() -> None:
    alignment, logits, teacher = whole_text(6, [(0, 1), (1, 2)])
    low = kl(logits.bfloat16(), teacher.bfloat16(), alignment)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(kl(logits, teacher, alignment).item(), rel=0.1)


def test_no_position_gives_zero_not_nan() -> None:
    alignment = align([0], [0], PieceTable(N, [(0, 1)]))
    logits, teacher = torch.zeros(1, N + 1), torch.zeros(1, N)
    assert kl(logits, teacher, alignment).item() == 0
    assert ce(logits, alignment).item() == 0


def test_segment_logsumexp() -> None:
    values = torch.randn(4, 6, dtype=torch.float64)
    segments = torch.tensor([0, 2, 1, 0, 2, 2])
    expected = torch.stack([values[:, segments == s].logsumexp(-1) for s in range(3)], -1)
    torch.testing.assert_close(segment_logsumexp(values, segments, 3), expected)
    assert segment_logsumexp(torch.full((2,), -torch.inf), torch.tensor([0, 0]), 1).item() == -torch.inf


def test_log_masses_sum_subtrees() -> None:
    table = PieceTable(2, [(0, 1), (0, 1, 1), (1, 0)])
    log_q = torch.log_softmax(torch.randn(3, 5, dtype=torch.float64), -1)
    masses = log_masses(log_q, torch.from_numpy(table.mass_owner), torch.from_numpy(table.mass_member)).exp()
    q = log_q.exp()
    torch.testing.assert_close(masses[:, 0], q[:, 0] + q[:, 2] + q[:, 3])
    torch.testing.assert_close(masses[:, 2], q[:, 2] + q[:, 3])
    torch.testing.assert_close(masses[:, 1], q[:, 1] + q[:, 4])
    torch.testing.assert_close(masses[:, :2].sum(-1), torch.ones(3, dtype=torch.float64))
