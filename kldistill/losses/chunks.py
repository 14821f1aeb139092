"""Alignments of a batch as one, and cut into chunks that are small enough for a block of vocabulary-sized logits.

Only index arithmetic: nothing here knows what a loss does with the lists of an ``Alignment``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from kldistill.losses.alignment import COUNTS, IDS, LISTS, TENSORS, Alignment


def concatenate(alignments: Sequence[Alignment], student_rows: Sequence[int], teacher_rows: Sequence[int]) -> Alignment:
    """Alignments of a batch's sequences as one, for rows of states that stand one sequence after the other.

    Args:
        alignments: one per sequence, all of one piece table.
        student_rows, teacher_rows: how many rows each of the student's and of the teacher's sequences has, padding
            included.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in LISTS}
    passed = {**dict.fromkeys(LISTS, 0), "student": 0, "teacher": 0}  # entries, and rows, of the sequences before
    for alignment, n_student, n_teacher in zip(alignments, student_rows, teacher_rows, strict=True):
        for name, about in LISTS.items():
            values: Tensor = getattr(alignment, name)
            parts[name].append(values if about["into"] is None else values + passed[about["into"]])
        for name in LISTS:
            passed[name] += len(getattr(alignment, name))
        passed["student"] += n_student
        passed["teacher"] += n_teacher
    totals = {name: sum(getattr(alignment, name) for alignment in alignments) for name in COUNTS}
    return replace(alignments[0], **{name: torch.cat(values) for name, values in parts.items()}, **totals)


@dataclass(frozen=True)
class Chunk:
    """A part of a batch's alignment that is small enough for a block of vocabulary-sized logits.

    ``alignment``'s rows count within ``student_rows`` and ``teacher_rows``, which are rows of the batch. Contexts come
    first in both, in order (``student_row`` and ``teacher_row`` are 0, 1, ..., P - 1), so that a loss reads them as a
    slice and need not copy a block of logits.
    """

    student_rows: Int[Tensor, " A"]
    teacher_rows: Int[Tensor, " B"]
    alignment: Alignment

    def tensors(self) -> list[Tensor]:
        """All that it holds; chunks of one batch share some of them."""
        return [self.student_rows, self.teacher_rows, *(getattr(self.alignment, name) for name in TENSORS)]

    def of(self, tensors: Iterator[Tensor]) -> Chunk:
        """The same chunk with the next ones of ``tensors``, in the order of ``tensors()``."""
        rows = next(tensors), next(tensors)
        return Chunk(*rows, replace(self.alignment, **{name: next(tensors) for name in TENSORS}))

    def to(self, device: torch.device | str) -> Chunk:
        """The same chunk with every tensor on ``device``."""
        return self.of(tensor.to(device) for tensor in self.tensors())


def chunks(alignment: Alignment, size: int) -> Iterator[Chunk]:
    """Cut an alignment into chunks of at most ``size`` student positions, whose losses add up to the whole's."""
    for start in range(0, len(alignment.next_row), size):
        rows = alignment.next_row[start : start + size]
        yield _cut(alignment, rows)


def renumbered(alignment: Alignment, number_W: Int[Tensor, " W"], old_size: int) -> Alignment:
    """An alignment over a part of the vocabulary.

    Args:
        number_W: the place of every id in that part, the new tokens' behind all others and all of them there; any
            number where the alignment does not name the id.
        old_size: old ids in the part.
    """
    n_new = alignment.new_size - alignment.old_size
    ids = {name: number_W[getattr(alignment, name)] for name in IDS}
    return replace(alignment, **ids, old_size=old_size, new_size=old_size + n_new)


def only(alignment: Alignment, rows: Int[Tensor, " A"]) -> Alignment:
    """The part of an alignment that says what follows these student rows, with denominators of its own.

    Contradictions and unresolved splits stay counted over the whole text.
    """
    part = _of_rows(alignment, rows)
    n_next, n_common = len(part.next_row), len(part.student_row)
    return replace(part, n_next=n_next, n_common=n_common, n_left_out=n_next - n_common)


def _of_rows(alignment: Alignment, rows: Int[Tensor, " A"]) -> Alignment:
    """The entries of all lists that belong to these student rows; rows keep their numbers, and counts stay."""
    keep: dict[str, Tensor] = {}
    cut: dict[str, Tensor] = {}
    for name, about in LISTS.items():  # in order: what is pointed to is decided before what points to it
        values: Tensor = getattr(alignment, name)
        into = about["into"]
        if about["beside"] is not None:
            keep[name] = keep[about["beside"]]
        elif into == "student":
            keep[name] = torch.isin(values, rows)
        else:
            keep[name] = keep[into][values]
        cut[name] = values[keep[name]]
        if into in LISTS:
            cut[name] = (torch.cumsum(keep[into], 0) - 1)[cut[name]]
    return replace(alignment, **cut)


def _cut(alignment: Alignment, rows: Int[Tensor, " A"]) -> Chunk:
    part = _of_rows(alignment, rows)
    cut: dict[str, Tensor] = {name: getattr(part, name) for name in LISTS}
    whole = {}
    for side, first in (("student", "student_row"), ("teacher", "teacher_row")):
        names = [name for name, about in LISTS.items() if about["into"] == side]
        whole[side], places = _contexts_first(cut[first], torch.cat([cut[name] for name in names]))
        cut |= zip(names, places.split([len(cut[name]) for name in names]), strict=True)
    return Chunk(whole["student"], whole["teacher"], replace(alignment, **cut))


def _contexts_first(first: Int[Tensor, " P"], rows: Int[Tensor, " n"]) -> tuple[Int[Tensor, " A"], Int[Tensor, " n"]]:
    """All different rows, those of ``first`` (all different) before the others, and the place of each of ``rows``."""
    different, place = torch.unique(rows, return_inverse=True)
    other = ~torch.isin(different, first)
    order = torch.cat([torch.searchsorted(different, first), torch.nonzero(other)[:, 0]])
    return different[order], torch.argsort(order)[place]
