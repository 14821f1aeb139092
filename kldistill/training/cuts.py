"""Texts in both cuts: the original tokenizer's, with the teacher's states, and the extended tokenizer's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kldistill.losses.alignment import Alignment, align
from kldistill.tokens.encoding import encode
from kldistill.tokens.pieces import PieceTable
from kldistill.training import states
from kldistill.training.states import States

KEPT = 4_096  # alignments: a text of 700 bytes has some 20 KB of them


@dataclass(frozen=True)
class TwoCuts:
    """Texts, their two cuts, and the table that tells how the cuts belong together.

    Attributes:
        states: the texts with the original tokenizer's ids and, where there is a teacher, its hidden states.
        new_ids: the extended tokenizer's ids of the same texts.
        pieces: the extended tokenizer's table.
    """

    states: States
    new_ids: Sequence[Sequence[int]]
    pieces: PieceTable
    _aligned: dict[int, Alignment] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, folder: Path, name: str, tokenizer: PreTrainedTokenizerBase, pieces: PieceTable) -> "TwoCuts":
        """The texts that ``states.write`` stored as ``name``, cut by the extended ``tokenizer`` too."""
        return cls.of(states.read(folder, name), tokenizer, pieces)

    @classmethod
    def of(cls, texts: States, tokenizer: PreTrainedTokenizerBase, pieces: PieceTable) -> "TwoCuts":
        """These texts, cut by the extended ``tokenizer`` too."""
        return cls(texts, encode(tokenizer, [snippet.text for snippet in texts.snippets]), pieces)

    def __len__(self) -> int:
        return len(self.new_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text in the new cut."""
        return [len(row) for row in self.new_ids]

    def alignment(self, index: int) -> Alignment:
        """One text's alignment: made when it is first asked for, and kept as long as there are not too many."""
        if index not in self._aligned:
            if len(self._aligned) >= KEPT:
                self._aligned.pop(next(iter(self._aligned)))
            self._aligned[index] = align(self.states.ids[index], self.new_ids[index], self.pieces)
        return self._aligned[index]
