"""Mean squared error between last hidden states at common boundaries."""

from jaxtyping import Float
from torch import Tensor

from kldistill.losses.alignment import Alignment
from kldistill.losses.facts import loss
from kldistill.losses.precision import at_least_float32


@loss()
def hidden(
    student_hidden: Float[Tensor, "A D"], teacher_hidden: Float[Tensor, "B D"], alignment: Alignment
) -> Float[Tensor, ""]:
    """Squared distance of the two models' last hidden states, averaged over dimensions and common boundaries.

    It is in squared units of the hidden state after the final norm, not in nats. It is zero where both models have read
    the same tokens with the same weights.
    """
    gap_PD = at_least_float32(student_hidden[alignment.student_row]) - at_least_float32(
        teacher_hidden[alignment.teacher_row]
    )
    return gap_PD.square().mean(dim=-1).sum() / max(alignment.n_common, 1)
