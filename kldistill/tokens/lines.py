"""``tokens.boundary=line``: tokens that reach over words and the signs between them, up to the end of a line.

Such tokens are called superwords (SuperBPE, arXiv 2503.13423; BoundlessBPE, arXiv 2504.00178): `` is not None``,
``) -> torch.Tensor:``. Here the matches of the old rule R are joined wherever no old token holds the last character of
one beside the first character of the next. No old merge can then cross a joint, so the old merges give the old pieces,
and which joints those are is read off the vocabulary. Digits are never joined, so numbers are read as before; neither
are line breaks, tabs, signs beyond ASCII, nor any other space than the one before a word or a sign.
"""

import string
from itertools import pairwise
from typing import Any

import regex

from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.definition import BYTE_LEVEL, SPACE, text_bytes

# A space that begins a word; by this a regex that reaches over lines is known again.
SPACED = r"(?= [^\s\p{N}])"
_LETTER = "L"
_PART = "\ufffd"  # of a character: what a token has that ends, or begins, within one
_ASCII = "A-Za-z"


def joints_of(spec: dict[str, Any]) -> list[str]:
    """Lookarounds that hold where two matches of a byte-level tokenizer's rule may be joined inside a line.

    Letters of any script, one space, and the signs of ASCII are joined; where some token holds a sign beside a part of
    a character, that sign is only joined with letters of ASCII.

    Raises:
        TokenizerError: old tokens reach over the space before a word, whatever stands before that.
    """
    beside, signs = _neighbours(spec), string.punctuation
    lefts = [sign for sign in signs if (sign, " ") not in beside]
    lefts += [letters] if (letters := _letters(beside, _LETTER, " ")) else []
    if not lefts:
        raise TokenizerError(
            "tokens.boundary=line: old tokens reach over the space before a word, whatever stands before it, so old "
            "merges would give other pieces. Use tokens.boundary=auto."
        )
    joints = [f"(?<={_class(lefts)}){SPACED}"]
    for letters in (r"\p{L}", _ASCII):
        before = [sign for sign in signs if _letters(beside, sign, _LETTER) == letters]
        after = [sign for sign in signs if _letters(beside, _LETTER, sign) == letters]
        joints += [rf"(?<={_class(before)})(?=[{letters}])"] if before else []
        joints += [rf"(?<=[{letters}])(?={_class(after)})"] if after else []
    return joints


def _neighbours(spec: dict[str, Any]) -> set[tuple[str, str]]:
    """Which characters stand side by side in some old token, left and right; ``L`` is any letter."""
    added = {token["content"] for token in spec["added_tokens"]}
    beside: set[tuple[str, str]] = set()
    for token in spec["model"]["vocab"]:
        if token not in added:
            text = text_bytes(token, BYTE_LEVEL).decode(errors="replace")
            kinds = [_LETTER if char.isalpha() else char for char in text]
            beside.update(pairwise(kinds))
    return beside


def _letters(beside: set[tuple[str, str]], left: str, right: str) -> str | None:
    """Which letters may be joined, as the inside of a class: none, those of ASCII, or all; one side is ``_LETTER``."""
    if (left, right) in beside:
        return None
    part = (_PART if left == _LETTER else left, _PART if right == _LETTER else right)
    return _ASCII if part in beside else r"\p{L}"


def _class(members: list[str]) -> str:
    """A class of characters; ranges and properties stay what they are."""
    return "[" + "".join(member if len(member) > 1 else regex.escape(member) for member in members) + "]"


def shape() -> tuple[regex.Pattern[str], regex.Pattern[str]]:
    """For SentencePiece-style tokenizers: which old tokens may start a new token, and which may go on in one.

    No digit, no white space and no run of spaces; a space (``▁``) begins a token, wherever that stands.
    """
    rest = rf"[^{SPACE}\s\p{{N}}]+"
    return regex.compile(rf"{SPACE}(?:{rest})?|{rest}"), regex.compile(rf"{SPACE}?{rest}")
