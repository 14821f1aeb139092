"""The incremental choice of merges against a plain recount after every merge."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kldistill.tokens.merges import Entry, Rules, choose
from kldistill.tokens.pretokens import SEVERAL
from kldistill.tokens.words import Words

LETTERS = "abcd"
OLD = [Entry(letter, letter.encode(), (i,)) for i, letter in enumerate(LETTERS)]


def words_of(texts: dict[str, int], documents: list[int] | None = None) -> Words:
    kept = {text: count for text, count in texts.items() if len(text) > 1}
    pieces = [LETTERS.index(letter) for text in kept for letter in text]
    starts = np.cumsum([0, *map(len, kept)])
    counts = np.array(list(kept.values()), dtype=np.int64)
    numbers = np.array(range(len(counts)) if documents is None else documents, dtype=np.int64)
    return Words(np.array(pieces, dtype=np.int64), starts, counts, numbers, 0, 0)


def by_recount(texts: dict[str, int], rules: Rules, n: int, min_count: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Textbook BPE: recount all pairs, take the best one allowed, apply it everywhere."""
    size = len(rules.entries)
    words = {text: [LETTERS.index(letter) for letter in text] for text in texts}
    merges: list[tuple[int, int]] = []
    while len(merges) < n:
        counts: Counter[tuple[int, int]] = Counter()
        for text, pieces in words.items():
            for pair in pairwise(pieces):
                counts[pair] += texts[text]
        order = sorted((-count, pair) for pair, count in counts.items() if count >= min_count)
        allowed = (
            (pair, entry)
            for _, pair in order
            if rules.allows(entry := rules.join(*pair)) and rules.missing(entry) is None
        )
        best = next(allowed, None)
        if best is None:
            break
        pair, entry = best
        new = rules.add(entry)
        merges.append(pair)
        for text, pieces in words.items():
            out: list[int] = []
            i = 0
            while i < len(pieces):
                if tuple(pieces[i : i + 2]) == pair:
                    out.append(new)
                    i += 2
                else:
                    out.append(pieces[i])
                    i += 1
            words[text] = out
    uses: Counter[int] = Counter()
    for text, pieces in words.items():
        for piece in pieces:
            uses[piece] += texts[text]
    return merges, [uses[size + i] for i in range(len(merges))]


corpora = st.dictionaries(st.text(LETTERS, min_size=1, max_size=12), st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=300)
@given(
    texts=corpora,
    n=st.integers(1, 12),
    min_count=st.integers(1, 4),
    closed=st.booleans(),
    max_pieces=st.integers(2, 6),
    max_run=st.integers(1, 4),
)
def test_as_by_recount(
    texts: dict[str, int], n: int, min_count: int, closed: bool, max_pieces: int, max_run: int
) -> None:
    def rules() -> Rules:
        return Rules(OLD, max_pieces=max_pieces, max_run=max_run, prefix_closed=closed)

    mine = choose(words_of(texts), rules(), n, min_count)
    merges, uses = by_recount(texts, rules(), n, min_count)
    assert [(merge.left, merge.right) for merge in mine] == merges
    assert [merge.count for merge in mine] == uses
    before = sum(len(text) * count for text, count in texts.items())
    pieces_left = before - sum((len(merge.entry.pieces) - 1) * merge.count for merge in mine)
    assert sum(merge.saved for merge in mine) == before - pieces_left
    for merge in mine:
        assert len(merge.entry.pieces) <= max_pieces
        assert not any(letter * (max_run + 1) in merge.entry.token for letter in LETTERS)
    if closed:
        made = {merge.entry.pieces for merge in mine}
        assert all(p[:k] in made for p in made for k in range(2, len(p)))


def test_prefix_closed_matters() -> None:
    """``bc`` is the most frequent pair, and ``abc`` then joins ``a`` and ``bc``: ``ab`` is no token."""
    texts = {"abc": 5, "bc": 9}
    free = choose(words_of(texts), Rules(OLD), 2)
    assert [merge.entry.token for merge in free] == ["bc", "abc"]
    closed = choose(words_of(texts), Rules(OLD, prefix_closed=True), 2)
    assert [merge.entry.token for merge in closed] == ["bc"]


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        (b"\xe4", b"\xb8", "not whole UTF-8"),
        (b"1", b"2", "several digits"),
        (b"-" * 4, b"-" * 4, "a long run"),
        (b"x", b"y", "in the vocabulary already"),
    ],
)
def test_what_is_never_made(left: bytes, right: bytes, reason: str) -> None:
    names = [left.decode("latin-1"), right.decode("latin-1"), "xy"]
    old = [Entry(name, name.encode("latin-1"), (i,)) for i, name in enumerate(names)]
    words = Words(np.array([0, 1]), np.array([0, 2]), np.array([100]), np.array([0]), 0, 0)
    assert choose(words, Rules(old, max_run=7), 3) == [], reason


def test_whole_characters_of_broken_pieces_are_made() -> None:
    old = [Entry(chr(byte), bytes([byte]), (i,)) for i, byte in enumerate("é".encode())]
    words = Words(np.array([0, 1]), np.array([0, 2]), np.array([3]), np.array([0]), 0, 0)
    (merge,) = choose(words, Rules(old), 3)
    assert merge.entry.bytes == "é".encode() and merge.count == 3


def test_a_refused_candidate_is_passed_over() -> None:
    rules = Rules(OLD, accept=lambda entry: entry.token != "ab")
    assert [merge.entry.token for merge in choose(words_of({"abc": 5}), rules, 9)] == ["bc", "abc"]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([0, 1, 1, 0], ["bc"]),  # of two words, each of another document
        ([SEVERAL, 1, 1, 0], ["bc", "abc"]),
        ([0, 0, 0, 0], ["cd", "bc", "abc", "da"]),  # one document: there are no others
    ],
)
def test_what_stands_in_one_document_alone_is_left_out(documents: list[int], expected: list[str]) -> None:
    words = words_of({"abc": 5, "bc": 1, "cd": 9, "da": 2}, documents)
    found = choose(words, Rules(OLD), 9, 2, min_documents=2)
    assert [merge.entry.token for merge in found] == expected
    assert len(choose(words, Rules(OLD), 9, 2)) == 4


def test_a_pair_whose_second_document_other_merges_took_is_left_out() -> None:
    """``bc`` stands in two documents at first, and after ``ab`` has become a token in one."""
    words = words_of({"abc": 5, "ab": 3, "bc": 4}, [0, 1, 1])
    assert [merge.entry.token for merge in choose(words, Rules(OLD), 9, min_documents=2)] == ["bc"]
    words = words_of({"abc": 5, "ab": 9, "bc": 4}, [0, 1, 1])
    assert [merge.entry.token for merge in choose(words, Rules(OLD), 9, min_documents=2)] == ["ab"]
