"""The KL across two tokenizations: the push-forward of the teacher against the student.

Shape suffixes: A student rows, B teacher rows, P common boundaries (contexts c), V old vocabulary, W new
vocabulary, J subtree memberships, O open pairs, S splits, C cells. Source: our own construction, derived in
docs/method.md after the idea of arXiv 2508.15807. All in nats, in log space, with float32 softmaxes.

    L(c) = KL( p~(.|c) || Q(.|c) )
         + sum over w on the observed chain that have children of KL( split*(w) || split_q(w) )

Where an open piece exists (one that leads towards a longer token from an earlier boundary, but does not complete it),
its target depends on teacher probabilities that one pass does not show: all we know is that it is at most p~. Open
pieces then share one cell, which is penalised only where the student's mass exceeds that bound. So L stays a lower
bound of the exact KL.

These functions are the readable reference. ``kldistill.losses.fused`` computes the same in one pass, for training.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kldistill.losses.alignment import Alignment
from kldistill.losses.facts import loss
from kldistill.losses.masked import masked_logits
from kldistill.losses.precision import at_least_float32

_TINY = torch.finfo(torch.float32).tiny

# Reads single entries of a matrix that may not exist as a whole, by row and by column.
Pick = Callable[[Int[Tensor, " n"], Int[Tensor, " n"]], Float[Tensor, " n"]]


@loss(exact_pieces=True, sampled=True)
def kl(
    student_logits: Float[Tensor, "A W"],
    teacher_logits: Float[Tensor, "B V"],
    alignment: Alignment,
    masked: bool = False,
) -> Float[Tensor, ""]:
    """KL(q* || q) of the push-forward q* of the teacher, in nats per common boundary.

    In expectation over text drawn from the teacher it is the exact KL where every prefix of every new token is a
    token, and a lower bound elsewhere. Zero at q = q*.

    Args:
        student_logits: logits over the new vocabulary, a row per student token.
        teacher_logits: logits over the old vocabulary, a row per teacher token.
        alignment: the alignment of the same rows.
        masked: whether q is the student's distribution renormalised over what can follow.
    """
    student_logits = masked_logits(student_logits, alignment) if masked else student_logits
    terms = kl_terms(student_logits, teacher_logits, alignment)
    return (terms.first_P.sum() + terms.split_P.sum()) / max(alignment.n_common, 1)


@loss(exact_pieces=True, sampled=True)
def kl_first(
    student_logits: Float[Tensor, "A W"],
    teacher_logits: Float[Tensor, "B V"],
    alignment: Alignment,
    masked: bool = False,
) -> Float[Tensor, ""]:
    """The first-piece term of ``kl`` alone: KL(p~ || Q), a lower bound of ``kl``, in nats per common boundary."""
    student_logits = masked_logits(student_logits, alignment) if masked else student_logits
    log_mass_PW, _ = _student(student_logits, alignment)
    first_P = _first_pieces(log_mass_PW[:, : alignment.old_size], teacher_logits, alignment)
    return first_P.sum() / max(alignment.n_common, 1)


class KlTerms(NamedTuple):
    """Both terms of the loss for each context, in nats."""

    first_P: Float[Tensor, " P"]
    split_P: Float[Tensor, " P"]


def kl_terms(
    student_logits: Float[Tensor, "A W"], teacher_logits: Float[Tensor, "B V"], alignment: Alignment
) -> KlTerms:
    """The first-piece term and the sum of the observed splits, context by context (see ``kl``)."""
    log_mass_PW, log_q_PW = _student(student_logits, alignment)
    first_P = _first_pieces(log_mass_PW[:, : alignment.old_size], teacher_logits, alignment)
    if not len(alignment.split_position):
        return KlTerms(first_P, torch.zeros_like(first_P))

    def log_p(row_F: Tensor, piece_F: Tensor) -> Tensor:
        return _factors(teacher_logits, row_F, piece_F)

    def log_q(context: Tensor, token: Tensor) -> Tensor:
        return log_q_PW[context, token]

    def log_mass(context: Tensor, token: Tensor) -> Tensor:
        return log_mass_PW[context, token]

    return KlTerms(first_P, split_kl(log_q, log_mass, log_p, alignment, len(first_P)))


def log_masses(
    log_q_PW: Float[Tensor, "P W"], owner_J: Int[Tensor, " J"], member_J: Int[Tensor, " J"]
) -> Float[Tensor, "P W"]:
    """Log of the student's mass on the subtree of every token.

    For an old token, that is the mass of all tokens whose first piece it is.
    """
    if not len(owner_J):
        return log_q_PW
    owners_G, owner_of_J = torch.unique(owner_J, return_inverse=True)
    return log_q_PW.index_copy(1, owners_G, segment_logsumexp(log_q_PW[:, member_J], owner_of_J, len(owners_G)))


def segment_logsumexp(
    values: Float[Tensor, "*lead J"], segment_J: Int[Tensor, " J"], n: int
) -> Float[Tensor, "*lead n"]:
    """Logsumexp over the entries of the last dimension that share a segment; every segment has at least one entry."""
    index = segment_J.expand(values.shape)
    shape = (*values.shape[:-1], n)
    top = values.detach().new_full(shape, -torch.inf).scatter_reduce(-1, index, values.detach(), "amax")
    top = top.clamp_min(torch.finfo(values.dtype).min)  # a segment of -inf alone must not give nan
    total = values.new_zeros(shape).scatter_add(-1, index, (values - top.gather(-1, index)).exp())
    return top + total.log()


def _student(
    student_logits: Float[Tensor, "A W"], alignment: Alignment
) -> tuple[Float[Tensor, "P W"], Float[Tensor, "P W"]]:
    log_q_PW = F.log_softmax(at_least_float32(student_logits[alignment.student_row]), dim=-1)
    return log_masses(log_q_PW, alignment.mass_owner, alignment.mass_member), log_q_PW


def _target(teacher_logits: Float[Tensor, "B V"], alignment: Alignment) -> Float[Tensor, "P V"]:
    """log p~: the teacher without the pieces that would have completed a longer token from an earlier boundary."""
    logits_PV = at_least_float32(teacher_logits[alignment.teacher_row])
    logits_PV[alignment.zero_position, alignment.zero_piece] = -torch.inf
    return F.log_softmax(logits_PV, dim=-1)


def _first_pieces(
    log_Q_PV: Float[Tensor, "P V"], teacher_logits: Float[Tensor, "B V"], alignment: Alignment
) -> Float[Tensor, " P"]:
    with torch.no_grad():
        log_p_PV = _target(teacher_logits, alignment)
        p_PV = log_p_PV.exp()
        p_open_O = p_PV[alignment.open_position, alignment.open_piece]
        p_PV[alignment.open_position, alignment.open_piece] = 0
        # Where p~ is 0 the summand is 0, not 0 * inf.
        log_p_PV.masked_fill_(p_PV == 0, 0)
    first_P = (p_PV * log_p_PV).sum(-1) - torch.linalg.vecdot(p_PV, log_Q_PV)
    if not len(p_open_O):
        return first_P
    log_Q_open_O = log_Q_PV[alignment.open_position, alignment.open_piece]
    return first_P + open_cell(log_Q_open_O, p_open_O, alignment, len(first_P))


def open_cell(
    log_Q_open_O: Float[Tensor, " O"], p_open_O: Float[Tensor, " O"], alignment: Alignment, n: int
) -> Float[Tensor, " P"]:
    """What the cell of all open pieces adds to sum_{v not open} p~(v) log(p~(v) / Q(v)).

    With o = p~(open) and Q_o = Q(open): their true target mass is somewhere in [0, o]. If Q_o > o, the least KL that
    any such mass allows is at o itself: add o log(o / Q_o). Else no penalty is certain but that within the rest, given
    the rest: take (1 - o) log((1 - o) / (1 - Q_o)) off again. ``n`` is the number of contexts.
    """
    Q_open_O = log_Q_open_O.exp()
    o_P = p_open_O.new_zeros(n).index_add(0, alignment.open_position, p_open_O).clamp(0, 1)
    Q_P = Q_open_O.new_zeros(n).index_add(0, alignment.open_position, Q_open_O).clamp(0, 1 - 1e-6)
    too_much = torch.special.xlogy(o_P, o_P) - o_P * Q_P.clamp_min(_TINY).log()
    rest_P = 1 - o_P
    within = -(torch.special.xlogy(rest_P, rest_P) - rest_P * torch.log1p(-Q_P))
    has_open_P = torch.zeros(n, dtype=torch.bool, device=o_P.device)
    has_open_P[alignment.open_position] = True
    return torch.where(has_open_P, torch.where(o_P < Q_P, too_much, within), torch.zeros_like(o_P))


def split_targets(log_p: Pick, alignment: Alignment) -> tuple[Float[Tensor, " C"], Float[Tensor, " S"]]:
    """What the teacher asks for at every split, given its token.

    That is the log-probability of each resolved child, and the probability that is left for stopping there, in [0, 1].
    ``log_p`` picks the teacher's log-probabilities by row and piece. Where what follows a child may cut it otherwise
    (``may_cell``), its probability is the highest that it can be.
    """
    a = alignment
    log_p_C = _products(log_p, a)
    if len(a.less_cell):
        less_C = log_p_C.new_zeros(len(log_p_C)).index_add(0, a.less_cell, log_p(a.less_row, a.less_piece).exp())
        log_p_C = log_p_C + torch.log1p(-less_C.clamp(max=1))
    taken_S = log_p_C.new_zeros(len(a.split_position)).index_add(0, a.cell_split, log_p_C.exp())
    return log_p_C, (1 - taken_S).clamp(0, 1)


def _products(log_p: Pick, a: Alignment) -> Float[Tensor, " C"]:
    """Log-probability of the pieces of each resolved child, given its split's token."""
    log_p_F = log_p(a.factor_row, a.factor_piece)
    return log_p_F.new_zeros(len(a.cell_split)).index_add(0, a.factor_cell, log_p_F)


