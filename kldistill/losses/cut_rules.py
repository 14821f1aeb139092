"""What a context rules out of the text after it: by the order of the merges, or where nothing is known of them by
longest match. See docs/method.md, sections 5 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence

from kldistill.tokens.merge_order import After, Escapes, MergeOrder
from kldistill.tokens.pieces import Node, PieceTable

# Tokens whose pieces a text begins with: pairs (number of pieces, node), shortest first.
Chain = list[tuple[int, Node]]


class LongestMatch:
    """What a context rules out where cuts are longest matches.

    Args:
        live: trie nodes that earlier student boundaries have reached: tokens that could still have grown.
    """

    def __init__(self, live: list[Node]) -> None:
        self._live = live
        self.zeros = sorted(frozenset[int]().union(*(node.ends for node in live)))
        self.opens = sorted(frozenset[int]().union(*(node.grows for node in live)).difference(self.zeros))

    def refused(self, pieces: PieceTable) -> list[int]:
        """Tokens that cannot follow: those within whose pieces a longer token would have been complete."""
        suspects = (token for piece in (*self.zeros, *self.opens) for token in pieces.starting_with(piece))
        return [token for token in suspects if any(_completes(node, pieces.old_pieces(token)) for node in self._live)]

    def contradicts(self, observed: int, chain: Chain, first: int) -> bool:
        """Whether the observed next token is not the one that this rule asks for."""
        return observed != (chain[-1][1].token if chain else first) or first in self.zeros

    def resolves(self, node: Node, text: Sequence[int]) -> bool:
        """Whether the split at a node, which ``text`` spells, has the target that the forest says."""
        live = self._live
        for piece in text:
            live = [below for below in (node_.next.get(piece) for node_ in live) if below and below.next]
        return not live

    def escapes(self, token: int) -> Escapes | None:
        """After which pieces a text with those of a token is cut otherwise: none."""
        return Escapes()


def _completes(node: Node | None, text: Sequence[int]) -> bool:
    """Whether a token ends on the way from a node along the pieces of ``text``."""
    for piece in text:
        node = node.next.get(piece) if node else None
        if node and node.token != -1:
            return True
    return False


class ByMerges:
    """What a context rules out where texts are cut by merges.

    Args:
        order: the merges.
        last: the context's last token.
        free: whether nothing is known of what it rules out, or nothing ruled out.
    """

    def __init__(self, order: MergeOrder, last: int, free: bool) -> None:
        self._order = order
        after = After() if free else order.after(last)
        self._refused = after.refused
        self.zeros, self.opens = list(after.zeros), list(after.opens)

    def refused(self, pieces: PieceTable) -> list[int]:
        """Tokens that cannot follow: the text of the last one and theirs would be cut otherwise."""
        return sorted(self._refused)

    def contradicts(self, observed: int, chain: Chain, first: int) -> bool:
        """Whether the observed next token is not one that this rule allows: a word may have ended there."""
        if observed in self._refused or observed in self._order.swallowed:
            return True
        sure = [(depth, node.token) for depth, node in chain if node.token not in self._order.unsure]
        own = next((depth for depth, node in chain if node.token == observed), 1)
        return bool(sure) and sure[-1][0] > own

    def resolves(self, node: Node, text: Sequence[int]) -> bool:
        """Whether the split at a node, which ``text`` spells, has the target that the forest says."""
        return node.token not in self._order.unsure and self._refused.isdisjoint(self._order.starting_with(tuple(text)))

    def escapes(self, token: int) -> Escapes | None:
        """After which pieces a text with those of a token is cut otherwise; None for a token that no text has."""
        if token in self._order.swallowed:
            return None
        return self._order.escapes(token) if token in self._order.unsure else Escapes()
