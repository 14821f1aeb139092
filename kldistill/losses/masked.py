"""The student's distribution renormalised over what can follow: what the tokenizer would never cut so has no mass.

Shape suffixes: A student rows, W new vocabulary.
"""

from jaxtyping import Float
from torch import Tensor

from kldistill.losses.alignment import Alignment
from kldistill.losses.precision import at_least_float32

# Its exponential is exactly 0 beside any logit of a model. Minus infinity would make nan of 0 times it.
NEVER = -1e4


def masked_logits(student_logits: Float[Tensor, "A W"], alignment: Alignment) -> Float[Tensor, "A W"]:
    """A copy in which the tokens that the alignment refuses have no probability, and receive no gradient.

    Args:
        student_logits: logits over the new vocabulary, a row per student token.
        alignment: the alignment of the same rows.
    """
    logits_AW = at_least_float32(student_logits)
    refused = (alignment.refused_row, alignment.refused_token)
    return logits_AW.index_put(refused, logits_AW.new_tensor(NEVER))
