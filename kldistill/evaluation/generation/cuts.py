"""How what a model writes is cut into tokens: as it writes it, or as the tokenizer would cut it.

A model that has learnt new tokens can still write their old pieces, one after the other. ``CanonicalMask`` forbids
that, and thereby changes the text. ``Merging`` lets it write what it wants, and puts the new token into the place of
its pieces as soon as they stand there: the text stays, and what follows is predicted from the tokenizer's own cut.
"""

from collections.abc import Sequence

from kldistill.evaluation.generation.canonical import CanonicalMask
from kldistill.tokens.pieces import PieceTable


class Merging:
    """Finds, at the end of what was written, tokens that together spell a longer one.

    Args:
        pieces: the extended tokenizer's table.
    """

    def __init__(self, pieces: PieceTable) -> None:
        self.old_pieces = pieces.old_pieces
        self.spelt = {row: pieces.old_size + index for index, row in enumerate(pieces.pieces) if row}
        self.longest = max(map(len, self.spelt), default=0)

    def find(self, ids: Sequence[int]) -> tuple[int, int] | None:
        """How many of the last ids (two at least) spell a new token, and which, the longest; None where none do."""
        found, tail = None, tuple[int, ...]()
        for count, index in enumerate(reversed(ids), start=1):
            own = self.old_pieces(index)
            tail = (*own, *tail)
            if not own or len(tail) > self.longest:
                break
            if count > 1 and tail in self.spelt:
                found = count, self.spelt[tail]
        return found


def cut_of(kind: str, pieces: PieceTable) -> CanonicalMask | Merging | None:
    """What ``eval.cut`` names, for models with this table; None for ``free``."""
    return None if kind == "free" else {"masked": CanonicalMask, "merged": Merging}[kind](pieces)
