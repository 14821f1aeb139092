"""Scores texts without generating: nats of a text, KL to the teacher, and what the student does with its new tokens.

Shape suffixes: B texts of a batch, T padded tokens, P common boundaries, M positions with a next token,
W new vocabulary.
"""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor
from torch.nn import functional as F

from kldistill.losses.fused import measure, measure_both
from kldistill.rows.student import Student
from kldistill.runtime.progress import Bar
from kldistill.runtime.shares import ALONE, Share
from kldistill.training.batches import collate
from kldistill.training.cuts import TwoCuts
from kldistill.training.padding import by_length, pad
from kldistill.training.states import States, n_scored, scored_rows
from kldistill.training.sums import Score

# What scoring adds up of a text; the rest of a ``Score`` says which text it is.
SUMMED = [field.name for field in fields(Score) if field.name not in ("document", "n_bytes", "n_tokens")]


@torch.no_grad()
def score_original(
    model: Student, states: States, *, chunk: int, device: torch.device, description: str, share: Share = ALONE
) -> list[Score]:
    """Scores of the original model on texts whose hidden states are at hand; all of them, whoever computed them."""
    scores = [
        Score(snippet.document, snippet.scored_bytes, n_scored(snippet, sizes))
        for snippet, sizes in zip(states.snippets, states.sizes, strict=True)
    ]
    mine = share.mine(range(len(scores)))
    with Bar(description, total=sum(len(states.ids[index]) for index in mine), unit="tokens") as bar:
        for index in mine:
            ids = states.ids[index]
            hidden_TD = states.hidden(index).to(device)[:-1]
            targets_T = torch.tensor(ids[1:], device=device)
            if (rows := scored_rows(states.snippets[index], states.sizes[index])) is not None:
                hidden_TD, targets_T = hidden_TD[rows.to(device)], targets_T[rows.to(device)]
            nats = hidden_TD.new_zeros((), dtype=torch.float32)
            for start in range(0, len(targets_T), chunk):
                logits = model.logits_old(hidden_TD[start : start + chunk]).float()
                nats += F.cross_entropy(logits, targets_T[start : start + chunk], reduction="sum")
            scores[index].nats = nats.item()
            bar.advance(len(ids))
    return summed(scores, share)


@torch.no_grad()
def score_student(
    student: Student,
    cuts: TwoCuts,
    *,
    teacher: bool,
    batch_size: int,
    chunk: int,
    device: torch.device,
    description: str,
    share: Share = ALONE,
    masked: bool = False,
) -> list[Score]:
    """Scores of the extended model, one per text; with ``teacher`` also its KL to the original one (exact pieces
    needed), and with ``masked`` both again of the student whose mass on what cannot follow is shared out among the
    rest. All processes of ``share`` call this with the same texts, and all get all scores.
    """
    scores = [
        Score(snippet.document, snippet.scored_bytes, n_scored(snippet, new.sizes))
        for snippet, new in zip(cuts.states.snippets, cuts.new, strict=True)
    ]
    every = by_length(cuts.new_ids, batch_size)
    batches = share.mine(every)
    with Bar(description, total=sum(cuts.lengths[index] for batch in batches for index in batch), unit="tokens") as bar:
        for batch in batches:
            _score_batch([scores[index] for index in batch], student, cuts, batch, teacher, masked, chunk, device)
            bar.advance(sum(len(cuts.new_ids[index]) for index in batch))
    if share.idle(every):
        student.hidden(pad([cuts.new_ids[index] for index in every[-1]], device)[0])
    return summed(scores, share)


def summed(scores: list[Score], share: Share) -> list[Score]:
    """The scores of all texts, each of which one process of ``share`` has filled in."""
    table = torch.tensor([[getattr(score, name) for name in SUMMED] for score in scores], dtype=torch.float64)
    for score, row in zip(scores, share.total(table).tolist(), strict=True):
        for name, value in zip(SUMMED, row, strict=True):
            setattr(score, name, type(getattr(score, name))(value))
    return scores


def _score_batch(
    scores: Sequence[Score],
    student: Student,
    cuts: TwoCuts,
    batch: Sequence[int],
    teacher: bool,
    masked: bool,
    chunk: int,
    device: torch.device,
) -> None:
    """Add one batch's sums to its scores."""
    hidden = [cuts.states.hidden(index) for index in batch] if teacher else None
    lengths = [len(cuts.states.ids[index]) for index in batch]
    aligned = [cuts.alignment(index) for index in batch]
    made = collate(aligned, [cuts.new_ids[index] for index in batch], hidden, lengths, chunk).to(device)
    hidden_BTD = student.hidden(made.new_ids, made.new_mask)
    width = hidden_BTD.shape[1]
    states_TD = hidden_BTD.flatten(0, 1)
    teacher_UD = None if made.old_hidden is None else made.old_hidden.flatten(0, 1)
    names = ("nats", "kl", "adopted", "new_nats", "nats_masked", "kl_masked", "refused")
    # Added up where they are: each figure that is read makes an accelerator wait.
    kind = torch.float32 if device.type == "mps" else torch.float64
    sums = {name: torch.zeros(len(batch), dtype=kind, device=device) for name in names}
    counts = {name: torch.zeros_like(sums["nats"], dtype=torch.int64) for name in ("n_new", "n_common", "n_masked")}
    unresolved = torch.zeros((), dtype=kind, device=device)

    def add(into: dict[str, Tensor], name: str, rows: Tensor, values: Tensor) -> None:
        into[name].index_add_(0, rows // width, values.to(into[name].dtype))

    for part in made.chunks:
        a = part.alignment
        logits_AW = student.logits(states_TD[part.student_rows])
        teacher_BV = None if teacher_UD is None else student.logits_old(teacher_UD[part.teacher_rows])
        both = measure_both(logits_AW, teacher_BV, a) if masked else (measure(logits_AW, teacher_BV, a), None)
        measured, under_mask = both
        log_q_M = measured.log_q_M
        rows_M = part.student_rows[a.next_row]
        add(sums, "nats", rows_M, -log_q_M)
        new_M = a.next_token >= a.old_size
        add(sums, "adopted", rows_M[new_M], log_q_M[new_M].exp())
        add(sums, "new_nats", rows_M[new_M], -log_q_M[new_M])
        add(counts, "n_new", rows_M, new_M)
        if under_mask is not None:
            add(counts, "n_masked", rows_M, torch.ones_like(rows_M))
            add(sums, "nats_masked", rows_M, -under_mask.log_q_M)
            # What is masked lifts all that is left by the same factor.
            add(sums, "refused", rows_M, -torch.expm1(log_q_M - under_mask.log_q_M))
        if teacher_UD is not None:
            rows_P = part.student_rows[a.student_row]
            add(sums, "kl", rows_P, measured.first_P + measured.split_P)
            add(counts, "n_common", rows_P, torch.ones_like(rows_P))
            if under_mask is not None:
                add(sums, "kl_masked", rows_P, under_mask.first_P + under_mask.split_P)
            unresolved += measured.unresolved
    found = {name: values.tolist() for name, values in {**sums, **counts}.items()}
    share = unresolved.item() / len(scores)  # known for the batch as a whole: shared among its texts
    for row, score in enumerate(scores):
        for name, values in found.items():
            setattr(score, name, values[row])
        score.unresolved = share
        score.left_out, score.contradictions = aligned[row].n_left_out, aligned[row].n_contradictions
