"""Brute force for the KL across two tokenizations: a Markov chain over pieces, its text enumerated and cut by
longest match.

Nothing here is shared with the package: the push-forward is counted from whole texts, never from the forest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor


class Oracle:
    """A random order-``order`` chain over ``n`` pieces, and new tokens given as piece sequences (ids n, n + 1, ...)."""

    def __init__(self, n: int, order: int, tokens: Sequence[tuple[int, ...]], seed: int) -> None:
        self.n, self.order, self.tokens = n, order, [tuple(token) for token in tokens]
        rng = np.random.default_rng(seed)
        pasts = [past for length in range(order + 1) for past in product(range(n), repeat=length)]
        rows = rng.dirichlet(np.full(n, 0.7), size=len(pasts)).clip(1e-4)
        self.table = dict(zip(pasts, rows / rows.sum(-1, keepdims=True), strict=True))
        self.longest = max(len(token) for token in self.tokens)
        self.spellings = {(piece,): piece for piece in range(n)} | {t: n + i for i, t in enumerate(self.tokens)}

    def next_probabilities(self, past: Sequence[int]) -> np.ndarray:
        return self.table[tuple(past[max(0, len(past) - self.order) :])]

    def cut(self, text: Sequence[int]) -> list[int]:
        """Longest match from the left."""
        ids, at = [], 0
        while at < len(text):
            length = next(
                k
                for k in range(self.longest, 0, -1)
                if tuple(text[at : at + k]) in self.spellings and at + k <= len(text)
            )
            ids.append(self.spellings[tuple(text[at : at + length])])
            at += length
        return ids

    def texts(self, prefix: Sequence[int]) -> list[tuple[float, tuple[int, ...]]]:
        """All texts whose cut begins with the student tokens ``prefix``, with room to see the next one whole.

        The first piece of the text is given (probability 1); weights are conditional on the prefix and sum to 1.
        """
        start = [piece for token in prefix for piece in ((token,) if token < self.n else self.tokens[token - self.n])]
        found = []
        for tail in product(range(self.n), repeat=self.longest + 1):
            text = (*start, *tail)
            if self.cut(text)[: len(prefix)] != list(prefix):
                continue
            weight = math.prod(float(self.next_probabilities(text[:j])[text[j]]) for j in range(1, len(text)))
            found.append((weight, text))
        total = sum(weight for weight, _ in found)
        return [(weight / total, text) for weight, text in found] if total else []

    def push_forward(self, prefix: Sequence[int]) -> np.ndarray:
        """q*(. | prefix) over the new vocabulary, shape (W,)."""
        target = np.zeros(self.n + len(self.tokens))
        for weight, text in self.texts(prefix):
            target[self.cut(text)[len(prefix)]] += weight
        return target

    def teacher_logits(self, text: Sequence[int]) -> Tensor:
        """Logits over the pieces after each piece of ``text``, up to a constant per row, shape (len(text), n)."""
        rows = [np.log(self.next_probabilities(text[: j + 1])) + j for j in range(len(text))]
        return torch.tensor(np.array(rows), dtype=torch.float64)


class MergeOracle(Oracle):
    """The same, cut by merges in the order of their ranks: pairs of ids, each making the next new token."""

    def __init__(self, n: int, order: int, merges: Sequence[tuple[int, int]], seed: int) -> None:
        pieces: list[tuple[int, ...]] = [(piece,) for piece in range(n)]
        for left, right in merges:
            pieces.append(pieces[left] + pieces[right])
        super().__init__(n, order, pieces[n:], seed)
        self.merges = list(merges)

    def cut(self, text: Sequence[int]) -> list[int]:
        """One merge after the other, each everywhere from the left, as long as any applies (Sennrich et al., 2016)."""
        ids = list(text)
        again = True
        while again:
            again = False
            for number, pair in enumerate(self.merges):
                places = [at for at in range(len(ids) - 1) if (ids[at], ids[at + 1]) == pair]
                if places:
                    ids[places[0] : places[0] + 2] = [self.n + number]
                    again = True
                    break
        return ids


def close_under_prefixes(tokens: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The tokens with all their proper prefixes of at least two pieces, without duplicates."""
    return sorted({token[:k] for token in tokens for k in range(2, len(token) + 1)})
