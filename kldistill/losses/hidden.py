"""Squared distance between last hidden states at common boundaries, as a share of the teacher's own size."""

from jaxtyping import Float
from torch import Tensor

from kldistill.losses.alignment import Alignment
from kldistill.losses.facts import loss
from kldistill.losses.precision import at_least_float32


@loss()
def hidden(
    student_hidden: Float[Tensor, "A D"], teacher_hidden: Float[Tensor, "B D"], alignment: Alignment
) -> Float[Tensor, ""]:
    """Squared distance of the two models' last hidden states over the square of the teacher's, averaged over common
    boundaries.

    It has no unit: 0 where both models have read the same tokens with the same weights, 1 where the student's state is
    as far from the teacher's as the origin is. The states are those after the final norm, whose size differs from model
    to model (a mean square of 5 for SmolLM2-135M, of 35 for Gemma 3 270M); as a share, a weight fits both.
    """
    teacher_PD = at_least_float32(teacher_hidden[alignment.teacher_row])
    gap_PD = at_least_float32(student_hidden[alignment.student_row]) - teacher_PD
    share_P = gap_PD.square().sum(dim=-1) / teacher_PD.square().sum(dim=-1)
    return share_P.sum() / max(alignment.n_common, 1)
