"""Training over a part of the old vocabulary: which tokens are in every step, and the two heads over a step's.

See ``kldistill.losses.sampled`` for what is computed. Shape suffixes: V old tokens, S those of a step, N new ones, P
positions, U teacher tokens of a text, D width.
"""

from collections.abc import Callable
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from kldistill.losses.sampled import Columns, Sampling
from kldistill.rows.student import Student
from kldistill.training.cuts import TwoCuts

TEXTS = 16  # of the training text, in which the teacher is asked for its likeliest tokens: 3,400 tokens of 700 bytes


class SampledHeads:
    """A student's two heads over the old tokens of a step."""

    def __init__(self, student: Student, columns: Columns) -> None:
        self.student, self.columns = student, columns

    def logits_old(self, hidden: Float[Tensor, "P D"]) -> Float[Tensor, "P S"]:
        """The teacher's logits, each with the log of how many tokens it stands for."""
        return self.student.logits_old(hidden, self.columns.ids_S) + self.columns.log_weight_S

    def logits(self, hidden: Float[Tensor, "P D"]) -> Float[Tensor, "P S+N"]:
        """The student's, and of all new tokens, which stand for themselves."""
        logits = self.student.logits(hidden, self.columns.ids_S)
        return logits + F.pad(self.columns.log_weight_S, (0, logits.shape[1] - len(self.columns.ids_S)))


def sampling(
    student: Student, cuts: TwoCuts, hidden: Callable[[int], Float[Tensor, "U D"]] | None, size: int | None, seed: int
) -> Sampling | None:
    """What ``distill.sampled_softmax`` asks for: softmaxes over about ``size`` of the V old tokens; None: over all.

    In every step are those that the training text holds in either cut and, up to three quarters of ``size``, the ones
    that the teacher finds likeliest there. The others are drawn.

    Args:
        hidden: the teacher's states of a training text by its index; None where there is no teacher.
    """
    if size is None or size >= student.old_size:
        return None
    always_V = torch.zeros(student.old_size, dtype=torch.bool)
    for ids in chain(cuts.states.ids, cuts.new_ids):
        always_V[[token for token in ids if token < student.old_size]] = True
    missing = size * 3 // 4 - int(always_V.sum())
    if hidden is not None and missing > 0:
        always_V[_likeliest(student, cuts, hidden, always_V, missing)] = True
    return Sampling(always_V, max(size // 4, size - int(always_V.sum())), seed)


@torch.no_grad()
def _likeliest(
    student: Student, cuts: TwoCuts, hidden: Callable[[int], Tensor], known_V: Tensor, n: int
) -> Int[Tensor, " n"]:
    """The ``n`` tokens, but for the known ones, that the teacher gives most mass, over texts from all of the text."""
    device = student.lm_head.weight.device
    mass_V = torch.zeros(student.old_size, device=device)
    for index in range(0, len(cuts), -(-len(cuts) // TEXTS)):
        mass_V += student.logits_old(hidden(index).to(device)).float().softmax(-1).sum(0)
    return mass_V.cpu().masked_fill(known_V, -1).topk(min(n, int((~known_V).sum()))).indices
