"""What the student says of its new tokens, against what the teacher's push-forward asks for, context by context.

In the words of docs/method.md: a context c, the text that follows it with the pieces y1, y2, ..., its next student
token t. Beside the KL itself, this looks at signed differences between the student's masses and their targets:

- ``first``: all tokens that start with the piece y1; target p~(y1 | c).
- ``own``: the piece y1 as a token of its own ("stop" at y1); target p~(y1) times what the split at y1 leaves.
- ``children``: the new tokens that start with y1 (``first`` without ``own``).
- ``token``: the observed next token t; for a new one, target F(t) less its children's share.

Children that the text does not resolve stay with "stop" on both sides, as in the loss, so each pair is comparable.
Contexts that contradict the forest, or whose y1 is an open piece, have no such target: not a number there.

Shape suffixes: A student rows, B teacher rows, P contexts, S splits, C cells, F factors, W and V vocabularies.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kldistill.interpret.contexts import Context
from kldistill.losses.alignment import Alignment, as_the_forest_says
from kldistill.losses.kl import Pick, kl_terms, log_masses, log_stop_masses, split_targets
from kldistill.losses.precision import at_least_float32
from kldistill.tokens.pieces import PieceTable

SMALLEST = 1e-9  # a probability that is what is left of 1 is not known more exactly than that


@dataclass(frozen=True)
class Positions:
    """Contexts, one per entry; those of several texts can be joined.

    All but the KL terms are probabilities from 0 to 1; the KL terms are in nats.

    Attributes:
        token: the next student token t.
        after_new: whether the last token read is a new one.
        candidates: whether the split at y1 is resolved, that is, whether some new token starts with y1.
        probability: the student's probability of t alone (the mass ``token`` may hold unresolved children of t too).
        new_mass: the student's probability of all new tokens together.
        student, target: masses by name (see the module).
        kl_first, kl_split: the two terms of the loss.
    """

    token: Int[np.ndarray, " P"]
    after_new: Bool[np.ndarray, " P"]
    candidates: Bool[np.ndarray, " P"]
    probability: Float[np.ndarray, " P"]
    new_mass: Float[np.ndarray, " P"]
    student: dict[str, Float[np.ndarray, " P"]]
    target: dict[str, Float[np.ndarray, " P"]]
    kl_first: Float[np.ndarray, " P"]
    kl_split: Float[np.ndarray, " P"]


@dataclass(frozen=True)
class Cells:
    """Continuations of a first piece y1 into a new token's subtree, given that the text has y1.

    Attributes:
        student, target: the student's and the teacher's conditional probability.
        observed: whether the text went on so.
    """

    student: Float[np.ndarray, " C"]
    target: Float[np.ndarray, " C"]
    observed: Bool[np.ndarray, " C"]


MASSES = ("first", "own", "children", "token")


@torch.no_grad()
def measure(
    student_logits: Float[Tensor, "A W"],
    teacher_logits: Float[Tensor, "B V"],
    context: Context,
    pieces: PieceTable,
) -> tuple[Positions, Cells]:
    """Compare one text's student and teacher. A few matrices of tokens times vocabulary are held at a time.

    Args:
        student_logits, teacher_logits: one row per token of ``context.new_ids``, ``context.old_ids``.
    """
    a = context.alignment.to(student_logits.device)
    old_B, new_A = (torch.tensor(ids, device=a.student_row.device) for ids in (context.old_ids, context.new_ids))
    log_q_PW = torch.log_softmax(at_least_float32(student_logits)[a.student_row], -1)
    log_mass_PW = log_masses(log_q_PW, a.mass_owner, a.mass_member)
    log_norm_B = torch.logsumexp(at_least_float32(teacher_logits), -1).double()

    def log_p(row: Tensor, piece: Tensor) -> Tensor:
        return teacher_logits[row, piece].double() - log_norm_B[row]

    first_P, token_P = old_B[a.teacher_row + 1], new_A[a.student_row + 1]
    n = len(first_P)
    index_P = torch.arange(n, device=first_P.device)
    # p~: what is forbidden has probability 0, the rest is scaled up.
    forbidden_P = log_norm_B.new_zeros(n).index_add(
        0, a.zero_position, log_p(a.teacher_row[a.zero_position], a.zero_piece).exp()
    )
    first_t_P = log_p(a.teacher_row, first_P) - _log_of_rest(forbidden_P)
    first_q_P = log_mass_PW[index_P, first_P].double()
    log_stop_t_S, log_stop_q_S, cell_t_C = _splits(log_mass_PW, log_q_PW, log_p, a)

    def at_split(of_P: Tensor, values_S: Tensor, otherwise_P: Tensor) -> Tensor:
        """The value of the split at token ``of_P`` of each context; elsewhere ``otherwise_P``."""
        here_S = a.split_token == of_P[a.split_position]
        return otherwise_P.index_copy(0, a.split_position[here_S], values_S[here_S])

    nothing_P = torch.zeros_like(first_t_P)
    own_t_P = first_t_P + at_split(first_P, log_stop_t_S, nothing_P)
    own_q_P = at_split(first_P, log_stop_q_S, first_q_P)
    has_cell_S = torch.bincount(a.cell_split, minlength=len(a.split_position)).double()
    candidates_P = at_split(first_P, has_cell_S, nothing_P) > 0
    # F(t): the pieces after the first are those that the text shows; their rows end one before the token's last piece.
    path_B = log_p(torch.arange(len(old_B) - 1, device=old_B.device), old_B[1:]).cumsum(0)
    more_P = torch.tensor([len(pieces.old_pieces(int(token))) - 1 for token in token_P], device=old_B.device)
    # Only a cut that is not the forest's can lead beyond the end, and that has no target anyway.
    end_P = (a.teacher_row + more_P).clamp(max=len(path_B) - 1)
    whole_t_P = first_t_P + path_B[end_P] - path_B[a.teacher_row]
    token_t_P = whole_t_P + at_split(token_P, log_stop_t_S, nothing_P)
    token_q_P = at_split(token_P, log_stop_q_S, log_q_PW[index_P, token_P].double())
    target = {"first": first_t_P, "own": own_t_P, "token": token_t_P}
    student = {"first": first_q_P, "own": own_q_P, "token": token_q_P}
    unknown = ~torch.from_numpy(_resolved(context, pieces)).to(first_P.device)
    masses = [
        {name: value.exp().masked_fill(unknown, torch.nan).cpu().numpy() for name, value in side.items()}
        for side in (student, target)
    ]
    for side in masses:
        side["children"] = (side["first"] - side["own"]).clip(min=0)
    terms = kl_terms(student_logits, teacher_logits, a)
    positions = Positions(
        token=token_P.cpu().numpy(),
        after_new=(new_A[a.student_row] >= a.old_size).cpu().numpy(),
        candidates=candidates_P.cpu().numpy(),
        probability=log_q_PW[index_P, token_P].double().exp().cpu().numpy(),
        new_mass=log_q_PW[:, a.old_size :].exp().sum(-1).double().cpu().numpy(),
        student=masses[0],
        target=masses[1],
        kl_first=terms.first_P.double().cpu().numpy(),
        kl_split=terms.split_P.double().cpu().numpy(),
    )
    return positions, _cells(log_mass_PW, cell_t_C, first_P, old_B, a)


def _log_of_rest(taken: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log(1 - taken)."""
    return (1 - taken).clamp_min(SMALLEST).log()


