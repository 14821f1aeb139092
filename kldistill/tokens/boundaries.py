"""Where a new token may reach: the widened pre-tokenizer of byte-level tokenizers, the allowed shapes of the others.

Old pre-tokenizers cut ``attention_mask`` into ``attention``, ``_``, ``mask``, and no merge crosses a cut. A wider
boundary changes the pre-tokenizer's regex by one alternative, so that **every wide pre-token is a union of whole old
ones**:

- all alternatives stay, in their order, so a wide match starts as the old one did;
- the letters alternative, once it has matched, goes on over further old pre-tokens: runs of letters, and runs of
  underscores that no other punctuation follows (such a run is a whole old pre-token, as it follows a letter);
- ``dotted`` also goes over runs of dots and underscores between letters.

So every end of a wide match is an end of an old match; digits, spaces and other punctuation stay apart.

The old *merges* see longer words then, and must still give the old pieces. GPT-2's rule never lets an old token mix
letters with underscores, so they do. Llama-3's and Qwen's rule takes one character before letters (``_name``), so their
tokens may start with it: there a run of two underscores is glued to what stands before it, never to the letters after
it, where ``_`` + ``_name`` could win over ``__`` + ``name``. A token with a letter *before* an underscore exists in
neither family.
"""

import copy
from typing import Any

import regex

from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.definition import BYTE_LEVEL, SPACE, kind, parts

BOUNDARIES = ("word", "identifier", "dotted")

