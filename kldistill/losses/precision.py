"""The precision of the losses' arithmetic."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32, for softmaxes over a whole vocabulary; float64 stays, for tests."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
