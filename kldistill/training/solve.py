"""The output rows solved on the teacher's own states: a convex problem that needs no pass through the body.

At the teacher's hidden state h the old logits are the teacher's, and a new token's output row o enters the loss only
through o . h. Old pieces that no new token is made of keep their ratios among each other, whatever the new rows are, so
all of them together are one column: their common log-mass. With S pieces in new tokens and N new tokens a position
needs S + 1 + N columns in place of W = V + N (429 + 1 + 512 for 49,664 on SmolLM2), and any loss over logits that
treats those pieces alike (``kl``, ``kl_first``; ``ce`` up to a constant) has the same value and the same gradient there
as over the whole vocabulary. docs/method.md, section 9, has the derivation.

The teacher's normaliser takes its head over the whole old vocabulary once a position. ``distill.sampled_softmax`` has
it estimated from a part of that, drawn anew for every few texts (``losses.sampled``); held-out text is read whole.

Shape suffixes: U teacher rows of a text, A student rows and B teacher rows of a chunk, D width, N new tokens, C the old
tokens that are read, R = S + 1 reduced old columns, the last of which is the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kldistill.losses.alignment import Alignment
from kldistill.losses.chunks import chunks, concatenate, renumbered
from kldistill.losses.sampled import Columns, Sampling
from kldistill.losses.weighted import Term, summed
from kldistill.rows.student import Student
from kldistill.runtime.devices import suited
from kldistill.runtime.progress import Bar
from kldistill.tokens.pieces import PieceTable
from kldistill.training.config import SolveConfig
from kldistill.training.cuts import TwoCuts

# Of a part's rows, how many parts of it have their logits over the whole old vocabulary one after the other.
IN_TURN = 8
# Share of the solved row in a tied one. On SmolLM2 without any training, KL on validation text: 0.5 0.699, 0.7 0.620, 1
# 0.791; the mean of the pieces 0.975, and separate rows (last piece, solved) 0.665.
SOLVED = 0.7


@dataclass(frozen=True)
class Part:
    """Some texts' positions in the reduced vocabulary: the student's state at each is the teacher's."""

    hidden_AD: Float[Tensor, "A D"]
    old_AR: Float[Tensor, "A R"]
    teacher_BR: Float[Tensor, "B R"]
    alignment: Alignment


