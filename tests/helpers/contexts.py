"""Contexts of random Markov chains, cut by longest match or by merges, and the losses at one position of all texts that
go on from there: for tests against brute force (``oracle.py``).
"""

import numpy as np
import torch
from hypothesis import reject, settings
from hypothesis import strategies as st
from torch import Tensor

from kldistill.losses.alignment import Alignment, align
from kldistill.losses.chunks import concatenate
from kldistill.losses.kl import kl_terms
from kldistill.losses.masked import masked_logits
from kldistill.tokens.pieces import PieceTable
from tests.helpers.oracle import MergeOracle, Oracle, close_under_prefixes

N = 3  # pieces
SETTINGS = settings(max_examples=30)
tokens = st.lists(
    st.lists(st.integers(0, N - 1), min_size=2, max_size=4).map(tuple), min_size=1, max_size=4, unique=True
)
closed_tokens = st.lists(
    st.lists(st.integers(0, N - 1), min_size=2, max_size=3).map(tuple), min_size=1, max_size=4, unique=True
).map(close_under_prefixes)
texts = st.lists(st.integers(0, N - 1), min_size=6, max_size=6)


class Context:
    """One student prefix of an oracle: all texts that go on from it, and the loss at the position after it."""

    def __init__(self, new_tokens: list[tuple[int, ...]], text: list[int], length: int, order: int, seed: int) -> None:
        self._look(Oracle(N, order, new_tokens, seed), PieceTable(N, new_tokens), text, length)

    def _look(self, oracle: Oracle, table: PieceTable, text: list[int], length: int) -> None:
        self.oracle, self.table = oracle, table
        self._made: dict[PieceTable, list[tuple[list[int], Alignment]]] = {}
        self.prefix = self.oracle.cut(text)[:length]
        self.texts = self.oracle.texts(self.prefix)
        if not self.texts:
            reject()
        self.target = self.oracle.push_forward(self.prefix)

    def _alignments(self) -> list[tuple[list[int], Alignment]]:
        """The student's tokens of every text, and their alignment with its pieces: made once for every table."""
        if self.table not in self._made:
            news = [self.oracle.cut(text) for _, text in self.texts]
            aligned = [align(text, new, self.table) for (_, text), new in zip(self.texts, news, strict=True)]
            self._made[self.table] = list(zip(news, aligned, strict=True))
        return self._made[self.table]

    def losses(
        self, row: Tensor, change=lambda alignment: alignment, masked: bool = False
    ) -> list[tuple[float, float, float]]:
        """(weight, first-piece term, split term) of every text, for student logits ``row`` at the position."""
        news = [new for new, _ in self._alignments()]
        aligned = [change(alignment) for _, alignment in self._alignments()]
        # All texts at once, as the sequences of one batch: they have the same number of pieces.
        longest, at = max(map(len, news)), len(self.prefix) - 1
        logits = torch.zeros(len(news), longest, self.table.new_size, dtype=torch.float64)
        logits[:, at] = row
        teacher = torch.cat([self.oracle.teacher_logits(text) for _, text in self.texts])
        batch = concatenate(aligned, [longest] * len(aligned), [len(self.texts[0][1])] * len(aligned))
        logits = logits.flatten(0, 1)
        terms = kl_terms(masked_logits(logits, batch) if masked else logits, teacher, batch)
        here = torch.isin(batch.student_row, torch.arange(len(news)) * longest + at)
        assert int(here.sum()) == len(news)
        weights = [weight for weight, _ in self.texts]
        return list(zip(weights, terms.first_P[here].tolist(), terms.split_P[here].tolist(), strict=True))

    def can_follow(self) -> Tensor:
        """Which tokens make no other cut of the text before them and their own, by cutting every such text."""
        before = [piece for token in self.prefix for piece in self.table.old_pieces(token)]
        every = range(self.table.new_size)
        return torch.tensor(
            [self.oracle.cut([*before, *self.table.old_pieces(token)]) == [*self.prefix, token] for token in every]
        )

    def exact(self, row: Tensor) -> float:
        log_q = torch.log_softmax(row, -1).numpy()
        return sum(p * (np.log(p) - log_q[w]) for w, p in enumerate(self.target) if p > 0)


class MergeContext(Context):
    """The same where texts are cut by merges."""

    def __init__(self, merges: list[tuple[int, int]], text: list[int], length: int, order: int, seed: int) -> None:
        oracle = MergeOracle(N, order, merges, seed)
        table = PieceTable(N, oracle.tokens, merges=[(*pair, N + number) for number, pair in enumerate(merges)])
        self._look(oracle, table, text, length)


def merges_of(choices: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merges of tokens that are there, none of them making what there is, or more than four pieces."""
    pieces: list[tuple[int, ...]] = [(piece,) for piece in range(N)]
    merges: list[tuple[int, int]] = []
    for left, right in choices:
        pair = (left % len(pieces), right % len(pieces))
        made = pieces[pair[0]] + pieces[pair[1]]
        if made not in pieces and len(made) <= 4:
            merges.append(pair)
            pieces.append(made)
    return merges


merges = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=5).map(merges_of).filter(len)
merge_contexts = st.builds(MergeContext, merges, texts, st.integers(1, 3), st.integers(1, 2), st.integers(0, 10**6))
contexts = st.builds(Context, tokens, texts, st.integers(1, 3), st.integers(1, 2), st.integers(0, 10**6))
closed_contexts = st.builds(Context, closed_tokens, texts, st.integers(1, 3), st.integers(1, 2), st.integers(0, 10**6))


def student(context: Context, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(context.table.new_size, generator=generator, dtype=torch.float64)
