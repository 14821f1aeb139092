"""Text to ids, as every stage encodes it: text is text.

The spelling of a special token in a text (``'<|endoftext|>'`` in a program that handles tokenizers) is text like any
other and never becomes the special token, which would end the text in the model's eyes. Only the package itself sets
special tokens: the first token of a text, and those that a chat template put between the parts of a conversation (see
``kldistill.tokens.chat``). AddedTokens that are not special (a chat's ``<tool_call>``, the user's own
terms) are found as ever.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import regex
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from kldistill.corpus.documents import Part
from kldistill.corpus.snippets import Snippet
from kldistill.runtime.errors import ModelError
from kldistill.tokens.definition import parts as steps_of


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


class Encoded(NamedTuple):
    """A snippet as ids, after the first token, and how many ids each of its parts has (one part: the whole)."""

    ids: list[int]
    sizes: list[int]


def encode_snippets(tokenizer: PreTrainedTokenizerBase, snippets: Sequence[Snippet]) -> list[Encoded]:
    """Ids of each snippet, after the first token (see ``first_token``).

    Special tokens among its parts become their ids, and every other part is read by itself: so no token reaches over
    the ends of an answer, and prompt and answer are cut as they are when the model is asked.

    Raises:
        ModelError: a part is a special token that this tokenizer does not have.
    """
    start = first_token(tokenizer)
    runs: dict[bool, list[tuple[int, int, str]]] = {True: [], False: []}  # by whether a space may be put before them
    rows: list[list[list[int]]] = []
    bare, after_special = (None, True) if not any(snippet.parts for snippet in snippets) else _prefix(tokenizer)
    by_spelling = {tokenizer.convert_ids_to_tokens(index): index for index in special_ids(tokenizer)}
    for number, snippet in enumerate(snippets):
        parts = snippet.parts or (Part(len(snippet.text)),)
        rows.append([[] for _ in parts])
        at = 0
        for place, part in enumerate(parts):
            if part.special and part.special not in by_spelling:
                raise ModelError(f"The tokenizer has no special token {part.special!r}, which a conversation holds.")
            if part.special:
                rows[number][place] = [by_spelling[part.special]]
            else:
                first = not place or (after_special and bool(parts[place - 1].special))
                runs[bare is None or first].append((number, place, snippet.text[at : at + part.length]))
            at += part.length
    for prefixed, group in runs.items():
        texts = [text for _, _, text in group]
        if prefixed or bare is None:
            found = text_ids(tokenizer, texts) if texts else []
        else:
            found = [encoding.ids for encoding in bare.encode_batch_fast(texts, add_special_tokens=False)]
        for (number, place, _), ids in zip(group, found, strict=True):
            rows[number][place] = ids
    return [Encoded([start, *itertools.chain(*of_one)], list(map(len, of_one))) for of_one in rows]


def _prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[Tokenizer | None, bool]:
    """For a tokenizer that puts a space before a text: the same without that, and whether it does so after a special
    token too. None for one that puts none.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    anywhere = found = False
    for step in steps_of(spec["pre_tokenizer"], "pretokenizers"):
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space") else "never")
        if scheme != "never":
            found, anywhere = True, anywhere or scheme == "always"
            for name, value in {"prepend_scheme": "never", "add_prefix_space": False}.items():
                if name in step:
                    step[name] = value
    normalizers = steps_of(spec["normalizer"], "normalizers")
    if any(step["type"] == "Prepend" for step in normalizers):
        found = anywhere = True
        kept = [step for step in normalizers if step["type"] != "Prepend"]
        spec["normalizer"] = {"type": "Sequence", "normalizers": kept}
    return (reader(spec) if found else None), anywhere


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
