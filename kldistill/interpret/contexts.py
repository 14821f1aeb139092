"""Held-out text as both models see it, and the uses of new tokens in it.

A *use* of a new token w is one place where the text has w. Two contexts belong to it: ``before``, whose next token is
w, and ``after``, the first that has read it. In each, the student's row and the teacher's row end at the same byte.
"""

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kldistill.corpus.snippets import Snippet, Text, cut
from kldistill.losses.alignment import Alignment, align
from kldistill.tokens.encoding import encode_snippets
from kldistill.tokens.pieces import PieceTable
from kldistill.tokens.windows import within_context
from kldistill.training.cuts import starts_of


class Place(NamedTuple):
    """A common boundary that something follows.

    Attributes:
        student_row, teacher_row: index of the last token before the boundary, in the student's and the teacher's ids.
        piece, token: what follows: the next old piece, the next token of the student.
        forbidden: pieces that cannot follow, as they would complete a longer token (docs/method.md, section 5).
    """

    student_row: int
    teacher_row: int
    piece: int
    token: int
    forbidden: tuple[int, ...] = ()


class Use(NamedTuple):
    """One place where the text has the new token ``token``, in context number ``context``."""

    context: int
    token: int
    before: Place
    after: Place


class Rival(NamedTuple):
    """Another place where the original model reads the last piece of a use's token, but not at the end of that token.

    Attributes:
        context, teacher_row: where it is.
        use: index of the use that it rivals.
    """

    context: int
    teacher_row: int
    use: int


@dataclass(frozen=True)
class Context:
    """A snippet, cut by both tokenizers, with their alignment."""

    document: str
    text: str
    old_ids: list[int]
    new_ids: list[int]
    alignment: Alignment

    def places(self) -> list[Place]:
        """All common boundaries that something follows, in order."""
        a = self.alignment
        forbidden: dict[int, list[int]] = {}
        for position, piece in zip(a.zero_position.tolist(), a.zero_piece.tolist(), strict=True):
            forbidden.setdefault(position, []).append(piece)
        return [
            Place(row, old, self.old_ids[old + 1], self.new_ids[row + 1], tuple(forbidden.get(index, ())))
            for index, (row, old) in enumerate(zip(a.student_row.tolist(), a.teacher_row.tolist(), strict=True))
        ]

    def uses(self, index: int) -> list[Use]:
        """The uses of new tokens with a common boundary on both sides and something after.

        ``index`` is the number of this context.
        """
        by_row = {place.student_row: place for place in self.places()}
        return [
            Use(index, token, by_row[row - 1], by_row[row])
            for row, token in enumerate(self.new_ids)
            if token >= self.alignment.old_size and row - 1 in by_row and row in by_row
        ]


def read(
    documents: Iterable[Text],
    old_tokenizer: PreTrainedTokenizerBase,
    new_tokenizer: PreTrainedTokenizerBase,
    pieces: PieceTable,
    *,
    n: int,
    size: int,
    seed: int,
    config: PretrainedConfig,
) -> list[Context]:
    """The first ``n`` snippets of about ``size`` bytes, in an order by seeded hash, that hold a use of a new token.

    None has more tokens than the model of this ``config`` takes.
    """

    def rank(snippet: Snippet) -> bytes:
        return hashlib.blake2b(f"{seed}\0{snippet.document}\0{snippet.text}".encode(), digest_size=16).digest()

    contexts: list[Context] = []
    ranked = _ranked(documents, size, rank, ahead=max(8 * n, 1))
    # One after the other: most are not looked at.
    for snippet in (part for one in ranked for part in within_context([one], old_tokenizer, config)):
        if len(contexts) == n:
            break
        (old,), (new,) = (encode_snippets(tokenizer, [snippet]) for tokenizer in (old_tokenizer, new_tokenizer))
        alignment = align(old.ids, new.ids, pieces, starts_of(snippet, new.sizes))
        context = Context(snippet.document, snippet.text, old.ids, new.ids, alignment)
        if context.uses(0):
            contexts.append(context)
    return contexts


def _ranked(documents: Iterable[Text], size: int, rank: Callable[[Snippet], bytes], ahead: int) -> Iterator[Snippet]:
    """The snippets of some documents in the order of their ranks.

    Only the first ones are held: ``ahead`` of them, and more where these are not enough. ``documents`` are gone through
    anew for them.
    """
    done = 0
    while True:
        first = heapq.nsmallest(ahead, cut(documents, size), key=rank)
        yield from first[done:]
        if len(first) < ahead:
            return
        done, ahead = len(first), 4 * ahead


def draw_uses(contexts: Sequence[Context], n: int, seed: int) -> list[Use]:
    """At most ``n`` of all uses in the contexts, drawn without replacement, in the order of the text."""
    uses = [use for index, context in enumerate(contexts) for use in context.uses(index)]
    if len(uses) <= n:
        return uses
    kept = sorted(random.Random(seed).sample(range(len(uses)), n))
    return [uses[index] for index in kept]


def draw_rivals(contexts: Sequence[Context], uses: Sequence[Use], n: int, seed: int) -> list[Rival]:
    """At most ``n`` rivals of each use, drawn without replacement, in the order of the text."""
    places: dict[int, list[tuple[int, int]]] = {}
    ends: dict[tuple[int, int], int] = {}
    for index, context in enumerate(contexts):
        for row, piece in enumerate(context.old_ids):
            places.setdefault(piece, []).append((index, row))
        ends |= {(index, use.after.teacher_row): use.token for use in context.uses(index)}
    chance = random.Random(seed)
    rivals = []
    for number, use in enumerate(uses):
        piece = contexts[use.context].old_ids[use.after.teacher_row]
        others = [place for place in places[piece] if ends.get(place) != use.token]
        rivals += [Rival(*place, number) for place in chance.sample(others, min(n, len(others)))]
    return sorted(rivals)