class Readout:
    """Texts whose teacher states the output rows are fitted to.

    Args:
        student: for its heads; its body is not run.
        cuts: the texts in both cuts, with the teacher's states.
        hidden: the teacher's states of a text by its index; None takes those that were stored.
        chunk: student positions of one part, about: a text is not cut, unless it is longer by itself. Its logits are
            few (943 columns where training has 49,664), so a part is several texts. None: what suits the device.
        most: texts that are used, at most: the first ones, which cover the new tokens best.
        sampling: which old tokens normalisers are estimated from. None: all, so they are exact.
    """

    def __init__(
        self,
        student: Student,
        cuts: TwoCuts,
        hidden: Callable[[int], Float[Tensor, "U D"]] | None = None,
        chunk: int | None = None,
        most: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.student, pieces = student, cuts.pieces
        hidden = hidden or cuts.states.hidden
        chunk = chunk or suited(student.lm_head.weight.device).solve_positions
        used = sorted({piece for row in pieces.pieces for piece in row})
        self.columns_S = torch.tensor(used, dtype=torch.long)  # none, where new tokens have no pieces
        self.number_W = torch.full((pieces.new_size,), len(used))  # of every id in the reduced vocabulary
        self.number_W[self.columns_S] = torch.arange(len(used))
        self.number_W[pieces.old_size :] = len(used) + 1 + torch.arange(len(pieces.pieces))
        if sampling is not None:
            sampling = sampling._replace(always_V=sampling.always_V.index_fill(0, self.columns_S, True))
        lengths = cuts.lengths[: most or len(cuts)]
        aligned = [cuts.alignment(index) for index in range(len(lengths))]
        n = sum(alignment.n_common for alignment in aligned)
        self.parts: list[Part] = []
        with Bar("Reading what to solve", total=sum(lengths), unit="tokens") as bar:
            for number, texts in enumerate(in_turn(lengths, chunk)):
                columns = None if sampling is None else sampling.over([], number)[1]
                states, sizes = [hidden(index) for index in texts], [lengths[index] for index in texts]
                self.parts += self._parts(states, sizes, [aligned[index] for index in texts], columns, n, chunk)
                bar.advance(sum(sizes))

    @torch.no_grad()
    def _parts(
        self,
        hidden: Sequence[Float[Tensor, "U D"]],
        lengths: Sequence[int],
        aligned: Sequence[Alignment],
        columns: Columns | None,
        n: int,
        chunk: int,
    ) -> list[Part]:
        """Parts of texts that stand side by side. Positions that are no common boundary have no state of the teacher's
        and are left out.
        """
        device = self.student.lm_head.weight.device
        alignment = concatenate(aligned, lengths, [len(states) for states in hidden])
        hidden_UD = torch.cat(list(hidden)).to(device)
        by_turns = hidden_UD.split(max(1, chunk // IN_TURN))
        reduced_UR = torch.cat([self._reduce(rows_UD, columns) for rows_UD in by_turns])
        teacher_row = teacher_rows(alignment, sum(lengths))
        known_M = teacher_row[alignment.next_row] >= 0
        reduced = renumbered(alignment, self.number_W, len(self.columns_S) + 1)
        whole = replace(
            reduced,
            next_row=reduced.next_row[known_M],
            next_token=reduced.next_token[known_M],
            n_common=n,
            n_next=n,
        )
        made_parts = []
        for part in chunks(whole, chunk):
            rows_A = teacher_row[part.student_rows].to(device)
            teacher_BR = reduced_UR[part.teacher_rows.to(device)]
            made_parts.append(Part(hidden_UD[rows_A], reduced_UR[rows_A], teacher_BR, part.alignment.to(device)))
        return made_parts

    def _reduce(self, hidden_UD: Float[Tensor, "U D"], columns: Columns | None) -> Float[Tensor, "U R"]:
        """The teacher's logits of the pieces of new tokens, and one that has the mass of all others together."""
        places_S = self.columns_S
        if columns is None:
            logits_UC = self.student.logits_old(hidden_UD).float()
        else:
            ids_C, log_weight_C = (of.to(hidden_UD.device) for of in columns)
            logits_UC = self.student.logits_old(hidden_UD, ids_C).float() + log_weight_C
            places_S = torch.searchsorted(columns.ids_S, self.columns_S)
        log_norm_U = logits_UC.logsumexp(-1)
        kept_US = logits_UC[:, places_S.to(logits_UC.device)]
        # In float64, as 1 - share keeps few digits where nearly all mass is on pieces of new tokens.
        share_U = (kept_US - log_norm_U[:, None]).double().exp().sum(-1)
        rest_U = log_norm_U + (1 - share_U).clamp_min(1e-12).log().float()
        return torch.cat([kept_US, rest_U[:, None]], -1)

    def loss(self, output_ND: Float[Tensor, "N D"], terms: Mapping[str, Term], *, backward: bool = False) -> float:
        """The weighted sum of the terms over all texts, in nats per position.

        With ``backward`` its gradient is added to ``output_ND.grad``, a chunk at a time.
        """
        asked = {name: term for name, term in terms.items() if not term.hidden}
        total = 0.0
        for part in self.parts:
            with torch.set_grad_enabled(backward):
                new_AN = self.student.logits_new(part.hidden_AD, output_ND).float()
                logits = (torch.cat([part.old_AR, new_AN], -1), part.teacher_BR)
                # The student's states are the teacher's here, so a term of hidden states is 0 whatever the rows are.
                value, _ = summed(asked, logits, (part.hidden_AD, None), part.alignment)
            if backward:
                value.backward()
            total += value.item()
        return total


def solve(
    train: Readout,
    held_out: Readout,
    start_ND: Float[Tensor, "N D"],
    terms: Mapping[str, Term],
    cfg: SolveConfig,
    say: Callable[[str], None],
) -> tuple[Float[Tensor, "N D"], dict[str, float]]:
    """The output rows that minimise the loss on ``train`` with a ridge towards the start, chosen on ``held_out``.

    L-BFGS (Liu and Nocedal, 1989) along the path of ridges from the strongest to the weakest, each from where the one
    before ended. It stops as soon as the held-out loss rises, and gives back the rows with the lowest.

    Returns:
        The rows, and figures: the loss before and after on both texts (nats per position) and the ridge chosen.
    """
    scale = train.student.lm_head.weight.float().square().sum(-1).median().item() * len(start_ND)
    rows_ND = start_ND.detach().clone().requires_grad_()
    best_ND, before = start_ND.detach().clone(), held_out.loss(start_ND, terms)
    figures = {"solve/train_before": train.loss(start_ND, terms), "solve/validation_before": before}
    best, chosen = before, float("inf")
    # How many passes the line searches ask for, and which ridge is the last, shows on the way: no total.
    with Bar("Solving output rows", unit="passes") as bar:
        for ridge in sorted(cfg.ridges, reverse=True):
            optimizer = torch.optim.LBFGS(
                [rows_ND],
                max_iter=cfg.iterations,
                history_size=10,
                line_search_fn="strong_wolfe",
                tolerance_change=1e-7,
            )

            def closure(ridge: float = ridge, optimizer: torch.optim.LBFGS = optimizer) -> float:
                optimizer.zero_grad()
                loss = train.loss(rows_ND, terms, backward=True)
                bar.advance()
                away_ND = rows_ND.detach() - start_ND
                assert rows_ND.grad is not None
                rows_ND.grad.add_(away_ND, alpha=ridge / scale)
                return loss + ridge / 2 * away_ND.square().sum().item() / scale

            optimizer.step(closure)  # type: ignore[arg-type]
            held_out_loss = held_out.loss(rows_ND.detach(), terms)
            if not held_out_loss < best:
                break
            best, best_ND, chosen = held_out_loss, rows_ND.detach().clone(), ridge
    figures |= {"solve/train_after": train.loss(best_ND, terms), "solve/validation_after": best, "solve/ridge": chosen}
    say(
        f"Output rows solved at the teacher's states: {before:.3f} to {best:.3f} nats a position on validation text, "
        f"{figures['solve/train_before']:.3f} to {figures['solve/train_after']:.3f} on training text "
        f"(ridge {chosen:g})."
    )
    return best_ND, {name: value for name, value in figures.items() if value != float("inf")}


def tied_rows(student: Student, pieces: PieceTable, solved_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """One row a token that is written and read: the solved row says where the token is due, the row of its last piece
    how what follows it reads it. A token without pieces gets the solved row alone.
    """
    last = torch.tensor([row[-1] if row else -1 for row in pieces.pieces], device=solved_ND.device)
    known_N1 = (last >= 0)[:, None]
    last_ND = student.embedding.weight[last.clamp(min=0)].to(solved_ND.dtype)
    return torch.where(known_N1, SOLVED * solved_ND + (1 - SOLVED) * last_ND, solved_ND)


def in_turn(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in order, in groups that together are no longer than ``size``; what is longer by itself stands alone."""
    groups: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if length > room or not groups:
            groups.append([])
            room = size
        groups[-1].append(index)
        room -= length
    return groups


def teacher_rows(alignment: Alignment, n_new: int) -> Int[Tensor, " T"]:
    """For each student row the teacher row with the same context; -1 where there is none."""
    rows_T = torch.full((n_new,), -1)
    rows_T[alignment.student_row] = alignment.teacher_row
    return rows_T
