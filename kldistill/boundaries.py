"""Where a new token may reach: the widened pre-tokenizer of byte-level tokenizers, the allowed shapes of the others.

Old pre-tokenizers cut ``attention_mask`` into ``attention``, ``_``, ``mask``, and no merge crosses a cut. A wider
boundary changes the pre-tokenizer's regex by one alternative, so that **every wide pre-token is a union of whole old
ones**:

- all alternatives stay, in their order, so a wide match starts as the old one did;
- the letters alternative, once it has matched (or a run of underscores has that is a whole old pre-token), goes on over
  further old pre-tokens: runs of letters, and runs of underscores that no other punctuation follows. Such a run follows
  a letter or starts the match, so it is an old pre-token by itself, or (Llama-3, Qwen) the optional first character of
  the letters that follow, and the wide match goes on over those;
- ``dotted`` also goes over runs of dots and underscores between letters.

So every end of a wide match is an end of an old match; digits, spaces and other punctuation stay apart.
The old *merges* see longer words then. They could join across an old cut only if an old token mixes letters with
underscores, as ``_name`` of Llama-3 does in ``__name``; preflight counts that.
"""

import copy
from typing import Any

import regex

from kldistill.errors import TokenizerError
from kldistill.vocabulary import BYTE_LEVEL, SPACE, kind, parts

BOUNDARIES = ("word", "identifier", "dotted")

# The regex in tokenizers' ByteLevel(use_regex=true), which is GPT-2's.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What may stand beside the letters in a regex that we know how to widen. None of it can start with a letter, an
# underscore, or a space before one of them, but for the punctuation alternative, which the lookaheads mirror.
_CONTRACTIONS = {
    r"'(?:[sdmt]|ll|ve|re)",
    r"'s|'t|'re|'ve|'m|'ll|'d",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"'(?i:[sdmt]|ll|ve|re)",
    r"(?i:[sdmt]|ll|ve|re)",
}
_NUMBERS = {r" ?\p{N}+", r"\p{N}+", r"\p{N}", r"\p{N}{1,3}", r"\p{N}{1,3}+"}
_SPACES = {r"\s+(?!\S)", r"\s+", r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+$", r"\s++$"}
# The letters alternative, with the punctuation that must go with it and what may not follow a run of underscores.
_FAMILIES = {
    r" ?\p{L}+": ({r" ?[^\s\p{L}\p{N}]+"}, r"[^\s\p{L}\p{N}]"),
    r"[^\r\n\p{L}\p{N}]?\p{L}+": ({r" ?[^\s\p{L}\p{N}]+[\r\n]*"}, r"[^\s\p{L}\p{N}]|[\r\n]"),
    r"[^\r\n\p{L}\p{N}]?+\p{L}+": (
        {r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"},
        r"[^\s\p{L}\p{N}]|[\r\n]",
    ),
}


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
    contractions = {piece for whole in _CONTRACTIONS for piece in (*alternatives(whole), whole)}
    old = alternatives(pattern)
    letters = next((alternative for alternative in old if alternative in _FAMILIES), None)
    punctuation, stop = _FAMILIES[letters] if letters is not None else (set(), "")
    known = contractions | _NUMBERS | _SPACES | punctuation | {letters}
    unknown = [alternative for alternative in old if alternative not in known]
    if letters is None or unknown or not punctuation & set(old):
        raise TokenizerError(
            f"tokens.boundary={boundary}: the pre-tokenizer's regex {pattern!r} is not one that can be widened (known "
            "are those of GPT-2, Llama-3 and Qwen-2). Use tokens.boundary=word, which leaves it as it is."
        )
    run = rf"_+(?!{stop})"
    dots = r"|[._]+(?=\p{L})" if boundary == "dotted" else ""
    wide = rf"(?:{letters}| ?{run})(?:{run}{dots}|\p{{L}}+)*"
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
