"""The table of pieces: how every new token decomposes into old tokens, ordered as a forest by its prefixes.

Notation (used in all of ``kldistill.losses``): V is the old vocabulary's size, W = V + N the new one's.
Ids below V are old tokens, ids V..W-1 new ones. ``pieces(w)`` are the old tokens that w replaces; an old token is
its own only piece. The parent of w is the token with the longest proper prefix of ``pieces(w)``; the *subtree* of
w is w with all its descendants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.artifact import read_merges, read_new_tokens, read_vocabulary
from kldistill.tokens.merge_order import MergeOrder


@dataclass
class Node:
    """One node of the trie over piece sequences, reached by walking some pieces from a root.

    ``token`` is the token that is spelled exactly by the walk, or -1 where the walk is only a prefix of longer
    tokens. ``children`` are the direct descendants *in the forest*: pairs (token, extra pieces beyond this node's
    own). ``ends`` are the pieces that complete a longer token at once, ``grows`` those that only lead towards one.
    """

    token: int = -1
    next: dict[int, Node] = field(default_factory=dict)
    children: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    ends: frozenset[int] = frozenset()
    grows: frozenset[int] = frozenset()


class PieceTable:
    """The old tokens that every token of the new vocabulary stands for.

    Args:
        old_size: V, the size of the old vocabulary in tokens.
        pieces: for the new token V + i, its old pieces (at least two, all below V), in order. An empty sequence
            marks a token without exact pieces (an ``AddedToken``); the KL losses cannot work with those.
        byte_lengths: bytes of text that each id below W stands for, shape (W,). With it, common boundaries are
            found by byte offset even where the new tokenization is no refinement of the old one.
        merges: the merges of new tokens in the order of their ranks, as triples (left, right, what they become). They
            say how texts are cut (see ``MergeOrder``); without them, cuts are taken to be longest matches.

    Raises:
        TokenizerError: a new token with one piece, with a piece outside the old vocabulary, or two tokens with
            equal pieces.
    """

    def __init__(
        self,
        old_size: int,
        pieces: Sequence[Sequence[int]],
        byte_lengths: Sequence[int] | None = None,
        merges: Sequence[tuple[int, int, int]] | None = None,
    ) -> None:
        self.old_size = old_size
        self.pieces = [tuple(int(piece) for piece in row) for row in pieces]
        self.new_size = old_size + len(self.pieces)
        self.byte_lengths = None if byte_lengths is None else np.asarray(byte_lengths, dtype=np.int64)
        if self.byte_lengths is not None and self.byte_lengths.shape != (self.new_size,):
            raise TokenizerError(
                f"byte_lengths has shape {self.byte_lengths.shape}, but the new vocabulary has {self.new_size} tokens."
            )
        self.roots: dict[int, Node] = {}
        self.exact = all(self.pieces)
        for index, row in enumerate(self.pieces):
            if row:
                self._insert(old_size + index, row)
        for piece, root in self.roots.items():
            root.token = piece
            self._finish(root)
        self.mass_owner, self.mass_member = self._subtrees()
        self.order: MergeOrder | None = None
        if merges is not None:
            ranks = {(left, right): (rank, token) for rank, (left, right, token) in enumerate(merges)}
            self.order = MergeOrder(ranks, self.old_pieces, range(old_size, self.new_size))

    @classmethod
    def load(cls, folder: Path) -> PieceTable:
        """The table of a ``tokens`` artifact."""
        sizes = read_vocabulary(folder)
        pieces = [token.pieces for token in read_new_tokens(folder)]
        return cls(sizes.old_size, pieces, sizes.byte_lengths, read_merges(folder, sizes.old_size))

    def old_pieces(self, token: int) -> tuple[int, ...]:
        """The old tokens that ``token`` stands for: itself where it is old; empty for a token without exact pieces."""
        return (token,) if token < self.old_size else self.pieces[token - self.old_size]

    def starting_with(self, piece: int) -> list[int]:
        """All tokens whose first piece is ``piece``: itself, and the new ones."""
        return [piece, *self._starting.get(piece, [])]

    @cached_property
    def _starting(self) -> dict[int, list[int]]:
        """The new tokens by their first piece."""
        found: dict[int, list[int]] = {}
        for index, row in enumerate(self.pieces):
            if row:
                found.setdefault(row[0], []).append(self.old_size + index)
        return found

    def expand(self, ids: Sequence[int]) -> list[int]:
        """Old pieces that the new ids stand for, in order."""
        return [piece for token in ids for piece in self.old_pieces(token)]

    def _insert(self, token: int, row: tuple[int, ...]) -> None:
        if len(row) < 2 or any(not 0 <= piece < self.old_size for piece in row):
            raise TokenizerError(
                f"pieces of new token {token} are {row}: they must be at least two old ids below {self.old_size}."
            )
        node = self.roots.setdefault(row[0], Node())
        for piece in row[1:]:
            node = node.next.setdefault(piece, Node())
        if node.token != -1:
            raise TokenizerError(f"new tokens {node.token} and {token} have the same pieces {row}.")
        node.token = token

    def _finish(self, node: Node) -> None:
        """Fill ``children``, ``ends`` and ``grows`` from the leaves up."""
        for piece, child in node.next.items():
            self._finish(child)
            if child.token != -1:
                node.children.append((child.token, (piece,)))
            else:
                node.children.extend((token, (piece, *extra)) for token, extra in child.children)
        node.ends = frozenset(piece for piece, child in node.next.items() if child.token != -1)
        node.grows = frozenset(node.next) - node.ends

    def _subtrees(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (owner, member) of tokens: each owner that has descendants, with every member of its subtree."""
        owners: list[int] = []
        members: list[int] = []

        def collect(node: Node) -> list[int]:
            below = [token for child in node.next.values() for token in collect(child)]
            if node.token == -1:
                return below
            if below:
                owners.extend([node.token] * (len(below) + 1))
                members.extend([node.token, *below])
            return [node.token, *below]

        for root in self.roots.values():
            collect(root)
        return np.asarray(owners, dtype=np.int64), np.asarray(members, dtype=np.int64)

    @property
    def prefix_closed(self) -> bool:
        """Whether every proper prefix of every new token is a token. Then the KL loss leaves nothing unresolved."""

        def closed(node: Node) -> bool:
            return node.token != -1 and all(closed(child) for child in node.next.values())

        return all(closed(root) for root in self.roots.values())
