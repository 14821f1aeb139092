"""How llama.cpp cuts text, redone from what stands in a GGUF file alone: a second opinion for the tests.

Follows ``llm_tokenizer_bpe`` of llama.cpp's src/llama-vocab.cpp: special and user-defined tokens first, then the
regexes that belong to the name of the splitting rule, then in every word the merge of lowest rank, leftmost first. It
is no llama.cpp: the Unicode tables are Python's.
"""

from itertools import pairwise
from pathlib import Path

import gguf
import regex

from kldistill.tokens.definition import CHAR_OF_BYTE

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RULES = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [_LLAMA3],
    "smaug-bpe": [_LLAMA3],
    "qwen2": [_LLAMA3.replace("{1,3}", "")],
}
_LOOKS_WORDS_UP = ("llama-bpe",)
_CONTROL, _USER_DEFINED = 3, 4


class LlamaCpp:
    """The tokenizer of a GGUF file. ``encode`` gives ids without beginning- and end-of-text tokens."""

    def __init__(self, file: Path) -> None:
        fields = gguf.GGUFReader(file).fields
        tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
        types: list[int] = fields["tokenizer.ggml.token_type"].contents()
        self.name: str = fields["tokenizer.ggml.pre"].contents()
        self.ids = {token: index for index, token in enumerate(tokens)}
        merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        whole = [token for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
        self.whole = regex.compile("(" + "|".join(map(regex.escape, sorted(whole, key=len, reverse=True))) + ")")
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``."""
        found: list[int] = []
        for index, part in enumerate(self.whole.split(text)):
            if index % 2:
                found.append(self.ids[part])
                continue
            words = [part]
            for rule in _RULES[self.name]:
                words = [piece for word in words for piece in _isolated(rule, word)]
            for word in words:
                if word not in self.cache:
                    self.cache[word] = self._merge("".join(CHAR_OF_BYTE[byte] for byte in word.encode()))
                found += self.cache[word]
        return found

    def _merge(self, word: str) -> list[int]:
        if self.name in _LOOKS_WORDS_UP and word in self.ids:
            return [self.ids[word]]
        symbols = list(word)
        while True:
            found = [(self.ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in self.ranks]
            if not found:
                return [self.ids[symbol] for symbol in symbols]
            at = min(found)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def _isolated(rule: str, text: str) -> list[str]:
    """Matches and what lies between them, in order."""
    found, end = [], 0
    for match in regex.finditer(rule, text):
        found += [text[end : match.start()], match.group()]
        end = match.end()
    return [piece for piece in (*found, text[end:]) if piece]
