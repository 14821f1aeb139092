"""Where a new token may reach: the widened pre-tokenizer of byte-level tokenizers, the allowed shapes of the others.

Old pre-tokenizers cut ``attention_mask`` into ``attention``, ``_``, ``mask``, and no merge crosses a cut. A wider
boundary changes the pre-tokenizer's regex R into one whose matches are **unions of whole matches of R**, whatever R is:

    (?=head)(?>R)(?:(?<=x)(?=y)(?>R) | ...)*  |  R

A wide match starts as R's own match does (the atomic ``(?>R)`` is exactly that), and goes on over further matches of R
as long as one ends in ``x`` and the next begins with ``y``: a run of underscores after a letter, letters after it, with
``dotted`` also dots and underscores that lead to a letter, with ``qualified`` also ``::``, ``->`` and a backslash.
Everything else is left as R cuts it. ``line`` joins words, too, and the signs between them (``lines``).

The old *merges* see longer words then and must still give the old pieces. They do where no old token reaches across a
joint, and that is read off the vocabulary: no token may hold an ``x`` followed by a ``y``. So GPT-2's letters go on
after underscores (none of its tokens mixes them), Llama-3's do not (``_`` + ``_name`` could win over ``__`` +
``name``), except after ``::`` and ``->`` where these are merged before ``:`` or ``>`` can be with letters, and a new
tokenizer needs no list of known spellings. Words that the old tokenizer looks up whole and that
its merges do not make (``ignore_merges``: Llama-3, gpt-oss, Mistral Nemo) fall apart inside a longer word: they keep
their own cut.
"""

import copy
from collections.abc import Iterable
from typing import Any

import regex

from kldistill.runtime.errors import TokenizerError
from kldistill.tokens import lines
from kldistill.tokens.definition import BYTE_LEVEL, SPACE, kind, parts
from kldistill.tokens.encoding import reader
from kldistill.tokens.joints import BOUNDARIES, GPT2, JOINTS, NAMES, any_of, looked_up, reach, spans_of, widen_regex


