"""The mask of what cannot follow: the same pieces that the alignment gives the target 0, in any loop."""

import random
from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from kldistill.evaluation.generation.canonical import CanonicalMask
from kldistill.losses.alignment import align
from kldistill.tokens.pieces import PieceTable
from kldistill.training.load import load_model
from tests.helpers.artifacts import MakeModel, MakeTokens, rows_for

TABLES = [
    [(0, 1)],
    [(0, 1), (0, 1, 2), (2, 0)],
    [(0, 1, 2)],
    [(1, 1), (1, 1, 1), (1, 0, 2, 3), (3, 1), ()],
    [(0, 1, 2), (1, 2), (1, 3), (2, 0, 1, 3)],  # after 0, both 1 2 and 2 0 complete longer tokens with a later piece
]


def longest_match(old: list[int], pieces: PieceTable) -> list[int]:
    """Ids of the extended vocabulary, the longest token first."""
    by_pieces = {row: pieces.old_size + index for index, row in enumerate(pieces.pieces) if row}
    ids, at = [], 0
    while at < len(old):
        length = next((n for n in range(4, 1, -1) if tuple(old[at : at + n]) in by_pieces), 1)
        ids.append(by_pieces.get(tuple(old[at : at + length]), old[at]))
        at += length
    return ids


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_it_forbids_what_the_losses_rule_out_and_no_text_has(table: list[tuple[int, ...]]) -> None:
    """By longest match, against the cut of the text with every token behind it."""
    pieces = PieceTable(5, table)
    mask = CanonicalMask(pieces)
    exact = [token for token in range(pieces.new_size) if pieces.old_pieces(token)]
    generator = random.Random(0)
    n_forbidden = 0
    for _ in range(60):
        old = [generator.randrange(5) for _ in range(12)]
        new = longest_match(old, pieces)
        aligned = align(old, new, pieces)
        for row in aligned.student_row.tolist():
            before = new[: row + 1]
            text = pieces.expand(before)
            expected = {
                token
                for token in exact
                if longest_match([*text, *pieces.old_pieces(token)], pieces) != [*before, token]
            }
            assert set(mask.forbidden(before)) == expected
            assert set(aligned.refused_token[aligned.refused_row == row].tolist()) == expected
            n_forbidden += len(expected)
    assert n_forbidden > 0


def test_rows_of_a_batch_are_masked_alone_and_the_scores_are_left_alone() -> None:
    mask = CanonicalMask(PieceTable(4, [(0, 1), (1, 2)]))
    scores = torch.arange(12.0).view(2, 6)
    found = mask(torch.tensor([[3, 0], [0, 3]]), scores)
    assert found[0].tolist() == [0, float("-inf"), 2, 3, 4, float("-inf")], "1, and the token that begins with it"
    assert torch.equal(found[1], scores[1]) and torch.equal(scores, torch.arange(12.0).view(2, 6))


@pytest.mark.parametrize("merges", [False, True])
def test_ids_beyond_the_table_forbid_nothing(merges: bool) -> None:
    """Tokens that were added to the exported tokenizer, and rows of padding."""
    table = PieceTable(4, [(0, 1), (1, 2)], merges=[(0, 1, 4), (1, 2, 5)] if merges else None)
    mask, scores = CanonicalMask(table), torch.zeros(2, 9)
    assert mask.forbidden([0, 8]) == [] and mask.forbidden([8, 0]) == mask.forbidden([0])
    found = mask(torch.tensor([[0, 7], [7, 0]]), scores)
    assert torch.equal(found[0], scores[0]) and found[1].isinf().any()


def test_a_table_without_new_tokens_forbids_nothing() -> None:
    scores = torch.zeros(1, 3)
    assert CanonicalMask(PieceTable(3, []))(torch.tensor([[0, 1]]), scores) is scores


class Insists(LogitsProcessor):
    """A model that wants to go on with certain tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return scores.index_fill(1, torch.tensor(self.tokens), 1e4)


def test_generate_takes_it(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    """transformers' own loop with a model that always wants to write the last piece of a new token by itself."""
    model = tiny_model()
    pieces = PieceTable.load(fake_tokens(model))
    extended = load_model(model, rows_for(model, 24, True, tmp_path / "rows"))
    mask = CanonicalMask(pieces)
    prompt = torch.tensor([pieces.pieces[0][:1], pieces.pieces[1][:1]])
    insists = Insists([pieces.pieces[0][1], pieces.pieces[1][1]])

    def breaks(*processors: LogitsProcessor) -> int:
        settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        rows = extended.generate(prompt, logits_processor=LogitsProcessorList(processors), **settings).tolist()
        return sum(token in mask.forbidden(row[:at]) for row in rows for at, token in enumerate(row) if at)

    assert breaks(insists) > 0 == breaks(insists, mask)


def test_with_merges_it_forbids_exactly_what_no_text_has() -> None:
    """bc was merged before ab, so after ``ab`` no c can follow, but ``abc`` as a|bc may: after ``a`` b alone cannot."""
    a, b, c, bc, ab = range(5)
    mask = CanonicalMask(PieceTable(3, [(b, c), (a, b)], merges=[(b, c, bc), (a, b, ab)]))
    assert mask.forbidden([a]) == [b] and mask.forbidden([ab]) == [c] and mask.forbidden([c, a, bc]) == []
    scores = mask(torch.tensor([[c, a]]), torch.zeros(1, 5))
    assert scores.tolist() == [[0, float("-inf"), 0, 0, 0]]
