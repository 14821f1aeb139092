"""Continued byte-pair encoding: choose the merges that come after the old ones.

Works on unique words (``words.Words``). All words lie in flat arrays as doubly linked lists of pieces; for every pair
of neighbours there is its count and where it stands. A merge touches only the places where its pair stands, and does so
with a dozen numpy calls, whatever the corpus. Pairs are ordered by count, then by their ids, so the result depends on
nothing else.

As the new merges rank after all old ones, BPE first cuts a word as the old tokenizer did and then joins old pieces:
every new token has one exact decomposition, pieces(left) + pieces(right).
"""

import heapq
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from kldistill.tokens.pretokens import SEVERAL
from kldistill.tokens.words import Words

_SHIFT = 32
_LOW = (1 << _SHIFT) - 1


class Entry(NamedTuple):
    """An id as the choice of merges sees it: its vocabulary entry, its bytes, and the old ids it is made of."""

    token: str
    bytes: bytes
    pieces: tuple[int, ...]


def combine(left: Entry, right: Entry) -> Entry:
    """The entry that a merge of two entries makes."""
    return Entry(left.token + right.token, left.bytes + right.bytes, left.pieces + right.pieces)


class Merge(NamedTuple):
    """A new merge and the token it makes (whose id is V + its place in the list).

    ``saved`` is how many pairs it joined when it was made, each a token less; ``count`` its uses after all merges.
    """

    left: int
    right: int
    entry: Entry
    saved: int
    count: int


class Rules:
    """Which merges may be taken.

    Args:
        old: entry of every old id (ids that are never merged may have an empty one).
        max_pieces: old pieces in a new token, at most.
        max_run: repetitions of one character in a new token, at most.
        prefix_closed: only take a merge when every prefix of its pieces is a token already.
        whole: every new token must be whole UTF-8. Without it, parts of characters may be tokens on the way to a term.
        accept: a last word on a candidate, for what the tokenizer itself must be asked about.
    """

    def __init__(
        self,
        old: list[Entry],
        *,
        max_pieces: int = 8,
        max_run: int = 16,
        prefix_closed: bool = False,
        whole: bool = True,
        accept: Callable[[Entry], bool] = lambda _entry: True,
    ):
        self.entries = list(old)
        self.taken = {entry.token for entry in old}
        self.tokens = {entry.pieces for entry in old}
        self.max_pieces = max_pieces
        self.prefix_closed = prefix_closed
        self.whole = whole
        self.accept = accept
        self._run = regex.compile(rf"(.)\1{{{max_run},}}", regex.DOTALL)
        # Models that read numbers digit by digit must go on doing so.
        self._digits = regex.compile(r"\p{N}.*\p{N}", regex.DOTALL)

    def join(self, left: int, right: int) -> Entry:
        """What the merge of two ids would make."""
        return combine(self.entries[left], self.entries[right])

    def allows(self, entry: Entry) -> bool:
        """Whether it may ever be a token: new, whole UTF-8, of sane length, and accepted."""
        if len(entry.pieces) > self.max_pieces or entry.token in self.taken:
            return False
        try:
            text = entry.bytes.decode()
        except UnicodeDecodeError:
            return not self.whole
        return not self._run.search(text) and not self._digits.search(text) and self.accept(entry)

    def missing(self, entry: Entry) -> tuple[int, ...] | None:
        """The shortest prefix of the pieces that is no token, if prefixes must be tokens."""
        if not self.prefix_closed:
            return None
        prefixes = (entry.pieces[:n] for n in range(1, len(entry.pieces)))
        return next((prefix for prefix in prefixes if prefix not in self.tokens), None)

    def add(self, entry: Entry) -> int:
        """Make it a token and return its id."""
        self.entries.append(entry)
        self.taken.add(entry.token)
        self.tokens.add(entry.pieces)
        return len(self.entries) - 1


