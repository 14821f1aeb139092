"""Texts in both cuts: the original tokenizer's, with the teacher's states, and the extended tokenizer's."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kldistill.corpus.snippets import Snippet
from kldistill.losses.alignment import Alignment, align
from kldistill.losses.chunks import only
from kldistill.tokens.encoding import Encoded, encode_snippets
from kldistill.tokens.pieces import PieceTable
from kldistill.training import states
from kldistill.training.states import States, scored_rows

KEPT = 4_096  # alignments: a text of 700 bytes has some 20 KB of them


@dataclass(frozen=True)
class TwoCuts:
    """Texts, their two cuts, and the table that tells how the cuts belong together.

    Attributes:
        states: the texts with the original tokenizer's ids and, where there is a teacher, its hidden states.
        new: the same texts as the extended tokenizer reads them.
        pieces: the extended tokenizer's table.
    """

    states: States
    new: Sequence[Encoded]
    pieces: PieceTable
    _aligned: dict[int, Alignment] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, folder: Path, name: str, tokenizer: PreTrainedTokenizerBase, pieces: PieceTable) -> "TwoCuts":
        """The texts that ``states.write`` stored as ``name``, cut by the extended ``tokenizer`` too."""
        return cls.of(states.read(folder, name), tokenizer, pieces)

    @classmethod
    def of(cls, texts: States, tokenizer: PreTrainedTokenizerBase, pieces: PieceTable) -> "TwoCuts":
        """These texts, cut by the extended ``tokenizer`` too."""
        return cls(texts, encode_snippets(tokenizer, texts.snippets), pieces)

    def __len__(self) -> int:
        return len(self.new)

    @cached_property
    def new_ids(self) -> list[list[int]]:
        """The extended tokenizer's ids of each text."""
        return [one.ids for one in self.new]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text in the new cut."""
        return [len(row) for row in self.new_ids]

    def alignment(self, index: int) -> Alignment:
        """One text's alignment, of what is scored of it: made when it is first asked for, and kept as long as there are
        not too many.
        """
        if index not in self._aligned:
            if len(self._aligned) >= KEPT:
                self._aligned.pop(next(iter(self._aligned)))
            snippet, new = self.states.snippets[index], self.new[index]
            alignment = align(self.states.ids[index], new.ids, self.pieces, starts_of(snippet, new.sizes))
            rows = scored_rows(snippet, new.sizes)
            self._aligned[index] = alignment if rows is None else only(alignment, rows)
        return self._aligned[index]


def starts_of(snippet: Snippet, sizes: Sequence[int]) -> set[int]:
    """Where in a snippet's ids a part begins. The first token of all is before them.

    Args:
        sizes: how many ids each part has.
    """
    return {1 + start for start in itertools.accumulate(sizes[:-1])} if snippet.parts else set()
