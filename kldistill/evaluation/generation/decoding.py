"""Rows that are written side by side: one key-value cache, rows that leave when they are done, others that join.

Shapes: B rows, T columns of the cache, W vocabulary. Rows are padded in front, so their newest tokens stand together;
where columns are padding for a row, its mask is 0. Positions are given, so padding shifts nothing.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from kldistill.evaluation.generation.cache import Cache
from kldistill.evaluation.generation.canonical import CanonicalMask
from kldistill.evaluation.generation.cuts import Merging
from kldistill.evaluation.generation.shared_prefix import Prefix, seeing
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.training.padding import pad_in_front

SLICE = 128  # columns of the prompts that are run at a time
ALIKE = 0.8  # of the longest prompt: shorter ones are run apart


@dataclass
class Row:
    """One completion that is being written.

    Attributes:
        request, sample: which completion of which request it is.
        rest: bytes of the prompt that are still to be spelt again.
        budget: bytes of the completion, at most.
        stop: the byte strings before which the completion ends.
        chance: the row's own random numbers, so that nothing depends on its neighbours.
        before: ids of the prompt.
        ids: the tokens that were written.
        counted: for each of them, whether it holds at least a byte of the completion.
        gone: columns of the cache, the row's last ones, whose tokens were replaced by the one to be run next.
        text: the bytes of the completion so far.
        seconds: its share of the wall time.
        ended: ``stop``, ``budget`` or ``eos``; empty while it goes on.
    """

    request: int
    sample: int
    rest: bytes
    budget: int
    stop: Sequence[bytes]
    chance: random.Random
    before: Sequence[int] = ()
    ids: list[int] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)
    gone: int = 0
    text: bytes = b""
    seconds: float = 0.0
    ended: str = ""

    @property
    def n_tokens(self) -> int:
        """Tokens that hold at least a byte of the completion."""
        return sum(self.counted)

    def take(self, index: int, spelt: bytes, eos: bool) -> None:
        """Add one token, and see whether that ends the completion."""
        if eos:
            self.ended = "eos"
            return
        self.ids.append(index)
        spelt, self.rest = spelt[len(self.rest) :], self.rest[len(spelt) :]
        self.counted.append(not self.rest and bool(spelt))  # one that only spells the prompt is no part of the answer
        searched = max(0, len(self.text) - max(map(len, self.stop), default=1) + 1)
        self.text += spelt
        stops = [place for stop in self.stop if (place := self.text.find(stop, searched)) >= 0]
        if stops and min(stops) <= self.budget:
            self.text, self.ended = self.text[: min(stops)], "stop"
        elif len(self.text) >= self.budget or len(self.ids) > 2 * self.budget + 64:  # the latter: tokens without text
            self.text, self.ended = self.text[: self.budget], "budget"

    def merge(self, merging: Merging) -> int | None:
        """Replace tokens at the end of what was written by the new one that they spell, as long as there is one.

        Returns:
            The token that is to be run next in place of the last one; None where nothing was replaced.
        """
        merged = None
        while not self.rest and (found := merging.find(self.ids)):
            count, merged = found
            self.ids[-count:] = [merged]
            self.counted[-count:] = [any(self.counted[-count:])]
            self.gone += count - 1  # the last token of all has not been run yet
        return merged


class Rows:
    """The rows that are being written with one model, all after the same ``prefix`` if there is one.

    Args:
        cut: how what is written is cut (see ``kldistill.evaluation.generation.cuts``); None: as it is written. Layers
            with a sliding window count the columns of tokens that were replaced, too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spelling: Spelling,
        eos: set[int],
        temperature: float,
        top_p: float,
        prefix: Prefix | None = None,
        cut: CanonicalMask | Merging | None = None,
    ) -> None:
        self.model, self.spelling, self.eos, self.prefix, self.cut = model, spelling, eos, prefix, cut
        self.temperature, self.top_p = temperature, top_p
        self.rows: list[Row] = []
        self.cache = Cache()
        self.mask_BT = torch.zeros(0, 0, dtype=torch.int64, device=model.device)
        self.position_B = torch.zeros(0, dtype=torch.int64, device=model.device)
        self.next_B = torch.zeros(0, dtype=torch.int64, device=model.device)
        self._masks: dict[bytes, Tensor] = {}

    @property
    def width(self) -> int:
        """Columns of the cache."""
        return self.mask_BT.shape[1] if self.rows else 0

    @torch.no_grad()
    def join(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[Row]]) -> list[Row]:
        """Run prompts and let their rows join; each prompt is run once for all its rows.

        Prompts of about the same length run together: a short one among long ones is mostly padding.

        Args:
            prompts: ids after those of ``prefix``, at least one each, the longest first.
            rows: the rows of each prompt.

        Returns:
            Rows that ended with their first token.
        """
        done: list[Row] = []
        start = 0
        for end in range(1, len(prompts) + 1):
            if end == len(prompts) or len(prompts[end]) < ALIKE * len(prompts[start]):
                done += self._join(prompts[start:end], rows[start:end])
                start = end
        return done

    def _join(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[Row]]) -> list[Row]:
        """``join`` for prompts of about the same length."""
        begun = time.perf_counter()
        device = self.model.device
        ids_BT, mask_BT = pad_in_front(prompts, device)
        before = 0 if self.prefix is None else self.prefix.length
        cache, copied = Cache(), 0
        if self.prefix is not None and not self.prefix.held_once:
            cache, copied = self.prefix.cache.copies(len(prompts)), before
        position_BT = (before + mask_BT.cumsum(1) - 1).clamp(min=0)
        whole_BT = torch.cat([mask_BT.new_ones(len(prompts), copied), mask_BT], 1)
        logits_BW = torch.empty(0)
        # In slices, so that the attention weights of long prompts do not fill the memory.
        for start in range(0, ids_BT.shape[1], SLICE):
            end = min(start + SLICE, ids_BT.shape[1])
            seen_BT = whole_BT[:, : copied + end]
            logits_BW = self._forward(ids_BT[:, start:end], seen_BT, position_BT[:, start:end], cache)
        index = torch.tensor([prompt for prompt, own in enumerate(rows) for _ in own], device=device)
        if len(index) != len(prompts):
            cache.select_rows(index)
        added = [row for own in rows for row in own]
        self._merge(cache, whole_BT[index], (position_BT[:, -1] + 1)[index])
        chosen = self._choose(logits_BW[index], added)
        self.next_B = torch.cat([self.next_B, chosen])
        self.rows += added
        self._share(added, begun)
        return self._leave()

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Write one more token in every row; returns those that ended with it."""
        begun = time.perf_counter()
        self._forget()
        self.mask_BT = F.pad(self.mask_BT, (0, 1), value=1)
        logits_BW = self._forward(self.next_B[:, None], self.mask_BT, self.position_B[:, None], self.cache)
        self.position_B = self.position_B + 1
        self.next_B = self._choose(logits_BW, self.rows)
        self._share(self.rows, begun)
        return self._leave()

    def _forward(
        self, ids_BT: Int[Tensor, "B T"], mask: Int[Tensor, "B S"], position_BT: Int[Tensor, "B T"], cache: Cache
    ) -> Float[Tensor, "B W"]:
        """Logits after the last column, float32; ids beyond the tokenizer's are left out."""
        prefix = self.prefix if self.prefix is not None and self.prefix.held_once else None
        with seeing(prefix):
            output = self.model(
                ids_BT,
                attention_mask=mask,
                position_ids=position_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1, : len(self.spelling.table)].float()

    def _choose(self, logits_BW: Float[Tensor, "B W"], rows: Sequence[Row]) -> Int[Tensor, " B"]:
        """The next token of each row: the most probable one, or one drawn; the rows take note of it."""
        for place, row in enumerate(rows):
            if row.rest:
                if row.rest not in self._masks:
                    self._masks[row.rest] = self.spelling.allowed(row.rest).to(logits_BW.device)
                logits_BW[place] = logits_BW[place].masked_fill(~self._masks[row.rest], -torch.inf)
            elif isinstance(self.cut, CanonicalMask):
                last = [*row.before[-self.cut.reach :], *row.ids[-self.cut.reach :]]
                logits_BW[place, self.cut.forbidden(last)] = -torch.inf
        if self.temperature == 0:
            chosen_B = logits_BW.argmax(-1)
        else:
            chosen_B = draw(logits_BW / self.temperature, self.top_p, [row.chance.random() for row in rows])
        for row, index in zip(rows, chosen_B.tolist(), strict=True):
            row.take(index, self.spelling.table[index], index in self.eos)
        if isinstance(self.cut, Merging):
            for place, row in enumerate(rows):
                if (merged := row.merge(self.cut)) is not None:
                    chosen_B[place] = merged
        return chosen_B

    def _forget(self) -> None:
        """Mask the columns of tokens that were replaced; the next token stands where the first of them stood."""
        for place, row in enumerate(self.rows):
            if row.gone:
                self.mask_BT[place, self.mask_BT[place].nonzero().flatten()[-row.gone :]] = 0
                self.position_B[place] -= row.gone
                row.gone = 0

    def _merge(self, cache: Cache, mask_BT: Int[Tensor, "B T"], position_B: Int[Tensor, " B"]) -> None:
        """Put the rows of another cache below those of this one; the shorter one is padded in front."""
        if not self.rows:
            self.cache, self.mask_BT, self.position_B = cache, mask_BT, position_B
            return
        widths = self.mask_BT.shape[1], mask_BT.shape[1]
        width = max(widths)
        self.cache.append_rows(cache, width)
        self.mask_BT = torch.cat([F.pad(self.mask_BT, (width - widths[0], 0)), F.pad(mask_BT, (width - widths[1], 0))])
        self.position_B = torch.cat([self.position_B, position_B])

    def leave_at(self, limit: int) -> list[Row]:
        """Take out the rows that have filled the model's context."""
        for row, position in zip(self.rows, self.position_B.tolist(), strict=True):
            if position >= limit:
                row.ended = "budget"
        return self._leave()

    def _leave(self) -> list[Row]:
        """Take out the rows that have ended, and the columns that no row needs any more."""
        done = [row for row in self.rows if row.ended]
        if done:
            kept = torch.tensor([index for index, row in enumerate(self.rows) if not row.ended], dtype=torch.int64)
            kept = kept.to(self.mask_BT.device)
            self.rows = [row for row in self.rows if not row.ended]
            self.cache.select_rows(kept)
            self.mask_BT, self.position_B, self.next_B = self.mask_BT[kept], self.position_B[kept], self.next_B[kept]
            columns = self.mask_BT.any(0).nonzero().flatten()
            if self.rows and len(columns) < 0.9 * self.mask_BT.shape[1]:
                self.mask_BT = self.mask_BT[:, columns]
                self.cache.select_columns(columns)
        return done

    def _share(self, rows: Sequence[Row], begun: float) -> None:
        for row in rows:
            row.seconds += (time.perf_counter() - begun) / len(rows)


def draw(logits_BW: Float[Tensor, "B W"], top_p: float, uniform: Sequence[float]) -> Int[Tensor, " B"]:
    """One id a row by its probability, among the most probable that together have ``top_p`` (Holtzman et al., 2020).

    Args:
        uniform: a number in [0, 1) for each row; the same number and logits give the same id.
    """
    p_BW, order_BW = logits_BW.double().softmax(-1).sort(-1, descending=True)
    above_BW = p_BW.cumsum(-1)
    p_BW = p_BW.masked_fill(above_BW - p_BW >= top_p, 0.0)  # the first one always stays
    above_BW = p_BW.cumsum(-1)
    wanted_B = torch.tensor(uniform, dtype=torch.float64, device=p_BW.device) * above_BW[:, -1]
    at_B = (above_BW <= wanted_B[:, None]).sum(-1)
    last_B = (p_BW > 0).sum(-1) - 1
    return order_BW.gather(1, torch.minimum(at_B, last_B)[:, None]).squeeze(1)