def _splits(log_mass_PW: Tensor, log_q_PW: Tensor, log_p: Pick, a: Alignment) -> tuple[Tensor, Tensor, Tensor]:
    """For every split, the log of the target's share that stops there, and the log of the student's mass that does.

    The third result is the target share of every cell.
    """

    def log_q(context: Tensor, token: Tensor) -> Tensor:
        return log_q_PW[context, token].double()

    def log_mass(context: Tensor, token: Tensor) -> Tensor:
        return log_mass_PW[context, token].double()

    log_p_C, stop_S = split_targets(log_p, a)
    return stop_S.clamp_min(SMALLEST).log(), log_stop_masses(log_q, log_mass, a), log_p_C.exp()


def _resolved(context: Context, pieces: PieceTable) -> Bool[np.ndarray, " P"]:
    """Whether each context's observed cut is the forest's, and its first piece is neither forbidden nor open."""
    a, old = context.alignment, context.old_ids
    shut = {
        (position, piece)
        for positions, shut_pieces in ((a.zero_position, a.zero_piece), (a.open_position, a.open_piece))
        for position, piece in zip(positions.tolist(), shut_pieces.tolist(), strict=True)
    }
    resolved = []
    for position, row in enumerate(a.teacher_row.tolist()):
        at = int(a.student_row[position])
        last, observed = context.new_ids[at : at + 2]
        agrees = as_the_forest_says(pieces, last, observed, old, row + 1)
        resolved.append(agrees and (position, old[row + 1]) not in shut)
    return np.array(resolved, dtype=bool)


def _cells(log_mass_PW: Tensor, cell_t_C: Tensor, first_P: Tensor, old_B: Tensor, a: Alignment) -> Cells:
    """The cells of splits at first pieces whose outcome the text shows whole."""
    position_C = a.split_position[a.cell_split]
    whole_C = log_mass_PW[position_C, a.split_token[a.cell_split]]
    student_C = (log_mass_PW[position_C, a.cell_token] - whole_C).exp()
    shown_F = a.factor_row + 1 < len(old_B)
    same_F = shown_F & (old_B[(a.factor_row + 1).clamp(max=len(old_B) - 1)] == a.factor_piece)
    kept_C = (a.split_token == first_P[a.split_position])[a.cell_split]
    # A cell is shown, and observed, if all its factors are.
    both = [
        torch.zeros(len(cell_t_C), device=old_B.device).index_add(0, a.factor_cell, (~flags).float()) == 0
        for flags in (shown_F, same_F)
    ]
    kept_C &= both[0]
    return Cells(
        student_C[kept_C].double().cpu().numpy(), cell_t_C[kept_C].cpu().numpy(), both[1][kept_C].cpu().numpy()
    )
