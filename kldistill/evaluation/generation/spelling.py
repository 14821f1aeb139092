"""What tokens spell, byte by byte: how a prompt's end is healed, and whether a text is written in canonical tokens."""

import bisect
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kldistill.tokens.definition import token_bytes
from kldistill.tokens.encoding import encode, special_ids


class Spelling:
    """A tokenizer's vocabulary as bytes.

    Attributes:
        tokenizer: the tokenizer itself.
        table: the bytes of every id.
        longest: bytes of the longest token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.table = token_bytes(tokenizer)
        special = special_ids(tokenizer)
        entries = sorted((spelt, index) for index, spelt in enumerate(self.table) if spelt and index not in special)
        self._sorted = [spelt for spelt, _ in entries]
        self._ids = [index for _, index in entries]
        self._id_of: dict[bytes, list[int]] = {}
        for spelt, index in entries:
            self._id_of.setdefault(spelt, []).append(index)
        self.longest = max(len(spelt) for spelt in self._sorted)

    @cached_property
    def over_spaces(self) -> bool:
        """Whether some token goes on behind a space."""
        return any(re.search(r"\S \S", spelt.decode(errors="replace")) for spelt in self._sorted)

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of a run of ids."""
        return b"".join(self.table[index] for index in ids)

    def beginnings(self, text: bytes) -> Iterator[tuple[int, int]]:
        """The tokens with which a text may begin, none of them special: the id of each, and its size in bytes."""
        for size in range(1, min(len(text), self.longest) + 1):
            for index in self._id_of.get(text[:size], []):
                yield index, size

    def healed(self, ids: Sequence[int]) -> tuple[list[int], bytes]:
        """Take back the tokens at a prompt's end that one longer token could replace, when the text goes on.

        A prompt that ends with ``self.`` cannot be followed by the token ``self.config``, though the text may go on
        with ``config``: the model has seen such text cut otherwise, and whoever has longer tokens loses more of them.
        So the longest run of last tokens whose text is the beginning of some longer token is taken back, and
        generation has to spell it again first, in whatever tokens (token healing; the same rule for every tokenizer).

        Args:
            ids: the prompt's ids, its first token included, which is always kept.

        Returns:
            The ids that stay, and the bytes to be spelt first; these are empty where no token could span the end.
        """
        best = len(ids)
        tail = b""
        for start in range(len(ids) - 1, 0, -1):
            tail = self.table[ids[start]] + tail
            if len(tail) >= self.longest:
                break
            if self._begins(tail):
                best = start
        return list(ids[:best]), self.spell(ids[best:])

    def _begins(self, text: bytes) -> bool:
        """Whether some token is ``text`` and more."""
        place = bisect.bisect_right(self._sorted, text)
        return place < len(self._sorted) and self._sorted[place].startswith(text)

    def allowed(self, rest: bytes) -> Bool[Tensor, " W"]:
        """The ids that agree with the bytes to be spelt next: a beginning of them, or all of them and more."""
        mask = torch.zeros(len(self.table), dtype=torch.bool)
        for end in range(1, len(rest)):
            mask[self._id_of.get(rest[:end], [])] = True
        first = bisect.bisect_left(self._sorted, rest)
        last = first
        while last < len(self._sorted) and self._sorted[last].startswith(rest):
            last += 1
        mask[self._ids[first:last]] = True
        assert bool(mask.any()), "every byte has a token"
        return mask


def adoption(
    spelling: Spelling, prompt: str, text: str, emitted: Sequence[int], healed: int, old_size: int
) -> tuple[int, int]:
    """How many of the new tokens in a text's canonical cut the model wrote as such.

    Args:
        text: what was written after ``prompt``.
        emitted: the ids that were written, those that spelt the prompt's end again included.
        healed: bytes of the prompt that were spelt again.

    Returns:
        New tokens at whose very place the model wrote the same token, and all new tokens of the canonical cut that
        reach into ``text``.
    """
    before, whole = (encode(spelling.tokenizer, [t])[0][1:] for t in (prompt, prompt + text))
    end = len(spelling.spell(before))
    position = end - healed
    places = set()
    for index in emitted:
        places.add((position, index))
        position += len(spelling.table[index])
    used = spelt = position = 0
    for index in whole:
        size = len(spelling.table[index])
        if index >= old_size and position + size > end:
            spelt += 1
            used += (position, index) in places
        position += size
    return used, spelt
