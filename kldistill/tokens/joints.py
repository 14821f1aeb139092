"""Which regexes a pre-tokenizer can be widened to: read off its own regex and off what its tokens span."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import regex

from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.definition import BYTE_LEVEL, text_bytes
from kldistill.tokens.encoding import reader
from kldistill.tokens.lines import SPACED

# What a boundary lets stand between two names in one token.
JOINTS = MappingProxyType(
    {"word": (), "identifier": ("_",), "dotted": ("_", "."), "qualified": ("_", ".", "::", "->", "\\")}
)
NAMES = tuple(JOINTS)  # boundaries inside a name, the widest last
BOUNDARIES = (*NAMES, "line")

# The regex in tokenizers' ByteLevel(use_regex=true), which is GPT-2's.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What may go on in a run of punctuation: before it a run of underscores would be no whole match of R.
_PUNCTUATION = r"[^\s\p{L}\p{N}]"
_DOTS = r"(?=[._]+\p{L})"
_LINKS = r"(?=(?:::|->|\\)_*\p{L})"
# Where a match may depend on what stands before it, it cannot be embedded.
_LOOKS_BACK = regex.compile(r"\^|\\[bBAGK1-9kg]|\(\?<|\(\?P?=")


def alternatives(pattern: str) -> list[str]:
    """The top-level alternatives of a regex; escapes, classes and groups are respected."""
    parts, depth, in_class, start, i = [], 0, False, 0, 0
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
            parts.append(pattern[start:i])
            start = i + 1
        i += 1
    return [*parts, pattern[start:]]


class Spans(NamedTuple):
    """Which neighbours stand together inside some old token, so that no joint may be between them.

    Attributes:
        pairs: (left, right) with a token that holds them; ``L`` is a letter, ``M`` a mark, ``lU`` a capital after a
            small letter, ``part`` of a character, the others are joints. Before a joint of two characters that is its
            first one, after it its last one, unless the joint itself is always merged before.
        partial: after the last character of a joint: a class of characters that some token begins but does not end.
    """

    pairs: Mapping[tuple[str, str], str] = MappingProxyType({})
    partial: Mapping[str, str] = MappingProxyType({})


_PAIR_RULES = {
    **{("L", joint): regex.compile(rf"[\p{{L}}\ufffd]{regex.escape(joint[0])}") for joint in JOINTS["qualified"]},
    **{("M", joint): regex.compile(rf"[\p{{M}}\ufffd]{regex.escape(joint[0])}") for joint in JOINTS["qualified"]},
    **{(joint, "L"): regex.compile(rf"{regex.escape(joint[-1])}\p{{L}}") for joint in JOINTS["qualified"]},
    ("l", "U"): regex.compile(r"\p{Ll}\p{Lu}"),
    ("l", "part"): regex.compile(r"\p{Ll}\ufffd|\ufffd(?:\p{Lu}|\ufffd)"),
}


def spans_of(spec: dict[str, Any]) -> Spans:
    """What the tokens of a byte-level tokenizer span."""
    added = {token["content"] for token in spec["added_tokens"]}
    rules = dict(_PAIR_RULES)
    for joint in JOINTS["qualified"]:
        if len(joint) == 2 and _merged_first(spec, joint):
            rules[joint, "L"] = regex.compile(rf"{regex.escape(joint)}[\p{{L}}\ufffd]")
    pairs: dict[tuple[str, str], str] = {}
    partial: dict[str, set[str]] = {joint[-1]: set() for joint in JOINTS["qualified"]}
    for token in spec["model"]["vocab"]:
        if token in added or len(token) < 2:
            continue
        data = text_bytes(token, BYTE_LEVEL)
        text = data.decode(errors="replace")
        for pair, rule in rules.items():
            if pair not in pairs and rule.search(text):
                pairs[pair] = text
        if len(text) > 1 and text[-1] == "\ufffd" and text[-2] in partial and "\ufffd" not in text[:-1]:
            partial[text[-2]].add(_range(data[len(text[:-1].encode()) :]))
    return Spans(pairs, {char: "".join(sorted(ranges)) for char, ranges in partial.items() if ranges})


def _merged_first(spec: dict[str, Any], joint: str) -> bool:
    """Whether the two characters of a joint are merged before its last one can be with what a letter begins with."""
    for left, right in spec["model"]["merges"]:
        if left == joint[0] and right == joint[1]:
            return True
        if left == joint[1] and ((first := text_bytes(right, BYTE_LEVEL)[0]) >= 0x80 or chr(first).isalpha()):
            return False
    return False


def _range(start: bytes) -> str:
    """The characters whose UTF-8 begins with ``start`` (a lead byte, perhaps more), as a part of a class."""
    size = 2 if start[0] < 0xE0 else 3 if start[0] < 0xF0 else 4
    if start[0] < 0xC0:
        return ""  # no beginning of a character
    value = start[0] & (0xFF >> (size + 1))
    for byte in start[1:]:
        value = value << 6 | byte & 0x3F
    rest = 6 * (size - len(start))
    low = max(value << rest, {2: 0x80, 3: 0x800, 4: 0x10000}[size])
    high = min((value << rest) | ((1 << rest) - 1), 0x10FFFF)
    if 0xD800 <= high <= 0xDFFF:
        high = 0xD7FF
    return f"{chr(low)}-{chr(high)}"


def looked_up(spec: dict[str, Any]) -> list[str]:
    """Words that the tokenizer only has because it looks whole words up (``ignore_merges``): its merges make others."""
    if not spec["model"].get("ignore_merges"):
        return []
    added = {token["content"] for token in spec["added_tokens"]}
    merging = {**spec, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    bare = reader({**merging, "model": {**spec["model"], "ignore_merges": False}})
    vocab = {token: index for token, index in spec["model"]["vocab"].items() if token not in added}
    encodings = bare.encode_batch_fast(list(vocab), add_special_tokens=False)
    words = []
    for (token, index), encoding in zip(vocab.items(), encodings, strict=True):
        if encoding.ids != [index]:
            try:
                words.append(text_bytes(token, BYTE_LEVEL).decode())
            except UnicodeDecodeError:
                continue  # part of a character: no match of a regex
    return words


def any_of(words: Iterable[str]) -> str:
    """A regex that matches any of the words: a trie, so that few of them are tried at any place."""
    trie: dict[str, Any] = {}
    for word in words:
        node = trie
        for char in word:
            node = node.setdefault(char, {})
        node[""] = {}

    def spell(node: dict[str, Any]) -> str:
        branches = [regex.escape(char) + spell(below) for char, below in sorted(node.items()) if char]
        if not branches:
            return ""
        if len(branches) == 1 and "" not in node:
            return branches[0]
        return f"(?:{'|'.join(branches)})" + ("?" if "" in node else "")

    return spell(trie)


def reach(pattern: str) -> str:
    """How far a regex reaches that this module may have widened before; ``word`` for any other."""
    if r")(?:(?<=[" not in pattern:
        return "word"
    if SPACED in pattern:
        return "line"
    return "qualified" if _LINKS in pattern else "dotted" if _DOTS in pattern else "identifier"


def widen_regex(
    pattern: str, boundary: str, spans: Spans, keep: Iterable[str] = (), in_lines: Sequence[str] = ()
) -> str:
    """The regex whose matches are unions of whole matches of ``pattern``, as far as ``boundary`` reaches.

    Args:
        pattern: R, whose matches are the old pre-tokens.
        boundary: ``identifier``, ``dotted``, ``qualified`` or ``line``.
        spans: what the old tokens span.
        keep: words that must stay matches of their own.
        in_lines: for ``line``: lookarounds that hold where two matches may be joined (``lines.joints_of``).

    Raises:
        TokenizerError: R looks at what stands before a match, does not keep letters together, or old tokens reach
            across the joint.
    """
    before = reach(pattern)
    if BOUNDARIES.index(before) >= BOUNDARIES.index(boundary):
        return pattern
    way_out = f"Use tokens.boundary={before}, which leaves it as it is."
    refused = f"tokens.boundary={boundary}: the pre-tokenizer's regex {pattern!r} cannot be widened"
    bare = regex.sub(r"\[(?:\\.|[^\]\\])*\]|\\\\", "", pattern)
    try:
        old = regex.compile(pattern)
    except regex.error as error:
        raise TokenizerError(f"{refused}: {error}. {way_out}") from error
    if before != "word":
        raise TokenizerError(f"{refused}: it was widened to {before} before. {way_out}")
    if _LOOKS_BACK.search(bare) or old.groups:
        raise TokenizerError(f"{refused}: its matches may depend on what stands before them. {way_out}")
    if not (match := old.match("ab")) or match.end() != 2:
        raise TokenizerError(f"{refused}: it does not keep letters together. {way_out}")
    whole = f"{_stays(keep)}(?>{pattern})"
    spanned = [(joint, spans.pairs["L", joint]) for joint in _joints(boundary) if ("L", joint) in spans.pairs]
    if boundary == "line":
        goes_on = [joint + whole for joint in in_lines]
        goes_on += [] if spanned else _inside_names(old, boundary, spans, whole)
        return rf"{whole}(?:{'|'.join(goes_on)})*|{pattern}"
    if spanned:
        joint, token = spanned[0]
        raise TokenizerError(
            f"{refused}: old tokens such as {token!r} hold a letter before {joint!r}, so old merges would give "
            f"other pieces. {way_out}"
        )
    contractions = [part for part in alternatives(pattern) if _is_contraction(part)]
    head = f"(?!{'|'.join(contractions)})" if contractions else ""
    takes_one = (match := old.match(".a")) is not None and match.end() == 2
    run = _run(old)
    start = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}| ?{run}_" if takes_one else rf" ?(?:\p{{L}}|{run}_)"
    return rf"{head}(?={start}){whole}(?:{'|'.join(_inside_names(old, boundary, spans, whole))})*|{pattern}"


def _joints(boundary: str) -> tuple[str, ...]:
    """What stands between the names that a boundary joins; ``line`` joins all of them."""
    return JOINTS[NAMES[-1] if boundary == "line" else boundary]


def _stays(keep: Iterable[str]) -> str:
    """A lookahead that fails where a word begins that must stay a match of its own."""
    keep = sorted(keep)
    named = [word for word in keep if regex.search(r"[\p{L}\p{M}_]$", word)]
    signs = [word for word in keep if word not in set(named)]
    # A mark behind it need not belong to the match: left out, so that such a word stays, too.
    stays = rf"(?!{any_of(named)}(?![\p{{Ll}}\p{{Lm}}\p{{Lo}}]))" if named else ""
    return stays + (f"(?!{any_of(signs)})" if signs else "")


def _run(old: regex.Pattern[str]) -> str:
    """A lookahead for underscores that are a match by themselves."""
    takes_lines = (match := old.match("_\n")) is not None and match.end() == 2
    return rf"(?=_+(?!{_PUNCTUATION}|[\r\n]))" if takes_lines else f"(?=_+(?!{_PUNCTUATION}))"


def _inside_names(old: regex.Pattern[str], boundary: str, spans: Spans, whole: str) -> list[str]:
    """How a wide match may go on inside a name: alternatives, each of which takes one more match of R."""
    joints = _joints(boundary)
    letters = "".join(
        rf"\p{{{letter}}}" for letter in "LM" if not any((letter, joint) in spans.pairs for joint in joints)
    )
    goes_on = [rf"(?<=[{letters}]){_run(old)}{whole}"]
    if "." in joints:
        goes_on.append(rf"(?<=[{letters}]){_DOTS}{whole}")
    if "::" in joints:
        goes_on.append(rf"(?<=[{letters}]){_LINKS}{whole}")
    for joint in joints:
        if (joint, "L") not in spans.pairs:
            begun = f"(?![{spans.partial[joint[-1]]}])" if spans.partial.get(joint[-1]) else ""
            after = regex.escape(joint) if joint in "_." else rf"[{letters}]{regex.escape(joint)}"
            goes_on.append(rf"(?<={after})(?={begun}\p{{L}}){whole}")
    cut = old.match("aB")
    if cut and cut.end() == 1 and ("l", "U") not in spans.pairs:  # camelCase is several words in o200k
        small, capital = ("[a-z]", "[A-Z]") if ("l", "part") in spans.pairs else (r"\p{Ll}", r"\p{Lu}")
        goes_on.append(f"(?<={small})(?={capital}){whole}")
    return goes_on


def _is_contraction(alternative: str) -> bool:
    """Whether an alternative takes ``'s`` and the like, and nothing else that begins with an apostrophe."""
    some = any(regex.fullmatch(alternative, text) for text in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"))
    return some and not regex.fullmatch(alternative, "'qz")
