"""Losses over a part of the old vocabulary, against those over all of it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kldistill.losses import ce, kl
from kldistill.losses.alignment import IDS, align
from kldistill.losses.chunks import Chunk, chunks, concatenate
from kldistill.losses.fused import fused
from kldistill.losses.sampled import Columns, Sampling
from kldistill.tokens.pieces import PieceTable
from tests.helpers.oracle import Oracle

V = 60
TERMS = {"kl": (kl, 1.0), "ce": (ce, 0.3)}


def some_chunk(new_tokens: list[tuple[int, ...]], seed: int = 0) -> tuple[Chunk, Tensor, Tensor]:
    """A chunk of random texts of the first eight of 60 pieces, with logits of both models in float64."""
    rng = np.random.default_rng(seed)
    cut = Oracle(8, 1, new_tokens, seed).cut if new_tokens else list
    table = PieceTable(V, new_tokens, [1] * V + [len(token) for token in new_tokens])
    texts = [rng.integers(0, 8, 40).tolist() for _ in range(2)]
    news = [[token if token < 8 else token - 8 + V for token in cut(text)] for text in texts]
    aligned = [align(text, new, table) for text, new in zip(texts, news, strict=True)]
    whole = concatenate(aligned, [max(map(len, news))] * 2, [40] * 2)
    (chunk,) = chunks(whole, 1000)
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(len(chunk.student_rows), V + len(new_tokens), generator=generator, dtype=torch.float64)
    teacher = 2 * torch.randn(len(chunk.teacher_rows), V, generator=generator, dtype=torch.float64)
    return chunk, student, teacher


NEW = [(0, 1), (0, 1, 2), (3, 4), (1, 5, 6, 1)]


def always(*ids: int) -> Tensor:
    return torch.zeros(V, dtype=torch.bool).index_fill(0, torch.tensor(ids, dtype=torch.long), True)


def read(logits: Tensor, columns: Columns) -> Tensor:
    """The logits of the columns and of the new tokens, as the heads give them."""
    return torch.cat([logits[:, columns.ids_S] + columns.log_weight_S, logits[:, V:]], 1)


def sampled(chunk: Chunk, student: Tensor, teacher: Tensor, sampling: Sampling, step: int = 0) -> Tensor:
    (part,), columns = sampling.over([chunk], step)
    return fused(TERMS, read(student, columns), read(teacher, columns), part.alignment)[0]


def test_what_a_chunk_names_is_there_and_every_token_is_stood_for() -> None:
    chunk, _, _ = some_chunk(NEW)
    named = {int(i) for name in IDS for i in getattr(chunk.alignment, name) if i < V}
    (part,), columns = Sampling(always(50), 10, 0).over([chunk], 3)
    ids, weight = columns.ids_S.tolist(), columns.log_weight_S.exp()
    assert ids == sorted(set(ids))
    assert named | {50} <= set(ids)
    assert len(ids) == len(named | {50}) + 10
    assert weight.sum().item() == pytest.approx(V, rel=1e-5)
    assert weight[ids.index(50)] == 1
    assert part.alignment.old_size == len(ids)
    assert part.alignment.new_size == len(ids) + len(NEW)
    back = torch.tensor([*ids, *range(V, V + len(NEW))])
    for name in IDS:
        assert torch.equal(back[getattr(part.alignment, name)], getattr(chunk.alignment, name)), name


def test_the_loss_is_the_whole_one_where_what_was_not_drawn_has_no_mass() -> None:
    """The whole loss of models that give nothing to what is left out, and to what was drawn as much as it stands for:
    value, and gradient.
    """
    for seed in range(10):
        chunk, student, teacher, sampling = *some_chunk(NEW, seed), Sampling(always(50, 51), 10, seed)
        _, columns = sampling.over([chunk], 0)
        nothing = torch.full((V,), -1e3, dtype=torch.float64)
        nothing[columns.ids_S] = columns.log_weight_S.double()
        student.requires_grad_()
        wholes = (student + torch.cat([nothing, nothing.new_zeros(len(NEW))]), teacher + nothing)
        whole = sum(w * f(*(wholes if f is kl else wholes[:1]), chunk.alignment) for f, w in TERMS.values())
        assert isinstance(whole, Tensor)
        found = sampled(chunk, student, teacher, sampling)
        torch.testing.assert_close(found, whole, rtol=1e-7, atol=1e-9)
        (right,), (made,) = torch.autograd.grad(whole, student), torch.autograd.grad(found, student)
        torch.testing.assert_close(made, right, rtol=1e-6, atol=1e-9)
        assert made.abs().max() > 1e-3


def test_all_drawn_is_exact() -> None:
    chunk, student, teacher = some_chunk(NEW)
    whole = fused(TERMS, student, teacher, chunk.alignment)[0]
    torch.testing.assert_close(sampled(chunk, student, teacher, Sampling(always(), V, 0)), whole)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    """Whatever is drawn: both are read in the same way."""
    chunk, student, _ = some_chunk([])
    for step in range(5):
        (part,), columns = Sampling(always(), 5, 0).over([chunk], step)
        logits = read(student, columns).requires_grad_()
        loss = fused({"kl": (kl, 1.0)}, logits, logits.detach()[part.alignment.teacher_row], part.alignment)[0]
        assert loss.item() == pytest.approx(0, abs=1e-7)
        assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-8


def test_normalisers_are_right_in_the_mean_and_the_loss_nearly() -> None:
    """A log is below the log of the mean, so the loss is a little too low: the less, the more are drawn."""
    chunk, student, teacher = some_chunk(NEW)
    whole, n = fused(TERMS, student, teacher, chunk.alignment)[0].item(), 200
    off = {}
    for drawn in (25, 45):
        sampling = Sampling(always(), drawn, 1)
        sums, losses = torch.zeros(len(student), dtype=torch.float64), []
        for step in range(n):
            _, columns = sampling.over([chunk], step)
            sums += read(student, columns).exp().sum(-1)
            losses.append(sampled(chunk, student, teacher, sampling, step).item())
        torch.testing.assert_close(sums / n, student.exp().sum(-1), rtol=0.15, atol=0)
        off[drawn] = 1 - float(np.mean(losses)) / whole
    assert 0 < off[45] < off[25] < 0.1
    assert off[45] < 0.02


def test_a_step_draws_the_same_again_and_another_step_others() -> None:
    chunk, _, _ = some_chunk(NEW)
    drawn = [
        Sampling(always(), 10, seed).over([chunk], step)[1].ids_S.tolist()
        for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[2] != drawn[0] != drawn[3]


def test_a_pass_without_chunks_has_columns_all_the_same() -> None:
    assert len(Sampling(always(1), 2, 0).over([], 0)[1].ids_S) == 3
