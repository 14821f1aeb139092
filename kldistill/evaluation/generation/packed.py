"""Passes of a model over tokens of many rows, one row's behind the other's, without any padding.

A pass takes any number of tokens of every row: the next one, several that were guessed, or a piece of a prompt. All of
the model but its attention (``attention.py``) works on each token alone and sees a single long text, so every token
costs the same and nothing is computed for padding. The keys and values of a row lie in a place of their own, from
column 0 on. To forget a row's last tokens is to count fewer of them, and the next ones are written over them.

This is what transformers calls continuous batching; its own (``generate_batch``) chooses tokens by itself, without what
a row has to spell first, what may not follow in it, or random numbers of its own, and checks no guesses. Its prompt
lookup takes one text at a time.

Shapes: N tokens of a pass, R rows, T tokens of the row that has most of them, H heads of keys, D their width, S columns
of a row, P columns that all rows share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel

from kldistill.evaluation.generation.attention import places_of_the_pass
from kldistill.evaluation.generation.cache import SPARE
from kldistill.runtime.devices import suited

SHORT = 16  # tokens of a row that are met together with those of all other rows


@dataclass
class Group:
    """Rows whose queries are met together.

    Attributes:
        rows: places of the rows.
        width: own columns that any of them sees.
        position_RT: of each query in its row's text; 0 where a row has fewer queries than others.
        taken: which of the pass's tokens are the queries, R times T; the first one where there is none.
        tokens: which of the pass's tokens are the group's own.
        back: which of the R times T queries are these.
    """

    rows: slice
    width: int
    position_RT: Tensor
    taken: Tensor
    back: Tensor
    tokens: Tensor
    biases: dict[int | None, Tensor] = field(default_factory=dict)

    def bias(self, window: int | None, shared: int, like: Tensor) -> Float[Tensor, "R 1 T 1 C"]:
        """What is added to the scores: minus infinity for columns that a query must not see; C: P + S."""
        if window not in self.biases:
            column_C = torch.arange(shared + self.width, device=like.device)
            position_RT1 = self.position_RT[..., None]
            hidden_RTC = column_C > position_RT1
            if window is not None:
                hidden_RTC |= column_C <= position_RT1 - window
            zero_RTC = torch.zeros(hidden_RTC.shape, dtype=like.dtype, device=like.device)
            self.biases[window] = zero_RTC.masked_fill_(hidden_RTC, -torch.inf)[:, None, :, None]
        return self.biases[window]


class Places(Cache):
    """Keys and values of all rows, and what the next pass does with them.

    Args:
        model: one that ``fits``, within ``attending``.
        prefix: ids that all rows begin with; no row's own tokens.

    Attributes:
        lengths: of each row, its own tokens so far.
        shared: P.
    """

    def __init__(self, model: PreTrainedModel, prefix: Sequence[int] = ()) -> None:
        super().__init__(layers=[])
        self.model, self.sizes = model, suited(model.device)
        self.lengths: list[int] = []
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.prefixes: list[tuple[Tensor, Tensor]] = []
        self.shared = 0
        self.groups: list[Group] = []
        self._row_N = self._column_N = torch.zeros(0, dtype=torch.int64)
        self._flat: dict[tuple[int, int], Tensor] = {}  # by heads and columns: where the pass's tokens go, head by head
        self._size = (0, 0)  # rows and columns that the buffers must have
        if prefix:
            self.add()
            self.run([list(prefix)], [1])
            # Of a single row: (H, P, D) each.
            self.prefixes = [(keys[0, :, : len(prefix)], values[0, :, : len(prefix)]) for keys, values in self.buffers]
            self.buffers, self.lengths, self.shared = [], [], len(prefix)

    def add(self) -> None:
        """A new row, the last one, without tokens."""
        self.lengths.append(0)

    def fork(self, row: int, n: int) -> None:
        """New rows, the last ones, with the tokens of another one."""
        first = len(self.lengths)
        self.lengths += [self.lengths[row]] * n
        self._size = (max(self._size[0], first + n), self._size[1])
        for layer, pair in enumerate(self.buffers):
            self.buffers[layer] = pair = self._grown(*pair)
            for states in pair:
                states[first : first + n] = states[row]

    def remove(self, row: int) -> None:
        """Take a row out; the last row gets its place."""
        last = len(self.lengths) - 1
        if row != last:
            for pair in self.buffers:
                for states in pair:
                    states[row, :, : self.lengths[last]] = states[last, :, : self.lengths[last]]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def forget(self, row: int, n: int) -> None:
        """Take back the last ``n`` tokens of a row."""
        self.lengths[row] -= n

    @torch.no_grad()
    def run(self, tokens: Sequence[Sequence[int]], wanted: Sequence[int]) -> Float[Tensor, "K W"]:
        """Run tokens: the next ones of every row, of some perhaps none.

        Args:
            wanted: after how many of each row's tokens, the last ones, the logits are wanted; none after a part of a
                prompt.

        Returns:
            These logits, row by row.
        """
        device = self.model.device
        self._plan([len(own) for own in tokens])
        ids = torch.tensor([[index for own in tokens for index in own]], device=device)
        position = (self._column_N + self.shared)[None]
        kept, end = list[int](), 0
        for own, n in zip(tokens, wanted, strict=True):
            end += len(own)
            kept += range(end - n, end)
        before = places_of_the_pass.set(self)
        try:
            output = self.model(
                ids,
                position_ids=position,
                past_key_values=self,
                use_cache=True,
                logits_to_keep=torch.tensor(kept, dtype=torch.int64, device=device),
            )
        finally:
            places_of_the_pass.reset(before)
        self.lengths = [length + len(own) for length, own in zip(self.lengths, tokens, strict=True)]
        return output.logits[0]

    def _plan(self, sizes: Sequence[int]) -> None:
        """Where the next pass's tokens belong, and which of them meet their rows' columns together."""
        device = self.model.device
        row = [index for index, size in enumerate(sizes) for _ in range(size)]
        column = [length + at for length, size in zip(self.lengths, sizes, strict=True) for at in range(size)]
        self._row_N, self._column_N = torch.tensor(row, device=device), torch.tensor(column, device=device)
        self._flat = {}
        ends = [length + size for length, size in zip(self.lengths, sizes, strict=True)]
        self._size = (max(self._size[0], len(sizes)), max(ends))
        starts = list(accumulate(sizes, initial=0))
        short = [size if size <= SHORT else 0 for size in sizes]
        n = self.sizes.attention_rows
        blocks = [range(first, min(first + n, len(sizes))) for first in range(0, len(sizes), n)]
        self.groups = [
            self._group(rows.start, starts[rows.start : rows.stop], short[rows.start : rows.stop], ends)
            for rows in blocks
            if any(short[rows.start : rows.stop])
        ]
        for rows in _long(sizes, ends, self.sizes.attention_cells):
            own = slice(rows.start, rows.stop)
            self.groups.append(self._group(rows.start, starts[own], sizes[own], ends))

    def _group(self, first: int, starts: Sequence[int], sizes: Sequence[int], ends: Sequence[int]) -> Group:
        """The group of the rows from ``first`` on, of which ``starts`` and ``sizes`` are; some may have no tokens."""
        device, most = self.model.device, max(sizes)
        tokens, taken, back, position = list[int](), list[int](), list[int](), list[list[int]]()
        for place, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            own, missing = list(range(start, start + size)), [0] * (most - size)
            begin = self.shared + ends[first + place] - size
            tokens += own
            taken += own + missing
            back += range(place * most, place * most + size)
            position.append(list(range(begin, begin + size)) + missing)
        return Group(
            slice(first, first + len(sizes)),
            max(ends[first + place] for place, size in enumerate(sizes) if size),
            torch.tensor(position, device=device),
            torch.tensor(taken, device=device),
            torch.tensor(back, device=device),
            torch.tensor(tokens, device=device),
        )

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Write the pass's keys and values (1, H, N, D) into the rows' places; returns those of all rows."""
        if layer_idx == len(self.buffers):
            self.buffers.append((key_states[:0, :, :0], value_states[:0, :, :0]))
        pair = self.buffers[layer_idx] = self._grown(*self.buffers[layer_idx])
        for buffer, states in zip(pair, (key_states, value_states), strict=True):
            h, s, d = buffer.shape[1:]
            if (h, s) not in self._flat:
                head_H1 = torch.arange(h, device=buffer.device)[:, None]
                self._flat[h, s] = ((self._row_N * h + head_H1) * s + self._column_N).flatten()
            buffer.view(-1, d).index_copy_(0, self._flat[h, s], states[0].reshape(-1, d))
        return pair

    def _grown(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers, with as many rows and columns as are needed, and no more columns than that where rows are added:
        many short rows may follow upon a few long ones.
        """
        rows, columns = self._size
        if rows > keys.shape[0] or columns > keys.shape[2]:
            columns = (columns if rows > keys.shape[0] else max(columns, keys.shape[2])) + SPARE
            more = (0, 0, 0, columns - keys.shape[2], 0, 0, 0, rows - keys.shape[0])
            keys, values = (F.pad(states, more) for states in (keys, values))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No column is common to all rows: positions are given."""
        return 0


def _long(sizes: Sequence[int], ends: Sequence[int], cells: int) -> Iterator[range]:
    """Rows with many tokens that are met together: neighbours, as long as rows times the most tokens times the most
    columns are within ``cells``.
    """
    first = 0
    for index, size in enumerate([*sizes, 0]):
        own = slice(first, index + 1)
        room = size > SHORT and len(sizes[own]) * max(sizes[own]) * max(ends[own]) <= cells
        if not room:
            if first < index:
                yield range(first, index)
            first = index if size > SHORT else index + 1
