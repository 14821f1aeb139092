"""Cross-entropy on the student's own tokens: the baseline of every table."""

import torch
from jaxtyping import Float
from torch import Tensor

from kldistill.losses.alignment import Alignment
from kldistill.losses.facts import loss
from kldistill.losses.masked import masked_logits
from kldistill.losses.precision import at_least_float32


@loss(sampled=True)
def ce(student_logits: Float[Tensor, "A W"], alignment: Alignment, masked: bool = False) -> Float[Tensor, ""]:
    """Mean of -log q(next student token | c) over all student positions with a next token, in nats per position.

    Args:
        student_logits: logits over the new vocabulary, a row per student token.
        alignment: the alignment of the same rows.
        masked: whether q is the student's distribution renormalised over what can follow.
    """
    student_logits = masked_logits(student_logits, alignment) if masked else student_logits
    logits_MW = at_least_float32(student_logits[alignment.next_row])
    picked_M = logits_MW.gather(1, alignment.next_token[:, None])[:, 0]
    return (torch.logsumexp(logits_MW, dim=-1) - picked_M).sum() / max(alignment.n_next, 1)