@torch.no_grad()
def _nearest_targets(
    log_p_C: Float[Tensor, " C"],
    stop_S: Float[Tensor, " S"],
    log_q_C: Float[Tensor, " C"],
    log_stop_S: Float[Tensor, " S"],
    log_p: Pick,
    a: Alignment,
) -> tuple[Float[Tensor, " C"], Float[Tensor, " S"]]:
    """Of the targets that a child may have whose cut depends on what follows, the one with the least KL.

    The child and stopping share what the others leave, so the KL is least where they share it as the student does, or
    at the nearest end of what is possible.
    """
    may_C = log_p_C.new_zeros(len(log_p_C)).index_add(0, a.may_cell, log_p(a.may_row, a.may_piece).exp())
    highest_C = log_p_C.exp()
    lowest_C = (highest_C - _products(log_p, a).exp() * may_C).clamp_min(0)
    shared_C = highest_C + stop_S[a.cell_split]
    asked_C = shared_C * torch.sigmoid(log_q_C - log_stop_S[a.cell_split])
    target_C = torch.where(may_C > 0, asked_C.clamp(lowest_C, highest_C), highest_C)
    stop_S = stop_S.index_add(0, a.cell_split, highest_C - target_C)
    return torch.where(may_C > 0, target_C.log(), log_p_C), stop_S


