"""Alignments of a batch as one, and cut into chunks that are small enough for a block of vocabulary-sized logits.

Only index arithmetic: nothing here knows what a loss does with the lists of an ``Alignment``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from kldistill.losses.alignment import COUNTS, LISTS, Alignment

# Which list each index list points into: what concatenating has to shift, and what a chunk has to renumber.
_POINTS_TO = {
    "zero_position": "student_row",
    "open_position": "student_row",
    "split_position": "student_row",
    "cell_split": "split_position",
    "rest_split": "split_position",
    "factor_cell": "cell_split",
    "frontier_position": "student_row",
    "frontier_factor": "frontier_position",
}
_STUDENT_ROWS = ("next_row", "student_row")
_TEACHER_ROWS = ("teacher_row", "factor_row", "frontier_row")
# Lists of the same length that a chunk must cut alike, named after the list that decides.
_BESIDE = {
    "next_token": "next_row",
    "teacher_row": "student_row",
    "zero_piece": "zero_position",
    "open_piece": "open_position",
    "split_token": "split_position",
    "cell_token": "cell_split",
    "rest_token": "rest_split",
    "factor_row": "factor_cell",
    "factor_piece": "factor_cell",
    "frontier_row": "frontier_factor",
    "frontier_piece": "frontier_factor",
}


def concatenate(alignments: Sequence[Alignment], student_rows: int, teacher_rows: int) -> Alignment:
    """Alignments of a batch's sequences as one, for rows of states that are padded and flattened.

    Args:
        alignments: one per sequence, all of one piece table.
        student_rows, teacher_rows: padded length of the student's and of the teacher's sequences.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in LISTS}
    sizes = dict.fromkeys(LISTS, 0)
    for index, alignment in enumerate(alignments):
        for name in LISTS:
            values: Tensor = getattr(alignment, name)
            if name in _STUDENT_ROWS:
                values = values + index * student_rows
            elif name in _TEACHER_ROWS:
                values = values + index * teacher_rows
            elif name in _POINTS_TO:
                values = values + sizes[_POINTS_TO[name]]
            parts[name].append(values)
        for name in LISTS:
            sizes[name] += len(getattr(alignment, name))
    totals = {name: sum(getattr(alignment, name) for alignment in alignments) for name in COUNTS}
    return replace(alignments[0], **{name: torch.cat(values) for name, values in parts.items()}, **totals)


@dataclass(frozen=True)
class Chunk:
    """A part of a batch's alignment that is small enough for a block of vocabulary-sized logits.

    ``alignment``'s rows count within ``student_rows`` and ``teacher_rows``, which are rows of the batch.
    """

    student_rows: Int[Tensor, " A"]
    teacher_rows: Int[Tensor, " B"]
    alignment: Alignment


def chunks(alignment: Alignment, size: int) -> Iterator[Chunk]:
    """Cut an alignment into chunks of at most ``size`` student positions. Losses of the chunks add up to the
    whole's loss.
    """
    for start in range(0, len(alignment.next_row), size):
        rows = alignment.next_row[start : start + size]
        yield _cut(alignment, rows)


def _cut(alignment: Alignment, rows: Int[Tensor, " A"]) -> Chunk:
    keep = {
        "next_row": torch.isin(alignment.next_row, rows),
        "student_row": torch.isin(alignment.student_row, rows),
    }
    for name, target in _POINTS_TO.items():  # in order: what is pointed to is decided before what points to it
        keep[name] = keep[target][getattr(alignment, name)]
    cut: dict[str, Tensor] = {}
    for name in LISTS:
        cut[name] = getattr(alignment, name)[keep[_BESIDE.get(name, name)]]
        if name in _POINTS_TO:
            renumber = torch.cumsum(keep[_POINTS_TO[name]], 0) - 1
            cut[name] = renumber[cut[name]]
    student_rows = torch.unique(torch.cat([cut[name] for name in _STUDENT_ROWS]))
    teacher_rows = torch.unique(torch.cat([cut[name] for name in _TEACHER_ROWS]))
    for names, whole in ((_STUDENT_ROWS, student_rows), (_TEACHER_ROWS, teacher_rows)):
        for name in names:
            cut[name] = torch.searchsorted(whole, cut[name])
    return Chunk(student_rows, teacher_rows, replace(alignment, **cut))
