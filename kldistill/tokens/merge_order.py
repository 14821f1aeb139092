"""What the order of merges says of a cut: which tokens may stand beside one another, and which may be cut otherwise.

BPE applies merges by rank, so its cuts are no longest matches. They have a simple structure all the same: a sequence of
tokens is the cut of its text exactly where each pair of neighbours is the cut of the pair's own text (Berglund and van
der Merwe, 2023, "Formalizing BPE tokenization"). So what can follow a text depends on its last token alone.

Pieces are old tokens, which the merges of new tokens join (they rank after all old merges). Ends of words, over which
no merge reaches, are not known here.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

# For every pair of tokens that a merge joins: its rank and the token that it becomes.
Ranks = Mapping[tuple[int, int], tuple[int, int]]


def cut(pieces: list[int], ranks: Ranks) -> list[int]:
    """Apply merges to a word as BPE does: always the lowest rank, leftmost first."""
    while True:
        candidates = [(ranks[pair][0], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not candidates:
            return pieces
        i = min(candidates)[1]
        pieces = [*pieces[:i], ranks[pieces[i], pieces[i + 1]][1], *pieces[i + 2 :]]


class After(NamedTuple):
    """What may follow a token.

    Attributes:
        refused: tokens that may not.
        zeros: pieces with which no token begins that may: none of the teacher's texts goes on so.
        opens: other pieces with which some refused token begins: part of their probability has gone elsewhere.
    """

    refused: frozenset[int] = frozenset()
    zeros: tuple[int, ...] = ()
    opens: tuple[int, ...] = ()


class Escapes(NamedTuple):
    """The pieces after which a text that begins with those of a token is cut otherwise, whatever follows, and those
    after which that depends on what follows.
    """

    surely: tuple[int, ...] = ()
    maybe: tuple[int, ...] = ()


class MergeOrder:
    """The merges of new tokens in their order.

    Args:
        ranks: the merges. Each joins tokens whose pieces together are those of what it makes.
        old_pieces: the pieces of any token.
        new: all new tokens.
    """

    def __init__(self, ranks: Ranks, old_pieces: Callable[[int], tuple[int, ...]], new: Sequence[int]) -> None:
        self.ranks = ranks
        self._pieces = old_pieces
        self._new = {old_pieces(token): token for token in new if old_pieces(token)}
        self._right: dict[int, list[int]] = {}
        for left, right in ranks:
            self._right.setdefault(left, []).append(right)
        self._starting: dict[tuple[int, ...], list[int]] = {}  # new tokens by what they begin with, and are more than
        for pieces, token in self._new.items():
            for n in range(1, len(pieces)):
                self._starting.setdefault(pieces[:n], []).append(token)
        self._after: dict[int, After] = {}
        self._escapes: dict[int, Escapes] = {}

    def starting_with(self, pieces: tuple[int, ...]) -> list[int]:
        """All tokens that begin with these pieces: the one that is spelt so, if there is one, and all longer ones."""
        own = [self._token(pieces)] if self._token(pieces) is not None else []
        return [*(token for token in own if token is not None), *self._starting.get(pieces, [])]

    def after(self, last: int) -> After:
        """What may follow a token; kept, as the same tokens come again and again."""
        if last not in self._after:
            self._after[last] = self._find(last)
        return self._after[last]

    def _find(self, last: int) -> After:
        before = self._pieces(last)
        suspects: set[int] = set()
        for n in range(1, len(before) + 1):
            # Only a merge across the boundary can change the cut: it joins a token that ends there and one that begins.
            left = self._token(before[-n:])
            for right in self._right.get(left, []) if left is not None else []:
                suspects.update(self.starting_with(self._pieces(right)))
        refused = frozenset(
            token for token in suspects if cut([*before, *self._pieces(token)], self.ranks) != [last, token]
        )
        zeros, opens = [], []
        for piece in sorted({self._pieces(token)[0] for token in refused}):
            possible = (token for token in self.starting_with((piece,)) if token not in self.swallowed)
            (zeros if all(token in refused for token in possible) else opens).append(piece)
        return After(refused, tuple(zeros), tuple(opens))

    @cached_property
    def swallowed(self) -> frozenset[int]:
        """New tokens that the merges do not make of their own pieces: no text has them."""
        return frozenset(token for pieces, token in self._new.items() if cut(list(pieces), self.ranks) != [token])

    @cached_property
    def unsure(self) -> frozenset[int]:
        """New tokens that a text may begin with the pieces of, and still begin with a shorter token.

        So it is for ``ab`` where ``bc`` is joined first: ``abc`` is ``a|bc``.
        """
        found = {token for token in self._new.values() if self._may_be_cut(self._pieces(token))}
        return frozenset(found) | self.swallowed

    def escapes(self, token: int) -> Escapes:
        """The pieces after which a text that begins with those of an unsure token is, or may be, cut otherwise."""
        if token not in self._escapes:
            after = self.after(token)
            surely, maybe = [], list(after.opens)
            for piece in after.zeros:
                longer = (*self._pieces(token), piece)
                grown = self._token(longer)
                if grown is None and longer not in self._starting:
                    surely.append(piece)
                elif grown is None or grown in self.unsure:
                    maybe.append(piece)  # or it goes on into a longer token
            self._escapes[token] = Escapes(tuple(surely), tuple(maybe))
        return self._escapes[token]

    def _may_be_cut(self, pieces: tuple[int, ...]) -> bool:
        """Whether some text that begins with ``pieces`` has its first boundary within them."""
        return any(
            self._reaches_over(token, pieces[n:])
            for n in range(1, len(pieces))
            if (token := self._token(pieces[:n])) is not None and token not in self.swallowed
        )

    def _reaches_over(self, last: int, rest: tuple[int, ...]) -> bool:
        """Whether ``last`` may be followed by tokens of which one begins within ``rest`` and ends beyond it."""
        refused = self.after(last).refused
        if any(token not in refused and token not in self.swallowed for token in self._starting.get(rest, [])):
            return True
        return any(
            self._reaches_over(token, rest[n:])
            for n in range(1, len(rest))
            if (token := self._token(rest[:n])) is not None and token not in refused and token not in self.swallowed
        )

    def _token(self, pieces: tuple[int, ...]) -> int | None:
        """The token that is spelt by these pieces."""
        return pieces[0] if len(pieces) == 1 else self._new.get(pieces)
