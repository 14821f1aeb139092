"""Passes of a model whose attention cannot be taken over: prompts run by themselves, with caches of the model's own.

Rows that are being written, one token each, then run side by side where the model's family is known to take columns of
padding on the left; in other families each row goes on by itself. Slower than ``packed``, whose interface this has, and
for any causal model of transformers.

Shapes of keys and values: (rows, heads, columns, width of a head).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache, PreTrainedModel

from kldistill.evaluation.generation.cache import Cache as GrowingCache

# Families that number positions as they are told, or take no more of them than how far apart two columns are.
PADDED = {"bloom", "codegen", "falcon", "gptj", "mpt"}


@dataclass(eq=False)
class Row:
    """One text that is being written.

    Attributes:
        ids: its tokens so far.
        cache: of the tokens that were run; None where all must be run again.
        at: its row in the cache, the last columns of which are its own.
    """

    ids: list[int]
    cache: Cache | None = None
    at: int = 0


class Alone:
    """The ids of every row, and the caches of those that were run.

    Attributes:
        lengths: of each row, its tokens so far.
        shared: 0, as no beginning is run once for all.
    """

    shared = 0

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.rows: list[Row] = []
        self._joint, self._joined = GrowingCache(), list[Row]()  # what ran side by side in the last pass
        self._padded = model.config.get_text_config().model_type in PADDED
        self._numbered = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def lengths(self) -> list[int]:
        return [len(row.ids) for row in self.rows]

    def add(self) -> None:
        """A new row, the last one, without tokens."""
        self.rows.append(Row([]))

    def fork(self, row: int, n: int) -> None:
        """New rows, the last ones, with the tokens of another one."""
        own = self.rows[row]
        for _ in range(n):
            # Rows that run side by side are copied into the cache of all of them.
            cache = own.cache if self._padded else deepcopy(own.cache)
            self.rows.append(replace(own, ids=list(own.ids), cache=cache))

    def remove(self, row: int) -> None:
        """Take a row out; the last row gets its place."""
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def forget(self, row: int, n: int) -> None:
        """Take back the last ``n`` tokens of a row: all others are run again, as not every cache can be cut short."""
        if n:
            del self.rows[row].ids[-n:]
            self.rows[row].cache, self.rows[row].at = None, 0
            self._joined = []

    @torch.no_grad()
    def run(self, tokens: Sequence[Sequence[int]], wanted: Sequence[int]) -> Float[Tensor, "K W"]:
        """Run tokens; see ``packed.Places.run``."""
        side_by_side = [
            index
            for index, (row, own) in enumerate(zip(self.rows, tokens, strict=True))
            if self._padded and row.cache is not None and len(own) == wanted[index] == 1
        ]
        found: dict[int, Float[Tensor, "n W"]] = {}
        if side_by_side:
            logits = self._run_joint([self.rows[index] for index in side_by_side], [tokens[i][0] for i in side_by_side])
            found |= zip(side_by_side, logits, strict=True)
        for index, (row, own, n) in enumerate(zip(self.rows, tokens, wanted, strict=True)):
            if own and index not in found:
                logits = self._run_alone(row, own)
                found[index] = logits[len(logits) - n :]
        return torch.cat([found[index] for index in sorted(found)])

    def _run_alone(self, row: Row, own: Sequence[int]) -> Float[Tensor, "T W"]:
        """Run a row's tokens, all of them where it has no cache."""
        before = 0 if row.cache is None else len(row.ids)
        row.ids += own
        ids = torch.tensor([row.ids[before:]], device=self.model.device)
        cache = row.cache
        if cache is None:
            cache = GrowingCache() if self._padded else DynamicCache(config=self.model.config)
        output = self.model(ids, past_key_values=cache, use_cache=True)
        # A model with states of its own kind (Mamba) gives none back: its rows are run whole each time.
        row.cache = output.get("past_key_values")
        return output.logits[0]

    def _run_joint(self, rows: Sequence[Row], own: Sequence[int]) -> Float[Tensor, "R 1 W"]:
        """Run one token of each row, all in one pass."""
        device = self.model.device
        width = max(len(row.ids) for row in rows)
        if rows != self._joined:
            self._join(rows, width)
        length_R1 = torch.tensor([[len(row.ids)] for row in rows], device=device)
        seen_RC = torch.arange(width + 1, device=device) >= width - length_R1
        where = {"position_ids": length_R1} if self._numbered else {}
        ids_R1 = torch.tensor(own, device=device)[:, None]
        output = self.model(ids_R1, attention_mask=seen_RC.long(), past_key_values=self._joint, use_cache=True, **where)
        for row, index in zip(rows, own, strict=True):
            row.ids.append(index)
        return output.logits[:, -1:]

    def _join(self, rows: Sequence[Row], width: int) -> None:
        """Put the keys and values of these rows, in this order, into one cache, each at the end of its columns."""
        joint = GrowingCache()
        caches = [row.cache for row in rows if isinstance(row.cache, GrowingCache)]
        for layer in range(len(caches[0].grown)):
            of_rows = [cache.grown[layer].pair for cache in caches]
            keys, values = (
                torch.cat(
                    [
                        F.pad(pair[which][row.at : row.at + 1, :, -len(row.ids) :], (0, 0, width - len(row.ids), 0))
                        for row, pair in zip(rows, of_rows, strict=True)
                    ]
                )
                for which in (0, 1)
            )
            joint.update(keys, values, layer)
        self._joint, self._joined = joint, list(rows)
        for at, row in enumerate(rows):
            row.cache, row.at = joint, at
