"""Rows of token ids of unequal length as one padded batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def pad(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Ids and mask of shape (B, T), padded on the right with id 0, mask 0."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64, device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


def together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same tensors on ``device``, in their order.

    An accelerator gets all of one type in one copy, from pinned memory, and is not waited for: hundreds of small ones
    would each take as long.
    """
    if device.type == "cpu":
        return [tensor.to(device) for tensor in tensors]
    different = {id(tensor): tensor for tensor in tensors}
    moved: dict[int, Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        alike = {key: tensor for key, tensor in different.items() if tensor.dtype == dtype}
        flat = torch.cat([tensor.reshape(-1) for tensor in alike.values()])
        flat = (flat.pin_memory() if device.type == "cuda" else flat).to(device, non_blocking=True)
        parts = flat.split([tensor.numel() for tensor in alike.values()])
        moved |= {key: part.view(tensor.shape) for (key, tensor), part in zip(alike.items(), parts, strict=True)}
    return [moved[id(tensor)] for tensor in tensors]


def by_length(rows: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Indices of the rows in batches of ``size``, longest first, so that little is padded and memory peaks at once."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad_in_front(
    rows: Sequence[Sequence[int]], device: torch.device, padding: int = 0
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Ids and mask, padded in front with the id ``padding``, mask 0."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*[padding] * (longest - len(row)), *row] for row in rows], dtype=torch.int64, device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64, device=device)
    return ids, mask
