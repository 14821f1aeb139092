"""Cut texts into pre-tokens by a regex and count them, on all cores.

Each core has a process of its own (joblib's), as Python's threads would wait for each other. Text in ASCII, as most
code is, goes through a translation of the regex for Python's own ``re``, which takes less than half of the time.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, cast

import regex
from joblib import Parallel, delayed
from tokenizers import Tokenizer, models

PARALLEL_CHARACTERS = 8_000_000
SEVERAL = -1  # in place of a document's number: it stands in more than one


class Rule(NamedTuple):
    """How a text is cut.

    Attributes:
        pattern: the regex whose matches are the pre-tokens.
        before: regexes whose matches, and what lies between them, are cut apart first, one regex after the other.
        normalizer: the normalizer's definition as in ``tokenizer.json``, or None.
        added: contents of AddedTokens, which come out as pre-tokens of their own; none of special ones, whose
            spelling is text.
    """

    pattern: str
    normalizer: dict | None
    added: list[str]
    before: tuple[str, ...] = ()


def cutter(rule: Rule) -> Callable[[str], list[str]]:
    """A function from a text to its pre-tokens."""
    find = _by_alphabet(rule.pattern, lambda pattern: pattern.findall)
    before = [_by_alphabet(f"({pattern})", lambda pattern: pattern.split) for pattern in rule.before]
    blank = json.loads(Tokenizer(models.BPE()).to_str())
    normalizer = Tokenizer.from_str(json.dumps({**blank, "normalizer": rule.normalizer})).normalizer
    longest_first = sorted(rule.added, key=len, reverse=True)
    added = regex.compile("(" + "|".join(map(regex.escape, longest_first)) + ")")

    def cut(text: str) -> list[str]:
        pieces = added.split(text) if any(content in text for content in longest_first) else [text]
        pretokens: list[str] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                pretokens.append(piece)
                continue
            found = [normalizer.normalize_str(piece) if normalizer else piece]
            for split in before:
                found = [part for text in found for part in split(text) if part]
            for text in found:
                pretokens += find(text)
        return pretokens

    return cut


def _by_alphabet(pattern: str, method: Callable[[Any], Callable[[str], list[str]]]) -> Callable[[str], list[str]]:
    """A regex's method, for texts in ASCII that of its translation if there is one."""
    own, ascii_only = method(regex.compile(pattern)), for_ascii(pattern)
    if ascii_only is None:
        return own
    quick = method(ascii_only)
    return lambda text: quick(text) if text.isascii() else own(text)


# Signs of what ``re`` reads otherwise, or not at all: nested and POSIX classes, and classes that begin with a bracket.
_OTHER = re.compile(r"\[\[|\[\^?\]")
_PROPERTY = regex.compile(r"\\[pP](?:\{\^?[\w=:& -]+\}|\w)")


def for_ascii(pattern: str) -> re.Pattern[str] | None:
    """The regex for Python's ``re``: with the same matches in any text of ASCII characters; None if there is none.

    Properties of Unicode (``\\p{L}``) and white space, which ``re`` takes for more than Unicode does, become the
    characters themselves; everything else that is in use for pre-tokens means the same.
    """
    if _OTHER.search(pattern):
        return None
    parts, in_class, place = list[str](), False, 0
    while place < len(pattern):
        char = pattern[place]
        size = 2 if char == "\\" else 1
        if match := _PROPERTY.match(pattern, place):
            size = len(match[0])
        part = pattern[place : place + size]
        if match or part in (r"\s", r"\S"):
            some = regex.compile(part)
            # One beyond ASCII, so that the class is never empty.
            chosen = "".join(rf"\x{code:02x}" for code in range(128) if some.fullmatch(chr(code))) + "\u0100"
            part = chosen if in_class else f"[{chosen}]"
        elif char == "[":
            in_class = True
        elif char == "]":
            in_class = False
        parts.append(part)
        place += size
    try:
        return re.compile("".join(parts))
    except re.error:
        return None


class Tally(NamedTuple):
    """How often every pre-token occurs, and the number of the document that alone has it, or ``SEVERAL``."""

    counts: Counter[str]
    documents: dict[str, int]

    @classmethod
    def of(cls, cut: Callable[[str], list[str]], texts: list[str], first: int) -> "Tally":
        """That of texts; ``first`` is the number of the first of them."""
        tally = cls(Counter(), {})
        for number, text in enumerate(texts, first):
            pretokens = cut(text)
            tally.counts.update(pretokens)
            tally.seen_in(dict.fromkeys(pretokens, number))
        return tally

    def seen_in(self, documents: dict[str, int]) -> None:
        """Pre-tokens stand in these documents too."""
        for pretoken, number in documents.items():
            if self.documents.setdefault(pretoken, number) != number:
                self.documents[pretoken] = SEVERAL

    def add(self, other: "Tally") -> None:
        """Add what is counted of other documents."""
        self.counts.update(other.counts)
        self.seen_in(other.documents)


def count(rule: Rule, groups: Iterable[list[str]], workers: int, advance: Callable[[int], None]) -> Tally:
    """How often every pre-token occurs, and in which document.

    Args:
        rule: how a text is cut.
        groups: texts in groups of a size that is handed over at once; each text is a document.
        workers: processes; 0 for one a core. Little text is counted without any.
        advance: called with the bytes done after every group.
    """
    waiting, size = list[list[str]](), 0
    groups = iter(groups)
    for group in groups:
        waiting.append(group)
        size += sum(map(len, group))
        if size > PARALLEL_CHARACTERS:
            break
    workers = workers or os.cpu_count() or 1
    if size > PARALLEL_CHARACTERS and workers > 1:
        return _by_processes(rule, chain(waiting, groups), workers, advance)
    total, cut = Tally(Counter(), {}), cutter(rule)
    for first, group in _numbered(chain(waiting, groups)):
        total.add(Tally.of(cut, group, first))
        advance(_bytes(group))
    return total


def _numbered(groups: Iterable[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Each group with the number of its first text."""
    first = 0
    for group in groups:
        yield first, group
        first += len(group)


def _bytes(group: list[str]) -> int:
    return sum(len(text.encode()) for text in group)


def _by_processes(rule: Rule, groups: Iterator[list[str]], workers: int, advance: Callable[[int], None]) -> Tally:
    """Let processes count the groups, and add up what they have counted.

    Few groups are on their way at once, so the texts need not fit into memory twice.
    """
    total = Tally(Counter(), {})
    ask = Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2 * n_jobs")
    tasks = (delayed(_count_group)(rule, group, first) for first, group in _numbered(groups))
    for counted, done in cast(Iterator[tuple[Tally, int]], ask(tasks)):
        total.add(counted)
        advance(done)
    return total


def _count_group(rule: Rule, group: list[str], first: int) -> tuple[Tally, int]:
    """What is counted of the texts of one group, and how many bytes these are."""
    return Tally.of(cutter(rule), group, first), _bytes(group)
