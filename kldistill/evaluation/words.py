"""Words with new tokens in a text: where all of its cuts have a boundary.

A *word* here is the smallest run of canonical tokens around a new one whose ends no token of the vocabulary reaches
over, where white space begins another word unless tokens go on behind a space (``tokens.boundary=line``): so every cut
of the text has a boundary at its ends.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from kldistill.evaluation.generation.spelling import Spelling
from kldistill.training.cuts import TwoCuts, starts_of
from kldistill.training.states import scored_rows


class Word(NamedTuple):
    """A run of canonical tokens: those from ``start`` to ``end`` (without it) of a text's ids."""

    start: int
    end: int


def words_of(spelling: Spelling, cuts: TwoCuts, index: int) -> list[Word]:
    """The words with a new token in what is scored of a text."""
    snippet, new = cuts.states.snippets[index], cuts.new[index]
    found = words(spelling, new.ids, cuts.pieces.old_size, starts_of(snippet, new.sizes))
    rows = scored_rows(snippet, new.sizes)
    if rows is None:
        return found
    scored = set(rows.tolist())  # a row predicts the token after it
    return [word for word in found if scored.issuperset(range(word.start - 1, word.end - 1))]


def words(spelling: Spelling, ids: Sequence[int], old_size: int, starts: Collection[int] = ()) -> list[Word]:
    """The words with a new token of a text in its canonical cut, first to last; its first token is in none.

    Args:
        ids: the text's ids, the first token in front.
        old_size: V; ids from there on are new.
        starts: where in ``ids`` a part begins that was read by itself.
    """
    found: list[Word] = []
    for place, token in enumerate(ids):
        if token < old_size or (found and place < found[-1].end):
            continue
        start = next(before for before in range(place, -1, -1) if before in starts or _closed(spelling, ids, before))
        end = next(
            after for after in range(place + 1, len(ids) + 1) if after in starts or _closed(spelling, ids, after)
        )
        found.append(Word(start, end))
    return found


def _closed(spelling: Spelling, ids: Sequence[int], place: int) -> bool:
    """Whether no token of the vocabulary reaches over the boundary before ``ids[place]``, or white space follows it
    that begins a word.
    """
    by_space = not spelling.over_spaces
    if place <= 1 or place == len(ids) or (by_space and spelling.table[ids[place]][:1].isspace()):
        return True
    reach = spelling.longest
    before = spelling.spell(ids[max(1, place - reach) : place])[-reach:]
    # What stands before the last white space is of another word.
    spaces = (index for index in range(len(before)) if by_space and before[index : index + 1].isspace())
    space = max(spaces, default=0)
    after = spelling.spell(ids[place : place + reach])[:reach]
    for start in range(space, len(before)):
        if any(size > len(before) - start for _, size in spelling.beginnings(before[start:] + after)):
            return False
    return True
