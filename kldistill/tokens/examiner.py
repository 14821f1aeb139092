"""Two tokenizers compared on held-out text: what the extended one does otherwise than the old one.

Boundaries are places between bytes of normalised text. *Student* is the extended tokenizer, *teacher* the old one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kldistill.tokens.artifact import NewToken
from kldistill.tokens.encoding import reader
from kldistill.tokens.words import chunks, take


@dataclass
class Split:
    """Sizes of one split under both tokenizers.

    Attributes:
        saved: the share of its tokens that each document saves.
    """

    bytes: int = 0
    old: int = 0
    new: int = 0
    saved: list[float] = field(default_factory=list)


@dataclass
class Findings:
    """Counts over held-out text.

    Attributes:
        splits: sizes by split.
        uses: (N,) uses of every new token.
        boundaries: student boundaries.
        violations: student boundaries that are no teacher boundary.
        mismatches: student tokens between two teacher boundaries that the teacher cuts into other pieces than theirs.
        unaligned: documents whose ids stand for different bytes under both tokenizers, which cannot be compared.
        contested: student positions where a longer token would have fitted (its pieces stand there).
        broken: documents that decode to another text than with the old tokenizer.
        miscounted: new tokens that stand in the train text less often than their count says.
        changed_words: words of the old vocabulary that a wider boundary cuts into other pieces.
        special: spellings of special tokens in the text of all splits, which are read as text.
    """

    splits: dict[str, Split] = field(default_factory=dict)
    uses: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    boundaries: int = 0
    violations: int = 0
    mismatches: int = 0
    unaligned: int = 0
    contested: int = 0
    broken: int = 0
    miscounted: int = 0
    changed_words: int = 0
    special: int = 0


class Examiner:
    """Compares two tokenizers on texts.

    Args:
        old: the original tokenizer.
        new: the extended one.
        tokens: the new tokens.
        size: V, the number of old ids.
        table: the bytes that every old id stands for.
    """

    def __init__(self, old: Tokenizer, new: Tokenizer, tokens: list[NewToken], size: int, table: list[bytes]):
        self.old, self.new, self.size = reader(old.to_str()), reader(new.to_str()), size
        pieces = [[index] for index in range(size)] + [token.pieces for token in tokens]
        self.lengths = np.array([len(p) for p in pieces])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.flat = np.array([piece for p in pieces for piece in p], dtype=np.int64)
        self.old_bytes = np.array([len(data) for data in table])
        # AddedTokens have no pieces; their bytes are those of their string.
        own = [sum(len(table[p]) for p in t.pieces) if t.pieces else len(t.string.encode()) for t in tokens]
        self.new_bytes = np.concatenate([self.old_bytes, np.array(own, dtype=np.int64)])
        self.table = table
        self.by_pieces = {tuple(token.pieces) for token in tokens if token.pieces}
        self.token_lengths = sorted({len(p) for p in self.by_pieces}, reverse=True)
        self.openings = np.array(sorted({(p[0] << 32) | p[1] for p in self.by_pieces}), dtype=np.int64)
        self.findings = Findings(uses=np.zeros(len(tokens), np.int64))

    def text_of(self, index: int) -> str:
        """What a token spells; bytes of a part of a character as ``\\xe3``, where decoders have one mark for all."""
        if index < self.size and self.table[index]:
            return self.table[index].decode(errors="backslashreplace")
        return self.new.decode([index])

    def read(self, split: str, texts: Iterable[str]) -> None:
        """Add the texts to the findings."""
        sizes = self.findings.splits.setdefault(split, Split())
        for group in chunks(texts):
            old_ids = [e.ids for e in self.old.encode_batch_fast(group, add_special_tokens=False)]
            new_ids = [e.ids for e in self.new.encode_batch_fast(group, add_special_tokens=False)]
            old_texts = self.old.decode_batch(old_ids, skip_special_tokens=False)
            new_texts = self.new.decode_batch(new_ids, skip_special_tokens=False)
            self.findings.broken += sum(was != now for was, now in zip(old_texts, new_texts, strict=True))
            sizes.bytes += sum(len(text.encode()) for text in group)
            for old_list, new_list in zip(old_ids, new_ids, strict=True):
                old, new = np.array(old_list, dtype=np.int64), np.array(new_list, dtype=np.int64)
                sizes.old += len(old)
                sizes.new += len(new)
                if old_list:
                    sizes.saved.append(1 - len(new) / len(old))
                self._document(old, new)

    def _document(self, old: NDArray, new: NDArray) -> None:
        findings = self.findings
        findings.boundaries += len(new)
        used = new[new >= self.size] - self.size
        findings.uses += np.bincount(used, minlength=len(findings.uses))
        if np.array_equal(take(self.flat, self.starts[new], self.lengths[new]), old):
            self._contested(old, np.cumsum(self.lengths[new]) - self.lengths[new], self.lengths[new])
            return
        old_ends, new_ends = np.cumsum(self.old_bytes[old]), np.cumsum(self.new_bytes[new])
        if len(old) == 0 or len(new) == 0 or old_ends[-1] != new_ends[-1]:
            findings.unaligned += 1
            return
        findings.violations += int(np.sum(~np.isin(new_ends, old_ends)))
        place = {end: i + 1 for i, end in enumerate([0, *old_ends.tolist()], start=-1)}
        for token, (start, end) in zip(new.tolist(), pairwise([0, *new_ends.tolist()]), strict=True):
            if start in place and end in place and self.lengths[token]:
                pieces = self.flat[self.starts[token] : self.starts[token] + self.lengths[token]]
                findings.mismatches += not np.array_equal(pieces, old[place[start] : place[end]])

    def _contested(self, old: NDArray, positions: NDArray, lengths: NDArray) -> None:
        """Count student positions (``positions`` in the teacher's ids) where a longer token's pieces stand."""
        inner = positions < len(old) - 1
        positions, lengths = positions[inner], lengths[inner]
        opening = np.isin((old[positions] << 32) | old[positions + 1], self.openings)
        ids = old.tolist()
        for place, length in zip(positions[opening].tolist(), lengths[opening].tolist(), strict=True):
            longer = (n for n in self.token_lengths if n > length)
            self.findings.contested += any(tuple(ids[place : place + n]) in self.by_pieces for n in longer)


def unreachable(new: Tokenizer, tokens: list[NewToken], uses: NDArray[np.int64]) -> list[NewToken]:
    """New tokens that neither the train text, nor held-out text, nor their own string alone can produce."""
    suspects = [t for t, used in zip(tokens, uses.tolist(), strict=True) if t.count == 0 and used == 0]
    # Parts of characters, on the way to a user's term, are no text of their own.
    return [t for t in suspects if "\ufffd" not in t.string and not produces(new, t.string, t.id)]


def produces(tokenizer: Tokenizer, string: str, index: int) -> bool:
    """Whether the string is cut so that the id appears: alone, after a space, a bracket or a line break.

    The latter two because tokenizers that put a space before every text (Llama-2) never have it alone.
    """
    texts = [f"{before}{string}" for before in ("", " ", "(", "\n")]
    return any(index in encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def changed_words(old: Tokenizer, new: Tokenizer, tokens: list[NewToken], words: Iterable[str]) -> list[str]:
    """Words of the old vocabulary that are cut into other old pieces when an underscore, a dot, a capital, a sign or a
    space joins them.

    Args:
        words: texts of old tokens. Each is encoded in the middle of ``x_`` and ``_y.z``, of ``(`` and ``) =``.
    """
    pieces = {token.id: token.pieces for token in tokens if token.pieces}
    changed = []
    for group in chunks(words):
        texts = [
            f"{word}_y.z a({word}) = b" if word[:1].isspace() else f"x_{word}_y.zW{word} ({word}) = {word} a"
            for word in group
        ]
        before, after = (tokenizer.encode_batch_fast(texts, add_special_tokens=False) for tokenizer in (old, new))
        for word, was, now in zip(group, before, after, strict=True):
            spelt = [piece for index in now.ids for piece in pieces.get(index, (index,))]
            if spelt != was.ids:
                changed.append(word)
    return changed
