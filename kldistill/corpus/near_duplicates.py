"""Near-duplicate documents: MinHash with banding finds the candidates, exact Jaccard similarity decides.

A document is the set of its shingles: runs of five successive words, without punctuation and layout. What is kept of
it, beside its text, is its signature (512 bytes).

MinHash: Broder, "On the resemblance and containment of documents", 1997. Banding: Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3.

Shapes: S shingles, P permutations.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kldistill.corpus.shingles import hashed_shingles, shared

SHINGLE_WORDS = 5
PERMUTATIONS = 128
# A pair at the threshold is overlooked by the banding with at most this probability.
MISS_PROBABILITY = 1e-6
# Candidates whose estimated similarity is this many standard deviations below the threshold are not compared exactly.
ESTIMATE_DEVIATIONS = 5.0
# Shingles are permuted in blocks whose products stay in the processor's cache.
BLOCK = 2_048


@lru_cache(maxsize=32)  # of a family of near-duplicates; each has its text beside it
def shingles(text: str) -> NDArray[np.uint64]:
    """Runs of five successive words, see ``kldistill.corpus.shingles``."""
    return hashed_shingles(text, SHINGLE_WORDS)


def jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """Jaccard similarity of two sets of shingles (sorted, without repetition): shared / all, from 0 to 1."""
    both = shared(first, second)
    return both / (len(first) + len(second) - both)


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

    def __init__(self, threshold: float, read: Callable[[Any], str] = str):
        """``threshold``: documents whose Jaccard similarity is at least this, in (0, 1], are near-duplicates; at 1,
        equal texts alone.

        ``read`` gives the text of what ``add`` was given as ``kept``: by default that is the text itself.
        """
        self.threshold = threshold
        self._read = read
        self._rows = rows_per_band(threshold)
        deviation = (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
        self._least_estimate = threshold - ESTIMATE_DEVIATIONS * deviation
        self._kept: list[Any] = []
        self._signatures: list[NDArray[np.uint32]] = []
        self._sizes: list[int] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, text: str, kept: Any = None) -> bool:
        """Keep ``text`` and return True, or return False if it is a near-duplicate of a document that was kept.

        Args:
            kept: what is kept in place of the text, and told to ``read`` when the text is needed again.
        """
        hashes = shingles(text)
        places = signature(hashes)
        bands = [(band, places[band : band + self._rows].tobytes()) for band in range(0, PERMUTATIONS, self._rows)]
        if self._is_known(text, hashes, places, bands):
            return False
        number = len(self._kept)
        self._kept.append(text if kept is None else kept)
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
            other = self._read(self._kept[candidates[index]])
            # At 1 exact copies alone: marks and layout, which no shingle has, may be all that two documents differ in.
            if other == text or (self.threshold < 1 and jaccard(hashes, shingles(other)) >= self.threshold):
                return True
        return False
