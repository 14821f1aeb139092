"""Text to ids, as every stage encodes it: text is text.

The spelling of a special token in a text (``'<|endoftext|>'`` in a program that handles tokenizers) is text like any
other and never becomes the special token, which would end the text in the model's eyes. Only the package itself sets
special tokens: the first token of a text. AddedTokens that are not special (a chat's ``<tool_call>``, the user's own
terms) are found as ever.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import regex
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from kldistill.runtime.errors import ModelError


def first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The special token that starts every snippet, so that all its tokens are predicted: BOS, else EOS.

    Raises:
        ModelError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ModelError("The tokenizer has neither a BOS nor an EOS token to start a text with: set one in its folder.")


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text and nothing before or after them; the spelling of a special token is text."""
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]  # type: ignore[return-value]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, after the first token (see ``first_token``); no other special token is among them."""
    start = first_token(tokenizer)
    return [[start, *row] for row in text_ids(tokenizer, texts)]


def reader(definition: Mapping[str, Any] | str) -> Tokenizer:
    """The Rust tokenizer of a definition that reads text as ``text_ids`` does.

    The spellings of special tokens are text, and nothing is truncated or padded.

    Args:
        definition: the content of a ``tokenizer.json``, as a dict or as JSON.
    """
    tokenizer = Tokenizer.from_str(definition if isinstance(definition, str) else json.dumps(definition))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all special tokens: those with a role (BOS, EOS, ...) and every AddedToken that says it is special."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def count_special(definition: Mapping[str, Any], texts: Iterable[str]) -> int:
    """How often the spelling of a special token of the definition stands in the texts."""
    contents = [token["content"] for token in definition["added_tokens"] if token["special"]]
    if not contents:
        return 0
    spelt = regex.compile("|".join(map(regex.escape, sorted(contents, key=len, reverse=True))))
    return sum(1 for text in texts for _ in spelt.finditer(text))
