"""Passes of a model over tokens of many rows, one row's behind the other's, without any padding.

A pass takes any number of tokens of every row: the next one, several that were guessed, or a piece of a prompt. All of
the model but its attention works on each token alone and sees a single long text, so every token costs the same and
nothing is computed for padding. Attention is ours: the keys and values of a row lie in a place of their own, from
column 0 on. To forget a row's last tokens is to count fewer of them, and the next ones are written over them.

This is what transformers calls continuous batching; its own (``generate_batch``) chooses tokens by itself, without what
a row has to spell first, what may not follow in it, or random numbers of its own, and checks no guesses. Its prompt
lookup takes one text at a time.

Where several heads of queries share keys, they meet them in one product, and columns that all rows begin with are
held, and met, once.

Shapes: N tokens of a pass, R rows, T tokens of the row that has most of them, H heads of keys, G heads of queries for
each, D their width, S columns of a row, P columns that all rows share.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kldistill.evaluation.generation.cache import SPARE
from kldistill.runtime.devices import suited

NAME = "kldistill_packed"
SHORT = 16  # tokens of a row that are met together with those of all other rows
# What a layer may look at: everything before, or the last columns of it. Others keep states that cannot be cut short.
LAYERS = {"full_attention", "sliding_attention"}


def fits(model: PreTrainedModel) -> bool:
    """Whether ``attend`` can take the place of the model's own attention.

    It does what flash attention is asked for, so models that can be run with that have handed it all they need.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return bool(model._supports_attention_backend and model._supports_flash_attn) and kinds <= LAYERS


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the model attends by ``attend``, if it can."""
    if not fits(model):
        yield
        return
    before = model.config.get_text_config()._attn_implementation or "eager"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


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
        before = _places.set(self)
        try:
            output = self.model(
                ids,
                position_ids=position,
                past_key_values=self,
                use_cache=True,
                logits_to_keep=torch.tensor(kept, dtype=torch.int64, device=device),
            )
        finally:
            _places.reset(before)
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


_places: ContextVar[Places] = ContextVar("places")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface, for the pass of ``Places.run``: every query sees its own row, as far as it.

    Args:
        query: (1, H * G, N, D).
        key, value: of all rows, as ``Places.update`` gives them.
        sliding_window: columns that a query sees, its own included.
        softcap: bound of the scores (Gemma 2).
        s_aux: for each head of queries a score that takes part in the softmax and has no value (gpt-oss).
    """
    places = _places.get()
    heads, d = query.shape[1], query.shape[3]
    h, dv = key.shape[1], value.shape[3]
    g, p = heads // h, places.shared
    query_NHD = (query * (d**-0.5 if scaling is None else scaling))[0].transpose(0, 1)
    out_NHD = query.new_empty(query.shape[2], heads, dv)
    for group in places.groups:
        r, t = group.position_RT.shape
        # Q = T * G.
        query_RHQD = query_NHD[group.taken].view(r, t, h, g, d).transpose(1, 2).reshape(r, h, t * g, d)
        key_RHSD, value_RHSD = (states[group.rows, :, : group.width] for states in (key, value))
        score_RHQC = query_RHQD @ key_RHSD.transpose(2, 3)
        if p:
            key_HPD, value_HPD = places.prefixes[module.layer_idx]  # type: ignore[index]
            theirs = query_RHQD.transpose(0, 1).reshape(h, r * t * g, d) @ key_HPD.transpose(1, 2)
            score_RHQC = torch.cat([theirs.view(h, r, t * g, p).transpose(0, 1), score_RHQC], -1)
        if softcap is not None:
            score_RHQC = torch.tanh(score_RHQC / softcap) * softcap
        score_RHTGC = score_RHQC.view(r, h, t, g, p + group.width)
        score_RHTGC = score_RHTGC + group.bias(sliding_window, p, score_RHTGC)
        if s_aux is not None:
            sink = s_aux.to(score_RHTGC.dtype).view(1, h, 1, g, 1).expand(r, -1, t, -1, -1)
            score_RHTGC = torch.cat([score_RHTGC, sink], -1)
        weight = score_RHTGC.softmax(-1, dtype=torch.float32).to(query.dtype)[..., : p + group.width]
        weight_RHQC = weight.reshape(r, h, t * g, p + group.width)
        out_RHQD = weight_RHQC[..., p:] @ value_RHSD
        if p:
            theirs = weight_RHQC[..., :p].transpose(0, 1).reshape(h, r * t * g, p) @ value_HPD
            out_RHQD = out_RHQD + theirs.view(h, r, t * g, dv).transpose(0, 1)
        out_NHD[group.tokens] = out_RHQD.view(r, h, t, g, dv).transpose(1, 2).reshape(r * t, heads, dv)[group.back]
    return out_NHD[None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
