"""A mask, for any generation loop, over next tokens with which the text would be cut as the tokenizer never cuts it.

A frozen model that has just written a token which could have grown (``at`` where the vocabulary has ``at`` + ``_mask``
as one token) still gives probability to the piece that would have made it grow. The tokenizer never produces that cut,
so the model was never trained or asked to go on from there. The teacher's push-forward gives such pieces the target 0
(docs/method.md, "After a token that could have grown"); this is the same rule at generation time.

Shape suffixes: B sequences, T tokens, W old and new vocabulary.
"""

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from kldistill.losses.cut_rules import LongestMatch
from kldistill.tokens.pieces import Node, PieceTable


class CanonicalMask(LogitsProcessor):
    """Sets the logits of tokens that cannot follow to minus infinity, for ``model.generate(logits_processor=[...])``.

    A token cannot follow where the tokenizer's merges would cut the text of the last token and its own otherwise (see
    ``MergeOrder``: nothing before the last token matters). A table without merges is taken to cut by longest match:
    there a token cannot follow where one of its pieces would complete a longer token from the start of one of the last.
    Tokens without exact pieces (AddedTokens), special tokens and ids beyond the table (tokens that were added to the
    exported tokenizer later) forbid nothing and are never forbidden by this rule.

    Args:
        pieces: the extended tokenizer's table, ``PieceTable.load(folder)`` of a ``tokens`` artifact.
    """

    def __init__(self, pieces: PieceTable) -> None:
        self.pieces = pieces
        # What was written that long ago cannot grow any more.
        self.reach = max((len(row) for row in pieces.pieces), default=1) - 1
        self._forbidden = lru_cache(maxsize=100_000)(self._find)

    def __call__(  # type: ignore[override]
        self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B W"]
    ) -> Float[Tensor, "B W"]:
        """The scores with what cannot follow at minus infinity; ``scores`` itself is left as it is.

        Padding must be on the left, as ``generate`` asks for: only the last tokens of a row are looked at.
        """
        rows, columns = [], []
        for row, ids in enumerate(input_ids[:, -self.reach :].tolist() if self.reach else []):
            forbidden = self._forbidden(tuple(ids))
            rows += [row] * len(forbidden)
            columns += forbidden
        if not rows:
            return scores
        index = torch.tensor([rows, columns], device=scores.device)
        return scores.index_put((index[0], index[1]), scores.new_tensor(-torch.inf))

    def forbidden(self, ids: list[int]) -> list[int]:
        """Tokens that cannot follow a sequence of the extended tokenizer's ids."""
        return list(self._forbidden(tuple(ids[-self.reach :]))) if self.reach else []

    def _find(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if not ids or ids[-1] >= self.pieces.new_size:
            return ()
        if self.pieces.order is not None:
            return tuple(sorted(self.pieces.order.after(ids[-1]).refused))
        live: list[Node] = []
        for token in ids:
            pieces = self.pieces.old_pieces(token) if token < self.pieces.new_size else ()
            if not pieces:  # an AddedToken: what was cut before it has ended
                live = []
                continue
            root = self.pieces.roots.get(pieces[0])
            nodes = [*(node.next.get(pieces[0]) for node in live), root]
            for piece in pieces[1:]:
                nodes = [node.next.get(piece) if node is not None else None for node in nodes]
            live = [node for node in nodes if node is not None and node.next]
        return tuple(LongestMatch(live).refused(self.pieces))
