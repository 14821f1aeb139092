"""Alignment of two tokenizations, and its chunks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kldistill.losses import ce, hidden, kl
from kldistill.losses.alignment import LISTS, align, common_boundaries
from kldistill.losses.chunks import chunks, concatenate
from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.pieces import PieceTable
from tests.helpers.oracle import Oracle

TABLE = PieceTable(4, [(0, 1), (0, 1, 2), (2, 3, 3)])  # ids 4, 5, 6


def test_rows_of_an_exact_refinement() -> None:
    alignment = align([3, 0, 1, 1, 0, 1, 2], [3, 4, 1, 5], TABLE)
    assert alignment.student_row.tolist() == [0, 1, 2]
    assert alignment.teacher_row.tolist() == [0, 2, 3]
    assert alignment.next_token.tolist() == [4, 1, 5]
    assert (alignment.n_common, alignment.n_next, alignment.n_left_out, alignment.n_contradictions) == (3, 3, 0, 0)


def test_pieces_that_complete_a_longer_token_are_forbidden() -> None:
    alignment = align([3, 0, 1, 1], [3, 4, 1], TABLE)
    # After token 4 = (0, 1) the piece 2 would have made token 5 = (0, 1, 2).
    assert list(zip(alignment.zero_position.tolist(), alignment.zero_piece.tolist(), strict=True)) == [(1, 2)]


def test_pieces_that_lead_towards_a_longer_token_are_open() -> None:
    alignment = align([2, 3, 0], [2, 3, 0], TABLE)
    # After token 2 the piece 3 leads towards token 6 = (2, 3, 3); after 2, 3 the piece 3 completes it.
    assert list(zip(alignment.open_position.tolist(), alignment.open_piece.tolist(), strict=True)) == [(0, 3)]
    assert list(zip(alignment.zero_position.tolist(), alignment.zero_piece.tolist(), strict=True)) == [(1, 3)]


def test_a_cut_that_contradicts_the_forest_loses_its_split_only() -> None:
    # Longest match would cut 0, 1, 2 as token 5.
    alignment = align([3, 0, 1, 2, 0], [3, 4, 2, 0], TABLE)
    assert alignment.n_contradictions == 2
    assert alignment.split_position.tolist() == [2]
    assert alignment.n_common == 3


def test_resolved_and_unresolved_children() -> None:
    alignment = align([1, 2, 0, 0], [1, 2, 0, 0], TABLE)
    # At token 2 the text goes on with 0: child 6 = (2, 3, 3) leaves the text at its first extra piece.
    where = alignment.split_token.tolist().index(2)
    assert alignment.rest_token[alignment.rest_split == where].tolist() == [6]
    assert alignment.frontier_piece.tolist() == [3]


def test_common_boundaries_by_bytes() -> None:
    # "abc" cut by the teacher as ab|c (ids 0, 1), by the student as a|bc (ids 2, 3).
    table = PieceTable(4, [[]], byte_lengths=[2, 1, 1, 2, 3])
    assert common_boundaries([0, 1, 0, 1], [2, 3, 0, 1], table) == [-1, 2, 3, 4]
    alignment = align([0, 1, 0, 1], [2, 3, 0, 1], table)
    assert alignment.n_left_out == 1
    assert alignment.teacher_row.tolist() == [1, 2]


def test_without_bytes_only_the_ends_are_common() -> None:
    table = PieceTable(4, [(0, 1)])
    assert common_boundaries([2, 0, 3, 1, 1], [2, 3, 0, 1, 1], table) == [1, -1, 3, 4, 5]


def test_ids_outside_a_vocabulary_are_refused() -> None:
    with pytest.raises(TokenizerError, match=r"old_ids holds 0..7"):
        align([0, 7], [0], TABLE)


@pytest.mark.parametrize("pieces", [[(0,)], [(0, 9)], [(0, 1), (0, 1)]])
def test_tables_that_cannot_be(pieces: list[tuple[int, ...]]) -> None:
    with pytest.raises(TokenizerError):
        PieceTable(4, pieces)


def test_prefix_closed() -> None:
    assert PieceTable(4, [(0, 1), (0, 1, 2)]).prefix_closed
    assert not TABLE.prefix_closed


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 9), st.lists(st.integers(2, 30), min_size=1, max_size=3))
def test_chunks_of_a_batch_add_up(seed: int, size: int, lengths: list[int]) -> None:
    """Losses of all chunks of a padded batch = mean over all positions of the single texts."""
    generator = torch.Generator().manual_seed(seed)
    new_tokens = [(0, 1), (0, 1, 2), (2, 3, 3), (1, 1)]
    table, oracle = PieceTable(4, new_tokens), Oracle(4, 1, new_tokens, seed)
    olds = [torch.randint(0, 4, (n,), generator=generator).tolist() for n in lengths]
    news = [oracle.cut(old) for old in olds]
    aligned = [align(old, new, table) for old, new in zip(olds, news, strict=True)]
    students, teachers = max(map(len, news)), max(map(len, olds))
    logits = torch.randn(len(olds), students, 8, generator=generator, dtype=torch.float64)
    teacher = torch.randn(len(olds), teachers, 4, generator=generator, dtype=torch.float64)
    parts = list(chunks(concatenate(aligned, [students] * len(aligned), [teachers] * len(aligned)), size))
    flat, flat_teacher = logits.flatten(0, 1), teacher.flatten(0, 1)
    for loss, count in ((kl, "n_common"), (lambda s, _, a: ce(s, a), "n_next")):
        total = sum(loss(flat[p.student_rows], flat_teacher[p.teacher_rows], p.alignment) for p in parts)
        n = [getattr(a, count) for a in aligned]
        singles = [loss(logits[b], teacher[b], a) * n[b] for b, a in enumerate(aligned)]
        assert float(total) == pytest.approx(float(sum(singles)) / max(sum(n), 1), abs=1e-9)
    total = sum(hidden(flat[p.student_rows, :4], flat_teacher[p.teacher_rows], p.alignment) for p in parts)
    n = [a.n_common for a in aligned]
    singles = [hidden(logits[b, :, :4], teacher[b], a) * n[b] for b, a in enumerate(aligned)]
    assert float(total) == pytest.approx(float(sum(singles)) / max(sum(n), 1), abs=1e-9)


def test_to_moves_every_tensor() -> None:
    moved = align([3, 0, 1], [3, 4], TABLE).to("meta")
    assert {getattr(moved, name).device.type for name in (*LISTS, "mass_owner", "mass_member")} == {"meta"}
