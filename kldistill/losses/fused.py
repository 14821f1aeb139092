"""``kl``, ``kl_first`` and ``ce`` in one pass over positions times vocabulary, with one block of gradients.

The plain functions (``kldistill.losses.kl``, ``kldistill.losses.ce``) say what is computed. Autograd walks their graph
with a full block of logits for every log-softmax and every read of single entries. Here a block is touched only to take
its softmax, to sum p~ times logits, and to write its gradient. What else the losses need of it are single entries, the
new tokens' columns and a log-normaliser a row: small tensors, which autograd handles as usual and whose gradients are
added to the block at the end.

Shape suffixes: A student rows, B teacher rows, P contexts, W and V vocabularies, M positions with a next token, J
subtree memberships, G tokens with descendants, Z forbidden pieces, O open pieces. Rows of contexts come first (see
``Chunk``), so the first P rows of A and of B are the contexts'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kldistill.losses.alignment import Alignment
from kldistill.losses.ce import ce
from kldistill.losses.kl import kl, kl_first, open_cell, segment_logsumexp, split_kl
from kldistill.losses.masked import masked_logits
from kldistill.losses.precision import at_least_float32

# Which of the three sums (first pieces, splits, next tokens) each loss adds up.
_PARTS: dict[Callable[..., Tensor], tuple[str, ...]] = {
    kl: ("first", "split"),
    kl_first: ("first",),
    ce: ("next",),
}


def can_fuse(function: Callable[..., Tensor]) -> bool:
    """Whether the function is one of the three, as it stands in its module or with ``masked`` set."""
    return _plain(function) in _PARTS


def asks_mask(function: Callable[..., Tensor]) -> bool:
    """Whether one of the three is to read the student's logits masked (see ``masked_logits``)."""
    return isinstance(function, partial) and bool(function.keywords.get("masked", False))