def widen(spec: dict[str, Any], boundary: str) -> dict[str, Any]:
    """A copy of the tokenizer's definition whose pre-tokenizer reaches to ``boundary``.

    SentencePiece-style tokenizers have no cut to remove (see ``shape``) and come back unchanged, as does every
    tokenizer with ``word``, and one that reaches as far already because it was extended before.

    Raises:
        TokenizerError: a byte-level pre-tokenizer that cannot be widened; the way out is ``tokens.boundary=word``.
    """
    wide = copy.copy(spec)
    if boundary == "word":
        return wide
    steps = parts(spec["pre_tokenizer"], "pretokenizers")
    if kind(spec) != BYTE_LEVEL:
        cuts_at_spaces = any(step["type"] == "Metaspace" and step.get("split", True) for step in steps)
        if boundary == "line" and cuts_at_spaces:
            raise TokenizerError(
                "tokens.boundary=line: this SentencePiece-style tokenizer's pre-tokenizer (Metaspace with split) cuts "
                "at every space, so no token can reach over one. Use tokens.boundary=auto."
            )
        return wide
    refused = TokenizerError(
        f"tokens.boundary={boundary}: the pre-tokenizer {[step['type'] for step in steps]} is not one that can be "
        "widened (known are ByteLevel with its own regex and without add_prefix_space, or a Split that keeps the "
        "matches of a regex and then ByteLevel). Use tokens.boundary=word, which leaves it as it is."
    )
    *before, last = steps
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise refused
    if last.get("use_regex", True):
        split = {"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "Isolated", "invert": False}
    elif before and keeps_matches(before[-1]):
        split = before.pop()
    else:
        raise refused
    # Steps before the regex hand it the same substrings as before, so refinement holds inside each of them.
    if any(step["type"] == "ByteLevel" for step in before):
        raise refused
    rule = split["pattern"]["Regex"]
    if BOUNDARIES.index(reach(rule)) >= BOUNDARIES.index(boundary):
        return wide
    keep, in_lines = looked_up(spec), list[str]()
    if boundary == "line":
        in_lines = lines.joints_of(spec)
    else:
        keep = [word for word in keep if regex.search(r"^[^\p{L}]?\p{L}|[\p{L}\p{M}_]$", word)]
    split = {**split, "pattern": {"Regex": widen_regex(rule, boundary, spans_of(spec), keep, in_lines)}}
    wide["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*before, split, {**last, "use_regex": False}]}
    return wide


def let_through(spec: dict[str, Any], terms: Iterable[str]) -> dict[str, Any]:
    """A copy of a byte-level definition whose pre-tokenizer keeps the given terms whole.

    A term comes before the rest of the regex R: where it stands, as many matches of R are taken as R makes of it, and
    what they cover must end with the term. So it is kept where it is a union of whole matches (``C++`` in ``C++ is``,
    not in ``C++;``), and everything else is cut as before. Terms that an old token would reach across, or that a step
    before the regex cuts (SmolLM's digits), are not kept; whoever asks for them must look.
    """
    *before, last = parts(spec["pre_tokenizer"], "pretokenizers")
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return spec
    if last.get("use_regex", True):
        split = {"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "Isolated", "invert": False}
    elif before and keeps_matches(before[-1]):
        split = before.pop()
    else:
        return spec
    rule = split["pattern"]["Regex"]
    old, tokenizer = regex.compile(rule), reader({**spec, "normalizer": None})
    uncut = reader({**spec, "normalizer": None, "pre_tokenizer": {**last, "use_regex": False}})
    by_count: dict[int, list[str]] = {}
    for term in sorted(set(terms)):
        matches = [match[0] for match in old.finditer(term)]
        alone = tokenizer.encode(term, add_special_tokens=False).ids
        joined = uncut.encode(term, add_special_tokens=False).ids
        if "".join(matches) == term and joined == alone:
            by_count.setdefault(len(matches), []).append(term)
    kept = [
        rf"(?={any_of(group)})(?>{rule}){{{n}}}(?<={'|'.join(map(regex.escape, group))})"
        for n, group in sorted(by_count.items())
        if n > 1
    ]
    split = {**split, "pattern": {"Regex": "|".join([*kept, rule])}}
    steps = [*before, split, {**last, "use_regex": False}]
    return {**spec, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def keeps_matches(step: dict[str, Any]) -> bool:
    """Whether a step is a Split whose pieces are the matches of a regex.

    It isolates them, or it removes what lies between them (cl100k as tiktoken's converter writes it).
    """
    if step["type"] != "Split" or "Regex" not in step["pattern"]:
        return False
    return step["behavior"] == "Isolated" or (step["behavior"] == "Removed" and bool(step["invert"]))


def widest(spec: dict[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """The widest boundary inside a name that a tokenizer can carry.

    Returns:
        The boundary, the definition with it (as ``widen``), and why each wider one was refused.
    """
    reasons = []
    for boundary in reversed(NAMES):
        try:
            return boundary, widen(spec, boundary), reasons
        except TokenizerError as error:
            reasons.append(str(error))
    raise AssertionError("word is never refused")


def shape(boundary: str) -> tuple[regex.Pattern[str], regex.Pattern[str]]:
    """For SentencePiece-style tokenizers: which old tokens may start a new token, and which may go on in one.

    No pre-tokenizer cuts there, so the shape of the pieces stands in for it: letters for ``word``; letters and
    underscores for ``identifier``; dots too, but not first, for ``dotted``; also ``::``, ``->`` and a
    backslash for ``qualified``. A space (``▁``) can only come first, but for ``line``.
    """
    if boundary == "line":
        return lines.shape()
    first = r"[\p{L}_]" if "_" in JOINTS[boundary] else r"\p{L}"
    later = "(?:" + "|".join([r"\p{L}", *map(regex.escape, JOINTS[boundary])]) + ")"
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
