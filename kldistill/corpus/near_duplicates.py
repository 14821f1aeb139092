"""Near-duplicate documents: MinHash with banding finds the candidates, exact Jaccard similarity decides.

A document is the set of its shingles: runs of five successive words, without punctuation and layout, hashed to 64 bits.
Whole-array operations do all work on a document, so 50 MB of code take seconds on one core; what is kept of it, beside
its text, is its signature (512 bytes).

MinHash: Broder, "On the resemblance and containment of documents", 1997. Banding: Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3.

Shapes: N bytes of a document, M words, S shingles, P permutations.
"""

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 5
PERMUTATIONS = 128
# A pair at the threshold is overlooked by the banding with at most this probability.
MISS_PROBABILITY = 1e-6
# Candidates whose estimated similarity is this many standard deviations below the threshold are not compared exactly.
ESTIMATE_DEVIATIONS = 5.0
# Shingles are permuted in blocks whose products stay in the processor's cache.
BLOCK = 2_048

_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)


def _word_bytes() -> NDArray[np.bool_]:
    """Which bytes belong to words: ASCII letters, digits, underscores, and every byte beyond ASCII."""
    table = np.zeros(256, dtype=bool)
    table[128:] = True
    table[[ord(c) for c in "_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]] = True
    return table


_WORD_BYTES = _word_bytes()


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


def _word_hashes(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """One 64-bit hash for each word of a document's N bytes, in order: shape (M,).

    A word's hash is its polynomial in ``_BASE`` modulo 2^64, read off running sums and shifted back to exponent zero
    (the base is odd, so it has an inverse).
    """
    inside = np.zeros(len(data) + 2, dtype=np.int8)
    inside[1:-1] = _WORD_BYTES[data]
    edges = np.diff(inside)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    bits = max(10, len(data).bit_length())
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(data * _powers(_BASE, bits)[: len(data)], out=sums[1:])
    return _mix((sums[ends] - sums[starts]) * _powers(_BASE_INVERSE, bits)[starts])


@lru_cache(maxsize=512)
def shingles(text: str) -> NDArray[np.uint64]:
    """The set of a document's shingles as sorted 64-bit hashes, shape (S,) with S >= 1.

    A document of fewer than five words is one shingle, and where there is no word at all bytes stand for words.
    """
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    words = _word_hashes(data)
    if len(words) == 0:
        words = _mix(data.astype(np.uint64) + np.uint64(1))
    if len(words) == 0:
        return np.zeros(1, dtype=np.uint64)
    width = min(SHINGLE_WORDS, len(words))
    count = len(words) - width + 1
    runs = np.zeros(count, dtype=np.uint64)
    for offset in range(width):
        runs = runs * np.uint64(_BASE) + words[offset : offset + count]
    hashes = np.unique(_mix(runs))
    hashes.flags.writeable = False
    return hashes


def jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """Jaccard similarity of two sets of shingles (sorted, without repetition): shared / all, from 0 to 1."""
    small, large = sorted((first, second), key=len)
    places = np.minimum(np.searchsorted(large, small), len(large) - 1)
    shared = int(np.count_nonzero(large[places] == small))
    return shared / (len(first) + len(second) - shared)


@cache
def _permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd factors and offsets of the multiplicative hashes that stand for permutations, shape (P, 1) each."""
    numbers = np.random.Generator(np.random.PCG64(15082025)).integers(0, 1 << 32, (2, PERMUTATIONS, 1), dtype=np.uint32)
    return numbers[0] | np.uint32(1), numbers[1]


def signature(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """MinHash signature of a set of shingles, shape (P,): two sets agree in a place with probability their Jaccard."""
    factors, offsets = _permutations()
    short = (hashes >> np.uint64(32)).astype(np.uint32)
    least = np.full(PERMUTATIONS, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(short), BLOCK):
        permuted = short[None, start : start + BLOCK] * factors
        permuted += offsets
        np.minimum(least, permuted.min(axis=1), out=least)
    return least


def rows_per_band(threshold: float) -> int:
    """The widest band, in places of the signature, that overlooks a pair at ``threshold`` with ``MISS_PROBABILITY``.

    Wide bands give few false candidates, narrow ones overlook fewer pairs.
    """
    for rows in (32, 16, 8, 4, 2):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISS_PROBABILITY:
            return rows
    return 1


class NearDuplicates:
    """Documents seen so far, none of them a near-duplicate of another."""

    def __init__(self, threshold: float):
        """``threshold``: documents whose Jaccard similarity is at least this, in (0, 1], are near-duplicates."""
        self.threshold = threshold
        self._rows = rows_per_band(threshold)
        deviation = (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
        self._least_estimate = threshold - ESTIMATE_DEVIATIONS * deviation
        self._texts: list[str] = []
        self._signatures: list[NDArray[np.uint32]] = []
        self._sizes: list[int] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, text: str) -> bool:
        """Keep ``text`` and return True, or return False if it is a near-duplicate of a document that was kept."""
        hashes = shingles(text)
        places = signature(hashes)
        bands = [(band, places[band : band + self._rows].tobytes()) for band in range(0, PERMUTATIONS, self._rows)]
        if self._is_known(text, hashes, places, bands):
            return False
        number = len(self._texts)
        self._texts.append(text)
        self._signatures.append(places)
        self._sizes.append(len(hashes))
        for band in bands:
            self._bands.setdefault(band, []).append(number)
        return True

    def _is_known(
        self,
        text: str,
        hashes: NDArray[np.uint64],
        places: NDArray[np.uint32],
        bands: list[tuple[int, bytes]],
    ) -> bool:
        candidates = sorted({number for band in bands for number in self._bands.get(band, ())})
        # Two sets are never more alike than the smaller one's share of the larger.
        size = len(hashes)
        sizes = ((number, self._sizes[number]) for number in candidates)
        candidates = [number for number, other in sizes if min(size, other) >= self.threshold * max(size, other)]
        if not candidates:
            return False
        estimates = (np.stack([self._signatures[number] for number in candidates]) == places).mean(axis=1)
        for index in np.argsort(-estimates, kind="stable"):
            if estimates[index] < self._least_estimate:
                return False
            other = self._texts[candidates[index]]
            if other == text or jaccard(hashes, shingles(other)) >= self.threshold:
                return True
        return False