def fused(
    terms: Mapping[str, tuple[Callable[..., Tensor], float]],
    student_logits: Float[Tensor, "A W"],
    teacher_logits: Float[Tensor, "B V"] | None,
    alignment: Alignment,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum of terms that ``can_fuse``, and each term's own value (detached), all in nats.

    Args:
        terms: function and weight of each. All want the logits as they are, or all masked (``asks_mask``).
        student_logits, teacher_logits: rows of a ``Chunk``. The teacher's may be None where only ``ce`` is asked for.
        alignment: the chunk's.
    """
    asked = {asks_mask(function) for function, _ in terms.values()}
    assert len(asked) == 1, "masked and other terms at once"
    if asked == {True}:
        student_logits = masked_logits(student_logits, alignment)
    assert _in_order(alignment.student_row) and _in_order(alignment.teacher_row), "contexts must come first"
    weights: dict[str, float] = dict.fromkeys(("first", "split", "next"), 0.0)
    for function, weight in terms.values():
        for part in _PARTS[_plain(function)]:
            weights[part] += weight
    n = {"first": alignment.n_common, "split": alignment.n_common, "next": alignment.n_next}
    scaled = {part: weight / max(n[part], 1) for part, weight in weights.items()}
    total, *sums = _Fused.apply(student_logits, teacher_logits, alignment, scaled)  # type: ignore[misc]
    values = dict(zip(weights, sums, strict=True))
    return total, {
        name: torch.stack([values[part] / max(n[part], 1) for part in _PARTS[_plain(function)]]).sum().detach()
        for name, (function, _) in terms.items()
    }


class Measured(NamedTuple):
    """What one pass tells of a chunk: the KL's two terms by context, and the log-probability of the next tokens."""

    first_P: Float[Tensor, " P"]
    split_P: Float[Tensor, " P"]
    log_q_M: Float[Tensor, " M"]
    unresolved: Float[Tensor, ""]


@torch.no_grad()
def measure(
    student_logits: Float[Tensor, "A W"], teacher_logits: Float[Tensor, "B V"] | None, alignment: Alignment
) -> Measured:
    """The terms of ``kl_terms`` and the next tokens' log-probabilities in nats, and the teacher's unresolved mass.

    The unresolved mass (see ``unresolved_mass``) is summed over contexts. Without a teacher, all but the
    log-probabilities are 0.
    """
    student = _Student(at_least_float32(student_logits), alignment)
    teacher = None if teacher_logits is None else _Teacher(at_least_float32(teacher_logits), alignment)
    return _measured(student, teacher, alignment)


@torch.no_grad()
def measure_both(
    student_logits: Float[Tensor, "A W"], teacher_logits: Float[Tensor, "B V"] | None, alignment: Alignment
) -> tuple[Measured, Measured]:
    """What ``measure`` tells of the student as it is, and of the student whose mass on what cannot follow is shared out
    among the rest (``masked_logits``). The teacher's part of the work is done once.
    """
    teacher = None if teacher_logits is None else _Teacher(at_least_float32(teacher_logits), alignment)
    logits = (at_least_float32(student_logits), masked_logits(student_logits, alignment))
    free, masked = (_measured(_Student(logits_AW, alignment), teacher, alignment) for logits_AW in logits)
    return free, masked


def _measured(student: _Student, teacher: _Teacher | None, alignment: Alignment) -> Measured:
    log_q_M = student.entries(alignment.next_row, alignment.next_token) - student.log_norm_A[alignment.next_row]
    nothing_P = student.log_norm_A.new_zeros(len(alignment.student_row))
    if teacher is None:
        return Measured(nothing_P, nothing_P, log_q_M, nothing_P.sum())
    first_P = _first(student, teacher, alignment)
    split_P = _split(student, teacher, alignment) if len(alignment.split_position) else nothing_P
    return Measured(first_P, split_P, log_q_M, teacher.unresolved())


class _Fused(torch.autograd.Function):
    """The weighted total, and the sums of first-piece terms, of splits and of next tokens, all in nats.

    The gradient is made on the way forward, since whoever asks for a loss asks for it next.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        alignment: Alignment,
        weights: Mapping[str, float],
    ) -> tuple[Tensor, ...]:
        a = alignment
        teacher = None
        with torch.set_grad_enabled(ctx.needs_input_grad[0]):
            student = _Student(at_least_float32(student_logits.detach()), a)
            sums = dict.fromkeys(weights, student.log_norm_A.new_zeros(()))
            if weights["next"]:
                log_q_M = student.entries(a.next_row, a.next_token) - student.log_norm_A[a.next_row]
                sums["next"] = -log_q_M.sum()
            if weights["first"]:
                assert teacher_logits is not None
                teacher = _Teacher(at_least_float32(teacher_logits.detach()), a)
                sums["first"] = _first(student, teacher, a).sum()
            if weights["split"] and len(a.split_position):
                assert teacher is not None  # no loss has splits without first pieces
                sums["split"] = _split(student, teacher, a).sum()
            total = torch.stack([weight * sums[part] for part, weight in weights.items()]).sum()
        ctx.gradient_AW = None
        if total.requires_grad:
            ctx.gradient_AW = student.gradient(total, teacher, weights["first"]).to(student_logits.dtype)
        ctx.mark_non_differentiable(*(values := [sums[part].detach() for part in weights]))
        return total.detach(), *values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> Any:  # type: ignore[override]
        gradient_AW, scale = ctx.gradient_AW, outputs[0]
        assert gradient_AW is not None, "the gradient is given away once: there is no second way back"
        ctx.gradient_AW = None
        # Reading the scale is free on the CPU, and nearly always saves a pass over the block.
        if scale.device.type != "cpu" or scale != 1:
            gradient_AW.mul_(scale)
        return gradient_AW, None, None, None


class _Student:
    """The student's logits, read without a copy: normalisers, entries and columns that a gradient can go back to.

    Attributes:
        log_norm_A: logsumexp of every row.
        mass_PG: log of the subtree's mass for every token with descendants, before the row's normaliser is taken off.
    """

    def __init__(self, logits_AW: Float[Tensor, "A W"], alignment: Alignment) -> None:
        self.logits_AW = logits_AW
        self.q_AW = torch.softmax(logits_AW, dim=-1)
        self.n = len(alignment.student_row)
        self.log_norm_A = _log_norm(logits_AW, self.q_AW).requires_grad_()
        self.owner_G, owner_of_J = torch.unique(alignment.mass_owner, return_inverse=True)
        self.member_J = alignment.mass_member
        self.columns_PJ = logits_AW[: self.n].index_select(1, self.member_J).requires_grad_()
        self.place_W = torch.full((alignment.new_size,), -1, device=logits_AW.device)
        self.place_W[self.owner_G] = torch.arange(len(self.owner_G), device=logits_AW.device)
        self.mass_PG = segment_logsumexp(self.columns_PJ, owner_of_J, len(self.owner_G))
        self.read: list[tuple[Tensor, Tensor, Tensor]] = []

    def entries(self, row: Int[Tensor, " n"], token: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The logits of pairs of a row and a token."""
        values = self.logits_AW[row, token].requires_grad_()
        self.read.append((row, token, values))
        return values

    def masses(self, row: Int[Tensor, " n"], token: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The log of the subtree's mass of pairs of a row and a token, before the row's normaliser is taken off.

        The subtree of an old token is all tokens that begin with it.
        """
        if not len(self.owner_G):
            return self.entries(row, token)
        place = self.place_W[token]
        return torch.where(place >= 0, self.mass_PG[row, place.clamp_min(0)], self.entries(row, token))

    def gradient(self, total: Tensor, teacher: _Teacher | None, weight: float) -> Float[Tensor, "A W"]:
        """The gradient of ``total``, which was computed from what was read here, and of the term that was not read.

        That term is ``weight`` times the sum of -p~ times logits. The softmax is overwritten.
        """
        leaves = [self.log_norm_A, self.columns_PJ, *(values for _, _, values in self.read)]
        log_norm_A, columns_PJ, *entries = torch.autograd.grad(total, leaves, allow_unused=True)
        gradient_AW = self.q_AW.mul_(log_norm_A[:, None])
        if teacher is not None:
            scale_P = -weight / teacher.left_P
            gradient_AW[: self.n, : teacher.p_PV.shape[1]].addcmul_(teacher.p_PV, scale_P[:, None])
        if columns_PJ is not None:
            gradient_AW[: self.n].scatter_add_(1, self.member_J.expand_as(columns_PJ), columns_PJ)
        for (row, token, _), values in zip(self.read, entries, strict=True):
            if values is not None:
                gradient_AW.index_put_((row, token), values, accumulate=True)
        return gradient_AW


class _Teacher:
    """p~ as the losses want it, unscaled: p without forbidden, open and owners' entries, and what was taken out.

    Attributes:
        left_P: what p~ has to be divided by: the mass that is not forbidden.
        p_PV: p at all other pieces; 0 at forbidden and open ones and at those with descendants.
        open_O, owner_PG: p~ of open pieces, and of old tokens with descendants (columns as in ``owners``).
        entropy_P: sum of p~ log p~ over pieces that are not open.
    """

    def __init__(self, logits_BV: Float[Tensor, "B V"], alignment: Alignment) -> None:
        a = self.alignment = alignment
        self.logits_BV = logits_BV
        n = len(a.teacher_row)
        p_BV = torch.softmax(logits_BV, dim=-1)
        self.log_norm_B = _log_norm(logits_BV, p_BV)
        self.p_PV = p_BV[:n]
        if len(a.zero_position):
            self.p_PV[a.zero_position, a.zero_piece] = 0
            self.left_P = self.p_PV.sum(-1).clamp_min(torch.finfo(p_BV.dtype).tiny)
        else:
            self.left_P = p_BV.new_ones(n)
        self.open_O = self.p_PV[a.open_position, a.open_piece] / self.left_P[a.open_position]
        self.p_PV[a.open_position, a.open_piece] = 0
        self.closed_P = 1 - p_BV.new_zeros(n).index_add(0, a.open_position, self.open_O)
        mean_P = torch.linalg.vecdot(self.p_PV, logits_BV[:n]) / self.left_P
        self.entropy_P = mean_P - self.closed_P * (self.log_norm_B[:n] + self.left_P.log())
        owner_G = torch.unique(a.mass_owner)
        self.owner_G = owner_G[owner_G < a.old_size]
        self.owner_PG = self.p_PV.index_select(1, self.owner_G) / self.left_P[:, None]
        self.p_PV.index_fill_(1, self.owner_G, 0)

    def log_p(self, row: Int[Tensor, " n"], piece: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log p(piece | row) of pairs of a row and a piece, in nats."""
        return self.logits_BV[row, piece] - self.log_norm_B[row]

    def unresolved(self) -> Float[Tensor, ""]:
        """The sum over contexts of what ``unresolved_mass`` averages."""
        a = self.alignment
        log_p_G = self.log_p(a.frontier_row, a.frontier_piece)
        log_p_R = log_p_G.new_zeros(len(a.frontier_position)).index_add(0, a.frontier_factor, log_p_G)
        return self.open_O.sum() + log_p_R.exp().sum()


def _first(student: _Student, teacher: _Teacher, alignment: Alignment) -> Float[Tensor, " P"]:
    """KL(p~ || Q) over first pieces, in nats.

    It carries no gradient to the logits of ``p_PV``'s pieces. That one is -p~, and ``_Student.gradient`` writes it.
    """
    a, n, size = alignment, student.n, teacher.p_PV.shape[1]
    log_norm_P = student.log_norm_A[:n]
    with torch.no_grad():
        cross_P = torch.linalg.vecdot(teacher.p_PV, student.logits_AW[:n, :size]) / teacher.left_P
    first_P = teacher.entropy_P - cross_P + teacher.closed_P * log_norm_P
    if len(teacher.owner_G):
        # Owners are sorted, so the old ones come first.
        first_P = first_P - torch.linalg.vecdot(teacher.owner_PG, student.mass_PG[:, : len(teacher.owner_G)])
    if len(a.open_position):
        log_Q_open_O = student.masses(a.open_position, a.open_piece) - log_norm_P[a.open_position]
        first_P = first_P + open_cell(log_Q_open_O, teacher.open_O, a, n)
    return first_P


def _split(student: _Student, teacher: _Teacher, alignment: Alignment) -> Float[Tensor, " P"]:
    return split_kl(student.entries, student.masses, teacher.log_p, alignment, student.n)


def _log_norm(logits: Float[Tensor, "n v"], softmax: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """Logsumexp of each row, from its largest entry and that entry's probability."""
    return logits.amax(-1) - softmax.amax(-1).log()


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function behind a partial, as ``components.find`` gives it, that sets nothing or only ``masked``."""
    bare = isinstance(function, partial) and not function.args and function.keywords.keys() <= {"masked"}
    return function.func if bare else function  # type: ignore[union-attr]


def _in_order(rows: Int[Tensor, " P"]) -> bool:
    """Whether the rows are 0, 1, ..., P - 1; taken for granted on a device that would have to be waited for."""
    return rows.device.type != "cpu" or torch.equal(rows, torch.arange(len(rows)))
