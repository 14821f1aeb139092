"""Losses over a part of the old vocabulary (sampled softmax), for both models alike.

Two heads and the way back through one of them are a quarter of a training step where the vocabulary is small beside
the body (SmolLM2), and most of it where it is large (Gemma 3 270M), while nearly all of the teacher's mass is on few
thousand tokens. So a step's softmaxes may go over these alone, over every token that its texts and its alignment
name, all new tokens, and some of the others, drawn anew in each step. One that was drawn stands for as many as there
were to draw from: the log of their ratio is added to its logit, in the teacher's softmax as in the student's. Both
normalisers are then the true ones in the mean over draws (Jean et al., arXiv 1412.2007, of one model and words drawn by
frequency). As both models are read in the same way, a student that is its teacher has neither loss nor gradient in any
draw; of all others the loss is near to the exact one, and what is validated and evaluated is the exact one.

Shape suffixes: V old and W all tokens, S columns: old tokens of a step.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kldistill.losses.alignment import IDS
from kldistill.losses.chunks import Chunk, renumbered


class Columns(NamedTuple):
    """The old tokens that a step's softmaxes go over.

    Attributes:
        ids_S: their ids, in order.
        log_weight_S: log of the number of tokens that each stands for; 0 but for those that were drawn.
    """

    ids_S: Int[Tensor, " S"]
    log_weight_S: Float[Tensor, " S"]


class Sampling(NamedTuple):
    """How columns are drawn.

    Attributes:
        always_V: old tokens that are in every step.
        drawn: how many of the others are, besides.
        seed: of what is drawn, with the step's number.
    """

    always_V: Bool[Tensor, " V"]
    drawn: int
    seed: int

    def over(self, chunks: Sequence[Chunk], step: int) -> tuple[list[Chunk], Columns]:
        """The columns of a step's pass, and its chunks with every id as its place among columns and new tokens.

        All ids that the chunks name are among the columns.
        """
        size = len(self.always_V)
        kept_V = self.always_V.clone()
        for chunk in chunks:
            for name in IDS:
                ids = getattr(chunk.alignment, name)
                kept_V[ids[ids < size]] = True
        others = torch.nonzero(~kept_V)[:, 0]
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        drawn = others[torch.randperm(len(others), generator=generator)[: self.drawn]]
        weight_V = kept_V.float().index_fill(0, drawn, len(others) / max(len(drawn), 1))
        ids_S = torch.nonzero(weight_V)[:, 0]
        number_V = torch.full((size,), -1).index_copy(0, ids_S, torch.arange(len(ids_S)))
        n_new = chunks[0].alignment.new_size - size if chunks else 0
        number_W = torch.cat([number_V, len(ids_S) + torch.arange(n_new)])
        made = [replace(c, alignment=renumbered(c.alignment, number_W, len(ids_S))) for c in chunks]
        return made, Columns(ids_S, weight_V[ids_S].log())
