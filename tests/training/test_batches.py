"""Batches: which snippets a step sees, and what the processes of one step share."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kldistill.losses.alignment import align
from kldistill.losses.sampled import Sampling
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.shares import Share
from kldistill.training.batches import Steps, collate, passes, schedule
from kldistill.training.cuts import TwoCuts
from kldistill.training.objective import Objective
from kldistill.training.padding import together
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.setting import Setting, all_terms, make_setting, whole


@pytest.fixture(scope="module")
def setting(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tiny_model(hidden_size=16, layers=1)
    return make_setting(folder, fake_tokens(folder), tmp_path_factory.mktemp("states"))


def test_every_snippet_once_an_epoch() -> None:
    lengths = [7 * i % 31 for i in range(24)]
    order = schedule(lengths, 4, 18, seed=3)
    epochs = [order[start : start + 6] for start in (0, 6, 12)]
    for epoch in epochs:
        assert sorted(index for batch in epoch for index in batch) == list(range(24))
    assert epochs[0] != epochs[1]


def test_the_rest_of_an_epoch_is_another_one_each_time() -> None:
    # With 7 snippets in batches of 4, each epoch leaves three out: never always the same, such as the longest.
    seen = Counter(index for batch in schedule(list(range(7)), 4, 50, seed=0) for index in batch)
    assert len(seen) == 7
    assert all(len(set(batch)) == 4 for batch in schedule(list(range(7)), 4, 50, seed=0))


def test_batches_hold_snippets_of_similar_length() -> None:
    lengths = torch.randint(1, 1000, (640,), generator=torch.Generator().manual_seed(0)).tolist()
    order = schedule(lengths, 4, 160, seed=0)
    padded = sum(4 * max(lengths[i] for i in batch) for batch in order)
    assert padded < 1.08 * sum(lengths)  # in random order: about 1.6
    firsts = [lengths[batch[0]] for batch in order]
    assert firsts != sorted(firsts)


def test_schedule_depends_on_the_seed_alone() -> None:
    lengths = list(range(40))
    assert schedule(lengths, 4, 25, 1) == schedule(lengths, 4, 25, 1)
    assert schedule(lengths, 4, 25, 1)[:10] == schedule(lengths, 4, 10, 1)
    assert schedule(lengths, 4, 25, 1) != schedule(lengths, 4, 25, 2)


def test_fewer_snippets_than_a_batch_has_places() -> None:
    assert [sorted(batch) for batch in schedule([5, 6, 7], 8, 3, 0)] == [[0, 1, 2]] * 3


def test_collate_pads_on_the_right(setting: Setting) -> None:
    news, olds = setting.new_ids[:2], setting.states.ids[:2]
    aligned = [align(old, new, setting.pieces) for old, new in zip(olds, news, strict=True)]
    batch = collate(aligned, news, [setting.states.hidden(0), setting.states.hidden(1)], [len(row) for row in olds], 8)
    assert batch.n_tokens == len(news[0]) + len(news[1])
    assert batch.new_mask.sum(-1).tolist() == [len(news[0]), len(news[1])]
    assert batch.old_hidden is not None
    for row, (new, old) in enumerate(zip(news, olds, strict=True)):
        assert batch.new_ids[row, : len(new)].tolist() == new
        assert torch.equal(batch.old_hidden[row, : len(old)], setting.states.hidden(row))
        assert not batch.old_hidden[row, len(old) :].any()
    assert sum(len(chunk.alignment.next_row) for chunk in batch.chunks) == batch.n_tokens - 2
    assert max(len(chunk.alignment.next_row) for chunk in batch.chunks) == 8
    assert batch.to("meta").new_ids.device.type == "meta"
    assert batch.to("meta").chunks[0].alignment.student_row.device.type == "meta"


def loss_and_gradients(setting: Setting, **asked: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and figures, and the gradients of the rows, summed over the passes of one step of five snippets."""
    order = [[0, 3, 1, 5, 2]]
    step = Objective(setting.student, all_terms())
    parameters = list(setting.student.rows.parameters())
    values, gradients = torch.zeros(()), [torch.zeros_like(parameter) for parameter in parameters]
    for batch in Steps(setting.cuts, order, chunk=16, **asked)[0]:
        loss, figures = step(batch)
        values = values + torch.stack([loss.detach(), *figures.values()])
        of_pass = torch.autograd.grad(loss, parameters)
        gradients = [total + gradient for total, gradient in zip(gradients, of_pass, strict=True)]
    return values, gradients


