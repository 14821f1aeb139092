"""Passes of a model whose attention cannot be taken over: each row runs by itself, with a cache of the model's own.

Slower than ``packed``, whose interface this has, and for any causal model of transformers.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel


class Alone:
    """The ids of every row, and the cache of those that were run.

    Attributes:
        lengths: of each row, its tokens so far.
        shared: 0, as no beginning is run once for all.
    """

    shared = 0

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.ids: list[list[int]] = []
        self.caches: list[Cache | None] = []

    @property
    def lengths(self) -> list[int]:
        return list(map(len, self.ids))

    def add(self) -> None:
        """A new row, the last one, without tokens."""
        self.ids.append([])
        self.caches.append(None)

    def fork(self, row: int, n: int) -> None:
        """New rows, the last ones, with the tokens of another one."""
        self.ids += [list(self.ids[row]) for _ in range(n)]
        self.caches += [deepcopy(self.caches[row]) for _ in range(n)]

    def remove(self, row: int) -> None:
        """Take a row out; the last row gets its place."""
        self.ids[row], self.caches[row] = self.ids[-1], self.caches[-1]
        self.ids.pop()
        self.caches.pop()

    def forget(self, row: int, n: int) -> None:
        """Take back the last ``n`` tokens of a row: all others are run again, as not every cache can be cut short."""
        if n:
            del self.ids[row][-n:]
            self.caches[row] = None

    @torch.no_grad()
    def run(self, tokens: Sequence[Sequence[int]], wanted: Sequence[int]) -> Float[Tensor, "K W"]:
        """Run tokens; see ``packed.Places.run``."""
        found = []
        for row, (own, n) in enumerate(zip(tokens, wanted, strict=True)):
            if not own:
                continue
            cache = self.caches[row]
            before = 0 if cache is None else len(self.ids[row])
            self.ids[row] += own
            ids = torch.tensor([self.ids[row][before:]], device=self.model.device)
            cache = DynamicCache(config=self.model.config) if cache is None else cache
            output = self.model(ids, past_key_values=cache, use_cache=True)
            # A model with states of its own kind (Mamba) gives none back: its rows are run whole each time.
            self.caches[row] = output.get("past_key_values")
            found.append(output.logits[0, len(ids[0]) - n :])
        return torch.cat(found)