# The regex in tokenizers' ByteLevel(use_regex=true), which is GPT-2's.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What may stand beside the letters in a regex that we know how to widen. None of it can start with a letter or an
# underscore, but for the punctuation alternative, which the lookaheads mirror.
_CONTRACTIONS = {
    r"'(?:[sdmt]|ll|ve|re)",
    r"'s|'t|'re|'ve|'m|'ll|'d",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"'(?i:[sdmt]|ll|ve|re)",
}
_NUMBERS = {r" ?\p{N}+", r"\p{N}+", r"\p{N}", r"\p{N}{1,3}", r"\p{N}{1,3}+"}
_SPACES = {r"\s+(?!\S)", r"\s+", r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+$", r"\s++$"}
# The letters alternative of the two families, with the punctuation that must go with it.
_GPT2_LETTERS = r" ?\p{L}+"
_LLAMA3_LETTERS = {r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+"}
_GPT2_PUNCTUATION = {r" ?[^\s\p{L}\p{N}]+"}
_LLAMA3_PUNCTUATION = {r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*+"}
# Underscores that are a whole old pre-token when a letter stands before them: no punctuation goes on after them.
_GPT2_RUN = r"_+(?![^\s\p{L}\p{N}])"
_LLAMA3_RUN = r"_+(?![^\s\p{L}\p{N}]|[\r\n])"
_DOTS = r"[._]+(?=\p{L})"


def alternatives(pattern: str) -> list[str]:
    """The top-level alternatives of a regex; escapes, classes and groups are respected."""
    found, depth, in_class, start, i = [], 0, False, 0, 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            i += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            found.append(pattern[start:i])
            start = i + 1
        i += 1
    return [*found, pattern[start:]]


def widen_regex(pattern: str, boundary: str) -> str:
    """The regex whose matches are unions of whole matches of ``pattern``, as far as ``boundary`` reaches.

    Raises:
        TokenizerError: the regex is not of a family whose refinement is known.
    """
    old = alternatives(pattern)
    letters = next((found for found in old if found == _GPT2_LETTERS or found in _LLAMA3_LETTERS), None)
    gpt2 = letters == _GPT2_LETTERS
    punctuation = _GPT2_PUNCTUATION if gpt2 else _LLAMA3_PUNCTUATION
    contractions = {part for whole in _CONTRACTIONS for part in (*alternatives(whole), whole)}
    known = contractions | _NUMBERS | _SPACES | punctuation | {letters}
    if letters is None or not set(old) <= known or not set(old) & punctuation:
        raise TokenizerError(
            f"tokens.boundary={boundary}: the pre-tokenizer's regex {pattern!r} is not one that can be widened (known "
            "are those of GPT-2, Llama-3 and Qwen-2). Use tokens.boundary=word, which leaves it as it is."
        )
    dots = rf"|{_DOTS}" if boundary == "dotted" else ""
    if gpt2:
        wide = rf"(?:{letters}| ?{_GPT2_RUN})(?:{_GPT2_RUN}{dots}|\p{{L}}+)*"
    else:
        joint = "[._]" if boundary == "dotted" else "_"
        wide = rf"{letters}(?:{joint}\p{{L}}+)*(?:{_LLAMA3_RUN}{dots})?"
    return "|".join(wide if alternative == letters else alternative for alternative in old)


def widen(spec: dict[str, Any], boundary: str) -> dict[str, Any]:
    """A copy of the tokenizer's definition whose pre-tokenizer reaches to ``boundary``.

    SentencePiece-style tokenizers have no cut to remove (see ``shape``) and come back unchanged, as does every
    tokenizer with ``word``.

    Raises:
        TokenizerError: a byte-level pre-tokenizer that is not known; the way out is ``tokens.boundary=word``.
    """
    wide = copy.copy(spec)
    if boundary == "word" or kind(spec) != BYTE_LEVEL:
        return wide
    steps = parts(spec["pre_tokenizer"], "pretokenizers")
    refused = TokenizerError(
        f"tokens.boundary={boundary}: the pre-tokenizer {[step['type'] for step in steps]} is not one that can be "
        "widened (known are ByteLevel with its own regex and without add_prefix_space, or an isolating Split by a "
        "regex and then ByteLevel). Use tokens.boundary=word, which leaves it as it is."
    )
    *before, last = steps
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise refused
    if last.get("use_regex", True):
        pattern = GPT2
    elif before and before[-1]["type"] == "Split" and "Regex" in before[-1]["pattern"]:
        split = before.pop()
        if split["behavior"] != "Isolated" or split["invert"]:
            raise refused
        pattern = split["pattern"]["Regex"]
    else:
        raise refused
    # Steps before the regex hand it the same substrings as before, so refinement holds inside each of them.
    if any(step["type"] == "ByteLevel" for step in before):
        raise refused
    split = {
        "type": "Split",
        "pattern": {"Regex": widen_regex(pattern, boundary)},
        "behavior": "Isolated",
        "invert": False,
    }
    wide["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*before, split, {**last, "use_regex": False}]}
    return wide


def shape(boundary: str) -> tuple[regex.Pattern[str], regex.Pattern[str]]:
    """For SentencePiece-style tokenizers: which old tokens may start a new token, and which may go on in one.

    No pre-tokenizer cuts there, so the shape of the pieces stands in for it: letters for ``word``; letters and
    underscores for ``identifier``; dots too, but not first, for ``dotted``. A space (``▁``) can only come first.
    """
    letter = r"\p{L}"
    first = {"word": letter, "identifier": rf"(?:{letter}|_)", "dotted": rf"(?:{letter}|_)"}[boundary]
    later = {"word": letter, "identifier": rf"(?:{letter}|_)", "dotted": rf"(?:{letter}|[_.])"}[boundary]
    return regex.compile(rf"(?:{SPACE}(?:{first}{later}*)?|{first}{later}*)"), regex.compile(rf"{later}+")


def check_pretokenizer(spec: dict[str, Any]) -> None:
    """Refuse a SentencePiece-style tokenizer whose pre-tokenizer cuts where ``shape`` cannot know.

    Raises:
        TokenizerError: the pre-tokenizer is none of: nothing, Metaspace, Gemma's split at spaces.
    """
    for step in parts(spec["pre_tokenizer"], "pretokenizers"):
        at_spaces = step["type"] == "Split" and step["pattern"].get("String") == " "
        if step["type"] != "Metaspace" and not at_spaces:
            raise TokenizerError(
                f"The pre-tokenizer step {step['type']} of this SentencePiece-style tokenizer is not known to keep "
                "letters together (known are none, Metaspace, and Gemma's split at spaces), so no token can be added "
                "safely."
            )