@pytest.mark.parametrize("world", [2, 3])
def test_the_processes_average_is_the_whole_batch(setting: Setting, world: int) -> None:
    """As distributed data parallelism averages gradients; the shares have different numbers of positions."""
    values, gradients = loss_and_gradients(setting)
    shares = [loss_and_gradients(setting, share=Share(rank, world)) for rank in range(world)]
    torch.testing.assert_close(sum(share[0] for share in shares) / world, values, rtol=1e-5, atol=1e-6)
    for index, gradient in enumerate(gradients):
        assert gradient.abs().max() > 1e-4
        mean = sum(share[1][index] for share in shares) / world
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("budget", [1, 60, 100, 10_000])
def test_passes_add_up_to_the_step(setting: Setting, budget: int) -> None:
    values, gradients = loss_and_gradients(setting)
    in_passes, of_passes = loss_and_gradients(setting, budget=budget)
    torch.testing.assert_close(in_passes, values, rtol=1e-5, atol=1e-6)
    for mine, at_once in zip(of_passes, gradients, strict=True):
        torch.testing.assert_close(mine, at_once, rtol=1e-4, atol=1e-6)


def test_a_steps_columns_go_with_its_passes(setting: Setting) -> None:
    """All old tokens drawn: the same loss and gradients, in whatever passes; some drawn: nearly."""
    values, gradients = loss_and_gradients(setting)
    size = setting.pieces.old_size
    for drawn, budget in ((size, None), (size, 100)):
        sampling = Sampling(torch.zeros(size, dtype=torch.bool), drawn, 0)
        found, made = loss_and_gradients(setting, sampling=sampling, budget=budget)
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6)
        for mine, exact in zip(made, gradients, strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-6)
    (batch,) = Steps(setting.cuts, [[0, 1]], chunk=16, sampling=Sampling(torch.zeros(size, dtype=torch.bool), 5, 0))[0]
    assert batch.columns is not None
    assert len(batch.columns.ids_S) < size
    assert {chunk.alignment.old_size for chunk in batch.chunks} == {len(batch.columns.ids_S)}
    moved = batch.to("meta")
    assert moved.columns is not None
    assert {tensor.device.type for tensor in moved.columns} == {"meta"}


@settings(max_examples=200)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 200))
def test_no_pass_is_larger_than_its_budget(lengths: list[int], budget: int) -> None:
    groups = passes(dict(enumerate(lengths)), budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in groups)
    assert passes(dict(enumerate(lengths)), None) == [list(range(len(lengths)))]
    if budget >= len(lengths) * max(lengths):
        assert len(groups) == 1


def test_a_process_without_a_snippet_is_refused(setting: Setting) -> None:
    with pytest.raises(ConfigError, match=r"distill.batch_size: a batch of 2 snippets .* 3 processes"):
        Steps(setting.cuts, [[0, 1]], chunk=16, share=Share(world=3))


def test_without_a_teacher_there_are_no_states(setting: Setting, tmp_path: Path) -> None:
    alone = setting.states._replace(values=None)
    steps = Steps(TwoCuts(alone, whole(setting.new_ids), setting.pieces), [[0, 1]], chunk=16)
    assert steps[0][0].old_hidden is None


def test_what_goes_to_an_accelerator_together_keeps_its_order_shapes_and_types() -> None:
    """A device without memory stands for it. Numbers are compared where there is a GPU (tests/test_accelerator.py)."""
    shared = torch.arange(3)
    tensors = [torch.zeros(2, 3), shared, torch.zeros(0, dtype=torch.int64), torch.ones(4, 1), shared, torch.arange(2)]
    moved = together(tensors, torch.device("meta"))
    assert [(one.shape, one.dtype) for one in moved] == [(one.shape, one.dtype) for one in tensors]
    assert all(one.device.type == "meta" for one in moved) and moved[1] is moved[4]
    stays = together(tensors, torch.device("cpu"))
    assert all(one is other for one, other in zip(stays, tensors, strict=True))
