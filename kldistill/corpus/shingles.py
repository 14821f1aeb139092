"""A document as the set of its shingles: runs of successive words or tokens, hashed to 64 bits.

Whole-array operations do all work on a document, so 50 MB of code take seconds on one core.

Shapes: N bytes of a document, M words or tokens, S shingles.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)


def _word_bytes() -> NDArray[np.bool_]:
    """Which bytes belong to words: ASCII letters, digits, underscores, and every byte beyond ASCII."""
    table = np.zeros(256, dtype=bool)
    table[128:] = True
    table[[ord(c) for c in "_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]] = True
    return table


_WORD_BYTES = _word_bytes()
_MARK_BYTES = ~_WORD_BYTES & (np.arange(256) > 32) & (np.arange(256) != 127)


@cache
def _powers(base: int, exponent_bits: int) -> NDArray[np.uint64]:
    """base^0, base^1, ... modulo 2^64, two to the ``exponent_bits`` of them."""
    factors = np.full(1 << exponent_bits, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: spreads every input bit over all 64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hashes(data: NDArray[np.uint8], marks: bool) -> NDArray[np.uint64]:
    """One 64-bit hash for each word of a document's N bytes, in order, of shape (M,).

    With ``marks``, each punctuation mark has a hash too. A word's hash is its polynomial in ``_BASE`` modulo 2^64, read
    off running sums and shifted back to exponent zero (the base is odd, so it has an inverse).
    """
    inside = np.zeros(len(data) + 2, dtype=np.int8)
    inside[1:-1] = _WORD_BYTES[data]
    edges = np.diff(inside)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    if marks:
        alone = np.flatnonzero(_MARK_BYTES[data])
        starts, ends = np.sort(np.concatenate([starts, alone])), np.sort(np.concatenate([ends, alone + 1]))
    bits = max(10, len(data).bit_length())
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(data * _powers(_BASE, bits)[: len(data)], out=sums[1:])
    return _mix((sums[ends] - sums[starts]) * _powers(_BASE_INVERSE, bits)[starts])


def hashed_shingles(text: str, width: int, marks: bool = False) -> NDArray[np.uint64]:
    """The set of a document's shingles as sorted 64-bit hashes, shape (S,) with S >= 1.

    A document of fewer words is one shingle, and where there is no word at all bytes stand for words.

    Args:
        text: the document.
        width: successive words in a shingle.
        marks: punctuation marks count as words too, as tokens of code; white space never does.
    """
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    words = _hashes(data, marks)
    if len(words) == 0:
        words = _mix(data.astype(np.uint64) + np.uint64(1))
    if len(words) == 0:
        return np.zeros(1, dtype=np.uint64)
    width = min(width, len(words))
    count = len(words) - width + 1
    runs = np.zeros(count, dtype=np.uint64)
    for offset in range(width):
        runs = runs * np.uint64(_BASE) + words[offset : offset + count]
    hashes = np.unique(_mix(runs))
    hashes.flags.writeable = False
    return hashes


def shared(hashes: NDArray[np.uint64], others: NDArray[np.uint64]) -> int:
    """How many of ``hashes`` are among ``others`` (both sorted, without repetition)."""
    if len(others) == 0:
        return 0
    places = np.minimum(np.searchsorted(others, hashes), len(others) - 1)
    return int(np.count_nonzero(others[places] == hashes))
