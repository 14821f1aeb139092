"""Count the words of a text as sequences of old tokens: the input of the continued BPE.

A *word* is what a new token may not reach beyond: a pre-token of the widened pre-tokenizer (byte-level), or a run of
tokens whose shapes allow it (SentencePiece-style). Only words of two or more tokens matter.

Where the pre-tokenizer is one regex (and digits that are cut off before), the text is cut by the same regex here and
only its different words are encoded, each once. Otherwise the whole text is encoded, which takes several times as much
processor time. Either way the encoding runs in Rust on all cores, decides where words
begin, and everything after it is numpy on flat arrays.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kldistill.tokens.boundaries import GPT2, keeps_matches, shape
from kldistill.tokens.definition import BYTE_LEVEL, Definition, kind, parts
from kldistill.tokens.encoding import reader
from kldistill.tokens.pretokens import SEVERAL, Rule, count

CHUNK_BYTES = 4_000_000
# Marks a token that continues a word. It is no character of the byte-level alphabet, so it collides with no token.
_MARK = "\x01"


class Words(NamedTuple):
    """Unique words of two or more old tokens.

    Attributes:
        pieces: (P,) the old ids of all words, one word after the other.
        starts: (N + 1,) where each word starts in ``pieces``; the last entry is P.
        counts: (N,) how often each word occurs in the text.
        documents: (N,) the number of the one document that has the word, or ``SEVERAL``.
        tokens: old tokens in the whole text.
        bytes: bytes of UTF-8 in the whole text.
    """

    pieces: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    documents: NDArray[np.int64]
    tokens: int
    bytes: int


def marking(wide: Definition) -> Tokenizer:
    """A byte-level tokenizer that cuts as ``wide`` does, with ids V higher for tokens that continue a word.

    The fast Rust encoding does not say where words begin. So every token and merge is there twice, plain and marked
    with BPE's "continuing subword prefix"; both merges of a pair have neighbouring ranks, hence the same cuts as with
    one.
    """
    spec, size = wide.spec, wide.size
    model = dict(spec["model"])
    marked = {**spec, "model": model}
    # AddedTokens that the vocabulary lacks would be numbered by counting it, which is twice as long here.
    kept = {token["content"]: token["id"] for token in spec["added_tokens"]}
    model["vocab"] = model["vocab"] | kept | {_MARK + token: index + size for token, index in model["vocab"].items()}
    model["merges"] = [
        merge for left, right in model["merges"] for merge in ((left, _MARK + right), (_MARK + left, _MARK + right))
    ]
    model["continuing_subword_prefix"] = _MARK
    return reader(marked)


def _by_shape(wide: Definition) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which old ids may stand in a word of a SentencePiece-style tokenizer (first or later), and which only later."""
    first, later = shape(wide.boundary)
    inside, continues = np.zeros(wide.size, bool), np.zeros(wide.size, bool)
    added = {token["id"] for token in wide.spec["added_tokens"]}
    for token, index in wide.spec["model"]["vocab"].items():
        if index not in added:
            continues[index] = later.fullmatch(token) is not None
            inside[index] = continues[index] or first.fullmatch(token) is not None
    return inside, continues


def chunks(texts: Iterable[str], size: int = CHUNK_BYTES) -> Iterator[list[str]]:
    """Group texts so that each group holds about ``size`` characters (one longer text is a group of its own)."""
    group: list[str] = []
    length = 0
    for text in texts:
        group.append(text)
        length += len(text)
        if length >= size:
            yield group
            group, length = [], 0
    if group:
        yield group


class Encoded(NamedTuple):
    """Texts as tokens.

    Attributes:
        ids: (T,) old ids of all texts, one text after the other.
        glued: (T,) whether the token goes on in the word of the token before it.
        lengths: (texts,) tokens of every text.
    """

    ids: NDArray[np.int64]
    glued: NDArray[np.bool_]
    lengths: NDArray[np.int64]


def encoder(wide: Definition) -> Callable[[list[str]], Encoded]:
    """A function that encodes texts and finds their words."""
    byte_level, size = kind(wide.spec) == BYTE_LEVEL, wide.size
    tokenizer = marking(wide) if byte_level else reader(wide.spec)
    inside, continues = (None, None) if byte_level else _by_shape(wide)

    def encode(texts: list[str]) -> Encoded:
        encodings = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.array([len(e) for e in encodings], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(encodings), dtype=np.int64, count=int(lengths.sum()))
        if inside is None or continues is None:
            glued = ids >= size
            return Encoded(np.where(glued, ids - size, ids), glued, lengths)
        glued = np.zeros(len(ids), bool)
        glued[1:] = continues[ids[1:]] & inside[ids[:-1]]
        firsts = np.cumsum(lengths) - lengths
        glued[firsts[lengths > 0]] = False
        return Encoded(ids, glued, lengths)

    return encode