class _Chain:
    """All words as linked lists of pieces in flat arrays; dead places hold the piece -1."""

    def __init__(self, words: Words):
        n = len(words.pieces)
        self.piece = words.pieces.copy()
        self.next = np.arange(1, n + 1)
        self.next[words.starts[1:] - 1] = -1
        self.prev = np.arange(-1, n - 1)
        self.prev[words.starts[:-1]] = -1
        self.weight = np.repeat(words.counts, np.diff(words.starts))
        self.document = np.repeat(words.documents, np.diff(words.starts))
        self.joined = 0  # by the last merge

    def still(self, left: int, right: int, places: NDArray) -> NDArray:
        """The places at which the pair still stands."""
        places = places[self.piece[places] == left]
        seconds = self.next[places]
        return places[(seconds >= 0) & (self.piece[seconds] == right)]

    def in_one_document(self, places: NDArray) -> bool:
        """Whether one document alone has what stands at these places."""
        documents = self.document[places]
        return bool(SEVERAL not in documents and (documents == documents[:1]).all())

    def merge(self, left: int, right: int, new: int, places: NDArray) -> tuple[tuple[NDArray, NDArray], ...]:
        """Join ``left`` and ``right`` at ``places`` (sorted; may be stale).

        Returns:
            Two lists of (pair keys, places): pairs that are gone, pairs that are new.
        """
        piece, following = self.piece, self.next
        places = self.still(left, right, places)
        seconds = following[places]
        if left == right and len(places):
            # In a run of equal pieces the merges go left to right: every other place of the run.
            index = np.arange(len(places))
            follows = np.concatenate([[False], seconds[:-1] == places[1:]])
            run_start = np.maximum.accumulate(np.where(follows, 0, index))
            chosen = (index - run_start) % 2 == 0
            places, seconds = places[chosen], seconds[chosen]
        self.joined = int(self.weight[places].sum())
        before, after = self.prev[places], following[seconds]
        has_after = after >= 0
        gone_after = (right << _SHIFT) | piece[after[has_after]]
        gone_before_piece = piece[before]
        piece[places], piece[seconds] = new, -1
        following[places] = after
        self.prev[after[has_after]] = places[has_after]
        # What stands before a place is dead now if it was the second half of another merge: counted there.
        has_before = (before >= 0) & (piece[before] != -1)
        gone_before = (gone_before_piece[has_before] << _SHIFT) | left
        new_after = (new << _SHIFT) | piece[after[has_after]]
        new_before = (piece[before[has_before]] << _SHIFT) | new
        gone = np.concatenate([gone_after, gone_before])
        made = np.concatenate([new_after, new_before])
        at_gone = np.concatenate([places[has_after], places[has_before]])
        at_made = np.concatenate([places[has_after], before[has_before]])
        return (gone, at_gone), (made, at_made)


def _grouped(keys: NDArray, places: NDArray, weight: NDArray) -> list[tuple[int, int, NDArray]]:
    """(key, summed weight, sorted places) for every different key."""
    if len(keys) == 0:
        return []
    order = np.lexsort((places, keys))
    keys, places = keys[order], places[order]
    bounds = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    sums = np.add.reduceat(weight[places], bounds[:-1])
    slices = (places[i:j] for i, j in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    return list(zip(keys[bounds[:-1]].tolist(), sums.tolist(), slices, strict=True))


def choose(
    words: Words,
    rules: Rules,
    n: int,
    min_count: int = 1,
    advance: Callable[[], None] = lambda: None,
    *,
    min_documents: int = 1,
) -> list[Merge]:
    """Choose up to ``n`` merges, each time the most frequent pair that ``rules`` allows.

    Args:
        words: what the old tokenizer makes of the text.
        rules: which merges may be taken; it knows the new tokens afterwards.
        n: merges wanted; fewer come back when no pair is left.
        min_count: a pair must occur this often when it is taken.
        advance: called after every merge.
        min_documents: 2 leaves out what stands in a single document, unless there is but one.

    Returns:
        The merges in rank order. ``count`` is how often the token stands in the text after *all* merges: 0 for a token
        that later merges always swallow.
    """
    chain, size = _Chain(words), len(rules.entries)
    shared = min_documents > 1 and not chain.in_one_document(np.arange(len(chain.piece)))
    paired = np.flatnonzero(chain.next >= 0)
    keys = (chain.piece[paired] << _SHIFT) | chain.piece[chain.next[paired]]
    groups = [group for group in _grouped(keys, paired, chain.weight) if group[1] >= min_count]
    counts = {key: count for key, count, _ in groups}
    places = {key: where for key, _, where in groups}
    heap = [(-count, key) for key, count in counts.items()]
    heapq.heapify(heap)
    waiting: dict[tuple[int, ...], list[int]] = defaultdict(list)
    merges: list[tuple[int, int, Entry, int]] = []
    while heap and len(merges) < n:
        negative, key = heapq.heappop(heap)
        count = counts.get(key, 0)
        if count != -negative:
            # Stale: the pair has become rarer since it was pushed (counts never grow after a pair's first merge).
            if count >= min_count:
                heapq.heappush(heap, (-count, key))
            continue
        left, right = key >> _SHIFT, key & _LOW
        entry = rules.join(left, right)
        if not rules.allows(entry):
            continue
        if shared and chain.in_one_document(chain.still(left, right, places[key])):
            continue  # for good: a pair gets no new places
        if (prefix := rules.missing(entry)) is not None:
            waiting[prefix].append(key)
            continue
        new = rules.add(entry)
        gone, made = chain.merge(left, right, new, places.pop(key))
        merges.append((left, right, entry, chain.joined))
        del counts[key]
        for other, weight, _ in _grouped(*gone, chain.weight):
            if other in counts:
                counts[other] -= weight
        for other, weight, where in _grouped(*made, chain.weight):
            if weight >= min_count:
                counts[other], places[other] = weight, where
                heapq.heappush(heap, (-weight, other))
        for other in waiting.pop(entry.pieces, ()):
            if counts.get(other, 0) >= min_count:
                heapq.heappush(heap, (-counts[other], other))
        advance()
    alive = chain.piece >= size
    uses = np.bincount(chain.piece[alive] - size, weights=chain.weight[alive], minlength=len(merges)).astype(np.int64)
    return [Merge(*merge, count) for merge, count in zip(merges, uses.tolist(), strict=True)]