def log_stop_masses(log_q: Pick, log_mass: Pick, alignment: Alignment) -> Float[Tensor, " S"]:
    """Log of the student's mass on stopping at every split's token.

    Children that the text does not resolve share the cell of stopping.
    """
    a = alignment
    n = len(a.split_position)
    stays = [log_q(a.split_position, a.split_token), log_mass(a.split_position[a.rest_split], a.rest_token)]
    segment = torch.cat([torch.arange(n, device=a.rest_split.device), a.rest_split])
    return segment_logsumexp(torch.cat(stays), segment, n)


def split_kl(log_q: Pick, log_mass: Pick, log_p: Pick, alignment: Alignment, n: int) -> Float[Tensor, " P"]:
    """The sum of the observed splits' KL for each of ``n`` contexts.

    Args:
        log_q, log_mass: pick the student's log-probabilities, and its log-masses of subtrees, by context and token.
            A constant of each context may be missing from both: it cancels.
        log_p: picks the teacher's log-probabilities by row and piece.
    """
    a = alignment
    with torch.no_grad():
        log_p_C, stop_S = split_targets(log_p, a)
    log_whole_S = log_mass(a.split_position, a.split_token)
    log_q_C = log_mass(a.split_position[a.cell_split], a.cell_token) - log_whole_S[a.cell_split]
    log_stop_S = log_stop_masses(log_q, log_mass, a) - log_whole_S
    if len(a.may_cell):
        log_p_C, stop_S = _nearest_targets(log_p_C, stop_S, log_q_C, log_stop_S, log_p, a)
    split_S = torch.special.xlogy(stop_S, stop_S) - stop_S * log_stop_S
    split_S = split_S.index_add(0, a.cell_split, log_p_C.exp() * (log_p_C.clamp_min(-1e4) - log_q_C))
    return split_S.new_zeros(n).index_add(0, a.split_position, split_S)


def _factors(
    teacher_logits: Float[Tensor, "B V"], row_F: Int[Tensor, " F"], piece_F: Int[Tensor, " F"]
) -> Float[Tensor, " F"]:
    """log p(piece | row), without a log-softmax of every row at once."""
    log_norm_B = torch.logsumexp(at_least_float32(teacher_logits), dim=-1)
    return at_least_float32(teacher_logits[row_F, piece_F]) - log_norm_B[row_F]


@torch.no_grad()
def unresolved_mass(teacher_logits: Float[Tensor, "B V"], alignment: Alignment) -> Float[Tensor, ""]:
    """Upper bound of the teacher's mass on what the loss could not resolve, averaged per common boundary.

    The mass is a probability. It counts open pieces, and prefixes of children that leave the observed text before their
    last piece. It is zero where every prefix of every new token is a token.
    """
    a = alignment
    log_p_PV = _target(teacher_logits, a)
    open_mass = log_p_PV[a.open_position, a.open_piece].exp().sum()
    log_p_G = _factors(teacher_logits, a.frontier_row, a.frontier_piece)
    log_p_R = log_p_G.new_zeros(len(a.frontier_position)).index_add(0, a.frontier_factor, log_p_G)
    return (open_mass + log_p_R.exp().sum()) / max(a.n_common, 1)
