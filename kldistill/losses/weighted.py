"""A weighted sum of losses, computed chunk by chunk so that no batch ever holds all its vocabulary-sized logits.

Shape suffixes: T flattened student tokens of a batch, U flattened teacher tokens, D width, V and W vocabularies.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from kldistill.losses.alignment import Alignment
from kldistill.losses.chunks import Chunk
from kldistill.losses.facts import loss_facts
from kldistill.losses.fused import asks_mask, can_fuse, fused


class Heads(Protocol):
    """The two output layers of one model: the original's, over V, and the extended one's, over W."""

    def logits_old(self, hidden: Float[Tensor, "A D"]) -> Float[Tensor, "A V"]: ...
    def logits(self, hidden: Float[Tensor, "A D"]) -> Float[Tensor, "A W"]: ...


class Term(NamedTuple):
    """One summand: a loss (a function marked with ``@loss``, which says what it compares) and its weight."""

    function: Callable[..., Tensor]
    weight: float

    @property
    def hidden(self) -> bool:
        """Whether it compares last hidden states rather than logits."""
        return loss_facts(self.function).hidden

    @property
    def teacher(self) -> bool:
        """Whether it needs the teacher."""
        return loss_facts(self.function).teacher

    @property
    def sampled(self) -> bool:
        """Whether it is right over a part of the old vocabulary."""
        return loss_facts(self.function).sampled


def weighted(
    terms: Mapping[str, Term],
    heads: Heads,
    student_hidden_AD: Float[Tensor, "A D"],
    teacher_hidden_BD: Float[Tensor, "B D"] | None,
    chunk: Chunk,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The sum for one chunk, with each term's own value (unweighted, detached).

    Logits are computed once for all terms, and those of this package that read them all are computed in one pass
    (``fused``).
    """
    logits_of = any(not term.hidden for term in terms.values())
    student_logits_AW = heads.logits(student_hidden_AD) if logits_of else None
    teacher_logits_BV = None
    if teacher_hidden_BD is not None and any(term.teacher and not term.hidden for term in terms.values()):
        with torch.no_grad():
            teacher_logits_BV = heads.logits_old(teacher_hidden_BD)
    logits = (student_logits_AW, teacher_logits_BV)
    return summed(terms, logits, (student_hidden_AD, teacher_hidden_BD), chunk.alignment)


def summed(
    terms: Mapping[str, Term],
    logits: tuple[Float[Tensor, "A W"] | None, Float[Tensor, "B V"] | None],
    hidden: tuple[Float[Tensor, "A D"], Float[Tensor, "B D"] | None],
    alignment: Alignment,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum of ``weighted``, of logits that are computed already.

    Args:
        logits, hidden: the student's and the teacher's; the teacher's are None where no term needs them.
    """
    student_logits_AW, teacher_logits_BV = logits
    total = hidden[0].new_zeros((), dtype=torch.float32)
    values: dict[str, Tensor] = {}
    for masked in (False, True):
        fusible = (
            name for name, term in terms.items() if can_fuse(term.function) and asks_mask(term.function) is masked
        )
        together = {name: (terms[name].function, terms[name].weight) for name in fusible}
        if together:
            assert student_logits_AW is not None
            for name in together:
                assert not terms[name].teacher or teacher_logits_BV is not None, f"{name} needs a teacher"
            of_these, found = fused(together, student_logits_AW, teacher_logits_BV, alignment)
            total, values = total + of_these, values | found
    for name, term in terms.items():
        if name in values:
            continue
        student, teacher = hidden if term.hidden else logits
        assert not term.teacher or teacher is not None, f"{name} needs a teacher"
        value = term.function(student, *([teacher] if term.teacher else []), alignment)
        values[name] = value.detach()
        total = total + term.weight * value
    return total, values


class _Chunked(torch.autograd.Function):
    """Sum of a loss over chunks whose gradient is made on the way forward, one chunk at a time.

    It takes the same peak memory as recomputing each chunk backwards, and one pass over it less. All gradients arrive
    in a single backward call, as distributed data parallelism wants it.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        loss_of: Callable[[Chunk, Tensor], tuple[Tensor, dict[str, Tensor]]],
        chunks: Sequence[Chunk],
        names: Sequence[str],
        hidden_TD: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        totals = hidden_TD.new_zeros(1 + len(names), dtype=torch.float32)
        grads = [torch.zeros_like(hidden_TD), *(torch.zeros_like(parameter) for parameter in parameters)]
        for chunk in chunks:
            with torch.enable_grad():
                hidden_AD = hidden_TD[chunk.student_rows].detach().requires_grad_()
                loss, values = loss_of(chunk, hidden_AD)
            made = torch.autograd.grad(loss, (hidden_AD, *parameters), allow_unused=True)
            if made[0] is not None:
                grads[0].index_add_(0, chunk.student_rows, made[0].to(grads[0].dtype))
            for total, grad in zip(grads[1:], made[1:], strict=True):
                if grad is not None:
                    total += grad
            totals += torch.stack([loss.detach(), *(values[name] for name in names)])
        ctx.save_for_backward(*grads)
        return totals

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        grads = ctx.saved_tensors
        return None, None, None, *(grad * outputs[0][0] for grad in grads)


def chunked(
    terms: Mapping[str, Term],
    heads: Heads,
    parameters: Sequence[Tensor],
    student_hidden_TD: Float[Tensor, "T D"],
    teacher_hidden_UD: Float[Tensor, "U D"] | None,
    chunks: Sequence[Chunk],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum over a whole batch. Only its first value carries a gradient.

    Args:
        parameters: trainable tensors inside ``heads`` (the new output rows).
        student_hidden_TD, teacher_hidden_UD: last hidden states of the batch, padded and flattened.
        chunks: the chunks of the batch's alignment.
    """

    def loss_of(chunk: Chunk, hidden_AD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        teacher_BD = None if teacher_hidden_UD is None else teacher_hidden_UD[chunk.teacher_rows]
        return weighted(terms, heads, hidden_AD, teacher_BD, chunk)

    names = list(terms)
    totals = _Chunked.apply(loss_of, chunks, names, student_hidden_TD, *parameters)
    assert isinstance(totals, Tensor)
    return totals[0], {name: totals[1 + index].detach() for index, name in enumerate(names)}
