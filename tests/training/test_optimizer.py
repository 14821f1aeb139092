"""LazyAdamW: what was not seen stays, and what was seen moves as under AdamW with its own count of steps."""

import pytest
import torch
from torch import nn

from kldistill.training.optimizer import LazyAdamW

SETTINGS = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.95)}


def gradients(n: int, rows: int = 5, width: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, width, generator=generator) for _ in range(n)]


def start() -> nn.Parameter:
    return nn.Parameter(torch.arange(15.0).view(5, 3) / 7)


def test_with_every_row_seen_it_is_adamw() -> None:
    ours, theirs = start(), start()
    lazy, adam = LazyAdamW([ours], **SETTINGS), torch.optim.AdamW([theirs], **SETTINGS)
    lazy.seen[ours] = torch.ones(5, dtype=torch.bool)
    for gradient in gradients(6):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        lazy.step()
        adam.step()
        assert ours.grad is not None
    torch.testing.assert_close(ours, theirs)


def test_each_row_counts_its_own_steps() -> None:
    """A row that is seen in steps 1, 4 and 5 ends where AdamW takes it in three steps with these gradients."""
    ours = start()
    lazy = LazyAdamW([ours], **SETTINGS)
    seen = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 0, 1, 1], [0, 1, 0, 0, 0], [1, 1, 0, 0, 1], [1, 1, 0, 0, 0]]).bool()
    for mask, gradient in zip(seen, gradients(5), strict=True):
        before = ours.detach().clone()
        ours.grad, lazy.seen[ours] = gradient.clone(), mask
        lazy.step()
        assert torch.equal(ours[~mask], before[~mask]), "what was not seen keeps its value, also without decay"
    for row in range(5):
        alone = nn.Parameter(start()[row].detach().clone())
        adam = torch.optim.AdamW([alone], **SETTINGS)
        for mask, gradient in zip(seen, gradients(5), strict=True):
            if mask[row]:
                alone.grad = gradient[row].clone()
                adam.step()
        torch.testing.assert_close(ours[row], alone)


def test_other_parameters_are_adamws() -> None:
    ours, theirs, rows = start(), start(), start()
    lazy, adam = LazyAdamW([rows, ours], **SETTINGS), torch.optim.AdamW([theirs], **SETTINGS)
    for gradient in gradients(4):
        ours.grad, theirs.grad, rows.grad = (gradient.clone() for _ in range(3))
        lazy.seen[rows] = torch.zeros(5, dtype=torch.bool)
        lazy.step()
        adam.step()
    assert torch.equal(ours, theirs) and torch.equal(rows, start())


def test_a_rare_row_does_not_start_too_fast() -> None:
    """Its first update is as long as any row's first, which the sparse Adam of torch gets wrong."""
    ours = start()
    lazy = LazyAdamW([ours], lr=0.05, weight_decay=0.0)
    for step in range(50):
        ours.grad, lazy.seen[ours] = torch.ones(5, 3), torch.tensor([True, False, False, False, step == 49])
        lazy.step()
    torch.testing.assert_close(start()[4] - ours[4], torch.full((3,), 0.05))


def test_a_closure_is_no_way_to_use_it() -> None:
    with pytest.raises(AssertionError):
        LazyAdamW([start()]).step(lambda: 1.0)