def rule_of(spec: dict[str, Any]) -> Rule | None:
    """How a byte-level tokenizer cuts texts into pre-tokens, if one regex is all that cuts beside digits, else None.

    The cut need not be exact: what it leaves whole is cut again when the word is encoded.
    """
    *before, last = parts(spec["pre_tokenizer"], "pretokenizers") or [{"type": "none"}]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    pattern = GPT2
    if not last.get("use_regex", True):
        if not before or not keeps_matches(before[-1]):
            return None
        pattern = before.pop()["pattern"]["Regex"]
    if any(step["type"] != "Digits" for step in before):
        return None
    added = [token["content"] for token in spec["added_tokens"] if not token["special"]]
    digits = tuple(r"\p{N}" if step["individual_digits"] else r"\p{N}+" for step in before)
    return Rule(pattern, spec["normalizer"], added, digits)


def _parts(
    spec: dict[str, Any], texts: Iterable[str], workers: int, advance: Callable[[int], None]
) -> Iterator[tuple[list[str], NDArray[np.int64], NDArray[np.int64]]]:
    """What to encode, in groups: texts, how often each occurs, and in which document."""
    rule, done = rule_of(spec), 0
    if rule is None:
        for group in chunks(texts):
            yield group, np.ones(len(group), np.int64), np.arange(done, done + len(group))
            done += len(group)
            advance(sum(len(text.encode()) for text in group))
        return
    tally = count(rule, chunks(texts, CHUNK_BYTES // 8), workers, advance)
    for group in chunks(tally.counts):
        counts, documents = ([table[word] for word in group] for table in (tally.counts, tally.documents))
        yield group, np.array(counts, dtype=np.int64), np.array(documents, dtype=np.int64)


class _Hash:
    """64-bit hashes of words, by fixed pseudo-random weights, so that equal texts give equal orders everywhere."""

    def __init__(self, size: int):
        # splitmix64 (Steele, Lea, Flood 2014) of the id.
        z = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        self.of_id = z ^ (z >> np.uint64(31))
        self.powers = np.ones(1, np.uint64)

    def __call__(self, pieces: NDArray, starts: NDArray, lengths: NDArray) -> NDArray[np.uint64]:
        """Hash of every word: sum of a weight per id times a power of an odd number per place, modulo 2^64."""
        longest = int(lengths.max(initial=1))
        if longest > len(self.powers):
            self.powers = np.cumprod(np.full(longest, 0xD1342543DE82EF95, np.uint64))
        place = np.arange(len(pieces)) - np.repeat(starts, lengths)
        return np.add.reduceat(self.of_id[pieces] * self.powers[place], starts)


def take(pieces: NDArray, starts: NDArray, lengths: NDArray) -> NDArray:
    """The pieces of the words at ``starts``, one after the other."""
    offsets = np.cumsum(lengths) - lengths
    return pieces[np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))]


class _Unique:
    """Unique words with their counts and documents, from words with counts and documents."""

    def __init__(self, size: int):
        self.hash = _Hash(size)

    def __call__(
        self, pieces: NDArray, starts: NDArray, lengths: NDArray, counts: NDArray, documents: NDArray
    ) -> tuple[NDArray, ...]:
        if len(starts) == 0:
            return np.zeros(0, np.int64), lengths, counts, documents
        keys = self.hash(pieces, starts, lengths)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        summed = np.bincount(inverse, weights=counts, minlength=len(first)).astype(np.int64)
        alone = documents[first]
        alone[inverse[documents != alone[inverse]]] = SEVERAL
        return take(pieces, starts[first], lengths[first]), lengths[first], summed, alone


def count_words(
    wide: Definition,
    texts: Iterable[str],
    workers: int = 1,
    advance: Callable[[int], None] = lambda _bytes: None,
) -> Words:
    """Count the words of ``texts``.

    Args:
        wide: the tokenizer, its pre-tokenizer widened.
        texts: the documents; a word never reaches from one into the next.
        workers: processes that cut the text; 0 for one a core. Changes nothing in the result.
        advance: called with the bytes done after every chunk.

    Returns:
        The unique words in an order that depends on nothing but the words.
    """
    encode, unique = encoder(wide), _Unique(wide.size)
    groups, tokens, total = [], 0, 0

    def count_bytes(done: int) -> None:
        nonlocal total
        total += done
        advance(done)

    for group, counts, documents in _parts(wide.spec, texts, workers, count_bytes):
        ids, glued, sizes = encode(group)
        tokens += int((sizes * counts).sum())
        starts = np.flatnonzero(~glued)
        lengths = np.diff(starts, append=len(ids))
        long = lengths > 1
        weights, numbers = (np.repeat(column, sizes)[starts[long]] for column in (counts, documents))
        starts, lengths = starts[long], lengths[long]
        groups.append(unique(take(ids, starts, lengths), np.cumsum(lengths) - lengths, lengths, weights, numbers))
    empty = (np.zeros(0, np.int64),) * 4
    pieces, lengths, *rest = (np.concatenate(column) for column in zip(empty, *groups, strict=True))
    pieces, lengths, counts, documents = unique(pieces, np.cumsum(lengths) - lengths, lengths, *rest)
    return Words(pieces, np.concatenate([[0], np.cumsum(lengths)]), counts, documents, tokens, total)
