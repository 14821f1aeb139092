"""One pass over the logits against the plain functions of each loss, which the oracle checks."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from kldistill.losses import ce, kl, kl_first, kl_old
from kldistill.losses.alignment import align
from kldistill.losses.chunks import Chunk, chunks, concatenate
from kldistill.losses.fused import can_fuse, fused, measure, measure_both
from kldistill.losses.kl import kl_terms, unresolved_mass
from kldistill.losses.masked import masked_logits
from kldistill.tokens.pieces import PieceTable
from tests.helpers.oracle import Oracle

Terms = Mapping[str, tuple[Callable[..., Tensor], float]]
N = 4  # pieces
TERMS = {"kl": (kl, 1.0), "first": (kl_first, 0.2), "ce": (ce, 0.7)}
MASKED = {name: (partial(function, masked=True), weight) for name, (function, weight) in TERMS.items()}


def some_chunk(seed: int) -> tuple[Chunk, Tensor, Tensor, dict[str, bool]]:
    """A chunk of random texts and new tokens, with float64 logits, and which kinds of trouble it holds."""
    rng = np.random.default_rng(seed)
    new_tokens = sorted({tuple(rng.integers(0, N, rng.integers(2, 5)).tolist()) for _ in range(rng.integers(1, 7))})
    oracle = Oracle(N, 2, new_tokens, seed)
    table = PieceTable(N, new_tokens, [1] * N + [len(token) for token in new_tokens])
    texts = [rng.integers(0, N, rng.integers(3, 30)).tolist() for _ in range(3)]
    news = [oracle.cut(text) for text in texts]
    if seed % 3 == 0:  # a cut that is not the longest match: all tokens of one text are old
        news[0] = list(texts[0])
    aligned = [align(text, new, table) for text, new in zip(texts, news, strict=True)]
    if seed % 4 == 0:  # a boundary that the teacher has not: its old tokens swallow the first of two in the student's
        shifted = PieceTable(N, new_tokens, [2, *[1] * (N - 1), *[1 + len(token) for token in new_tokens]])
        aligned[1] = align(texts[1], [*news[1][:-1], 0 if news[1][-1] else 1], shifted)
    whole = concatenate(aligned, [max(map(len, news))] * len(aligned), [max(map(len, texts))] * len(aligned))
    (chunk,) = chunks(whole, 1000)
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(chunk.student_rows), N + len(new_tokens), generator=generator, dtype=torch.float64)
    teacher = 2 * torch.randn(len(chunk.teacher_rows), N, generator=generator, dtype=torch.float64)
    a = chunk.alignment
    kinds = {
        "forbidden": len(a.zero_position) > 0,
        "refused": len(a.refused_row) > 0,
        "open": len(a.open_position) > 0,
        "splits": len(a.split_position) > 0,
        "unresolved": len(a.rest_split) > 0,
        "contradiction": a.n_contradictions > 0,
        "left_out": a.n_left_out > 0,
    }
    return chunk, logits.requires_grad_(), teacher, kinds


def test_the_random_chunks_hold_every_kind_of_trouble() -> None:
    found = [some_chunk(seed)[3] for seed in range(60)]
    assert all(sum(kinds[name] for kinds in found) > 5 for name in found[0])


@pytest.mark.parametrize("names", [("kl",), ("ce",), ("first",), ("kl", "ce"), ("kl", "first", "ce")])
@pytest.mark.parametrize("every", [TERMS, MASKED], ids=["free", "masked"])
def test_values_and_gradients_are_those_of_the_plain_functions(names: tuple[str, ...], every: Terms) -> None:
    for seed in range(60):
        chunk, logits, teacher, _ = some_chunk(seed)
        terms = {name: every[name] for name in names}
        plain = {
            name: function(logits, *([] if name == "ce" else [teacher]), chunk.alignment)
            for name, (function, _) in terms.items()
        }
        wanted = sum(weight * plain[name] for name, (_, weight) in terms.items())
        assert isinstance(wanted, Tensor)
        total, values = fused(terms, logits, None if names == ("ce",) else teacher, chunk.alignment)
        torch.testing.assert_close(total, wanted, rtol=1e-12, atol=1e-12)
        for name, value in values.items():
            torch.testing.assert_close(value, plain[name].detach(), rtol=1e-12, atol=1e-12)
            assert not value.requires_grad
        (right,) = torch.autograd.grad(wanted, logits)
        (gradient,) = torch.autograd.grad(total, logits)
        torch.testing.assert_close(gradient, right, rtol=0, atol=1e-14)


def test_the_gradient_follows_what_the_loss_enters() -> None:
    chunk, logits, teacher, _ = some_chunk(1)
    (once,) = torch.autograd.grad(fused(TERMS, logits, teacher, chunk.alignment)[0], logits)
    (thrice,) = torch.autograd.grad(3 * fused(TERMS, logits, teacher, chunk.alignment)[0], logits)
    torch.testing.assert_close(thrice, 3 * once)
    assert once.abs().max() > 1e-3


def test_logits_are_left_as_they_were() -> None:
    """Other terms of the same sum read them too."""
    chunk, logits, teacher, _ = some_chunk(2)
    before = logits.detach().clone(), teacher.clone()
    fused(TERMS, logits, teacher, chunk.alignment)[0].backward()
    assert torch.equal(logits.detach(), before[0])
    assert torch.equal(teacher, before[1])


def test_a_measurement_is_that_of_the_plain_functions() -> None:
    for seed in range(60):
        chunk, logits, teacher, _ = some_chunk(seed)
        a = chunk.alignment
        found = measure(logits, teacher, a)
        terms = kl_terms(logits, teacher, a)
        log_q = torch.log_softmax(logits, -1)[a.next_row, a.next_token]
        unresolved = unresolved_mass(teacher, a) * max(a.n_common, 1)
        for one, other in zip(found, (*terms, log_q, unresolved), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
            assert not one.requires_grad
        torch.testing.assert_close(measure(logits, None, a).log_q_M, log_q)
        for one, other in zip(measure_both(logits, teacher, a), (logits, masked_logits(logits, a)), strict=True):
            for value, wanted in zip(one, measure(other, teacher, a), strict=True):
                torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_half_precision_logits_get_a_half_precision_gradient_of_a_float32_loss() -> None:
    chunk, logits, teacher, _ = some_chunk(6)
    low = logits.detach().bfloat16().requires_grad_()
    total, _ = fused(TERMS, low, teacher.bfloat16(), chunk.alignment)
    exact, _ = fused(TERMS, low.double(), teacher.bfloat16().double(), chunk.alignment)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.autograd.grad(total, low)[0].dtype == torch.bfloat16


def test_a_certain_teacher_and_a_forbidden_certainty_stay_finite() -> None:
    """What is left of p may be less than float32 can tell from 1; the rest is scaled up all the same."""
    chunk, logits, teacher, _ = some_chunk(next(seed for seed in range(60) if some_chunk(seed)[3]["forbidden"]))
    a = chunk.alignment
    teacher = teacher.float()
    teacher[a.zero_position, a.zero_piece] += 40
    low = logits.detach().float().requires_grad_()
    total, _ = fused({"kl": (kl, 1.0)}, low, teacher, a)
    assert total.item() == pytest.approx(kl(low, teacher, a).item(), rel=1e-4)
    assert torch.autograd.grad(total, low)[0].isfinite().all()


def test_a_chunk_without_contexts() -> None:
    table = PieceTable(N, [(0, 1)], [2, 1, 1, 1, 3])
    (chunk,) = chunks(align([0], [1, 1], table), 10)
    assert not len(chunk.alignment.student_row)
    logits = torch.randn(len(chunk.student_rows), N + 1, requires_grad=True)
    total, values = fused(TERMS, logits, torch.randn(len(chunk.teacher_rows), N), chunk.alignment)
    torch.testing.assert_close(total, 0.7 * ce(logits, chunk.alignment))
    assert values["kl"].item() == 0


def test_only_the_functions_as_they_stand_are_fused() -> None:
    assert all(can_fuse(function) for function in (kl, kl_first, ce, partial(kl), partial(ce, masked=True)))
    assert not any(can_fuse(function) for function in (kl_old, lambda *of: kl(*of), partial(kl, torch.zeros(1, 1))))
