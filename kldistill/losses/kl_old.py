"""KL on the old vocabulary alone: what public code for vocabulary extension does today."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kldistill.losses.alignment import Alignment
from kldistill.losses.facts import loss
from kldistill.losses.precision import at_least_float32


@loss(new_logits=False, sampled=True)
def kl_old(
    student_logits: Float[Tensor, "A W"], teacher_logits: Float[Tensor, "B V"], alignment: Alignment
) -> Float[Tensor, ""]:
    """KL(p(.|c) || q(.|c) restricted to the old vocabulary and renormalised), in nats per common boundary.

    New tokens' output rows receive no gradient from it, and a student that puts its mass on the right new token is
    punished for nothing. It is here to be compared with.
    """
    log_p_PV = F.log_softmax(at_least_float32(teacher_logits[alignment.teacher_row]), dim=-1)
    log_q_PV = F.log_softmax(at_least_float32(student_logits[alignment.student_row, : alignment.old_size]), dim=-1)
    return (log_p_PV.exp() * (log_p_PV - log_q_PV)).sum() / max(alignment.n_common, 1)
