"""LazyAdamW: what was not seen stays, and what was seen moves as under AdamW with its own count of steps; rows that
share a map move as the sum of their own part and the map's, both under AdamW.
"""

import pytest
import torch
from torch import nn

from kldistill.training.optimizer import LazyAdamW
from kldistill.training.shared_map import SharedMap, features

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


def test_rows_that_share_a_map_are_a_part_of_their_own_and_features_times_the_map() -> None:
    """Both learn under AdamW, by autograd of R = R' + F W', with the rates that the loop gives them."""
    generator = torch.Generator().manual_seed(1)
    features_NF, target_ND = torch.randn(5, 4, generator=generator), torch.randn(5, 3, generator=generator)
    settings = {"lr": 0.05, "weight_decay": 0.0, "betas": (0.8, 0.95)}
    ours = start()
    shared = LazyAdamW(
        [{"params": [ours], "factor": 0.5}], shared={ours: SharedMap(features_NF, share=0.1)}, **settings
    )
    own, map_DF = start(), nn.Parameter(torch.zeros(3, 4))
    adam = torch.optim.AdamW([{"params": [own]}, {"params": [map_DF]}], **settings)
    for step in range(6):
        lr = 0.05 * (1 - step / 10)  # of the schedule
        shared.param_groups[0]["lr"] = 0.5 * lr
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = 0.5 * lr, 0.1 * lr
        shared.zero_grad()
        adam.zero_grad()
        (ours - target_ND).pow(4).sum().backward()
        (own + features_NF @ map_DF.t() - target_ND).pow(4).sum().backward()
        shared.step()
        adam.step()
    torch.testing.assert_close(ours, own + features_NF @ map_DF.t())
    assert map_DF.abs().max() > 0.01


def test_the_map_learns_from_the_rows_that_were_seen() -> None:
    """What the softmax tells absent rows is left out of it, as of the rows; the map moves them all the same."""
    features_NF = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    moved = []
    for noise in (0.0, 1.0):
        ours = start()
        lazy = LazyAdamW([{"params": [ours], "factor": 1.0}], lr=0.05, shared={ours: SharedMap(features_NF, share=0.1)})
        ours.grad = torch.ones(5, 3) * torch.tensor([[1.0], [2.0], [noise], [noise], [noise]])
        lazy.seen[ours] = torch.tensor([True, True, False, False, False])
        lazy.step()
        moved.append(ours.detach() - start())
    assert torch.equal(*moved) and (moved[0][2:].abs() > 0).all()


def test_features_of_a_row() -> None:
    old_VD = torch.eye(3) * torch.tensor([1.0, 2.0, 4.0])
    rows_ND = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    found_NF = features(rows_ND, old_VD, [(2, 0, 0), ()])
    size = 3**0.5  # root of the mean square
    expected = [[3, 0, 0, 0, 0, 4, 1, 0, 0, 2 / 3, 0, 4 / 3, size], [0, 0, 3, *[0] * 9, size]]
    torch.testing.assert_close(found_NF, torch.tensor(expected))
