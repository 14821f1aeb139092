"""Cut texts into pre-tokens by a regex and count them, on all cores.

Each core has a process of its own (joblib's), as Python's threads would wait for each other.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple, cast

import regex
from joblib import Parallel, delayed
from tokenizers import Tokenizer, models

PARALLEL_CHARACTERS = 8_000_000


class Rule(NamedTuple):
    """How a text is cut.

    Attributes:
        pattern: the regex whose matches are the pre-tokens.
        normalizer: the normalizer's definition as in ``tokenizer.json``, or None.
        added: contents of AddedTokens, which come out as pre-tokens of their own; none of special ones, whose
            spelling is text.
    """

    pattern: str
    normalizer: dict | None
    added: list[str]


def cutter(rule: Rule) -> Callable[[str], list[str]]:
    """A function from a text to its pre-tokens."""
    pattern = regex.compile(rule.pattern)
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
            else:
                pretokens += pattern.findall(normalizer.normalize_str(piece) if normalizer else piece)
        return pretokens

    return cut


def count(rule: Rule, groups: Iterable[list[str]], workers: int, advance: Callable[[int], None]) -> Counter[str]:
    """How often every pre-token occurs.

    Args:
        rule: how a text is cut.
        groups: texts in groups of a size that is handed over at once.
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
    counter: Counter[str] = Counter()
    cut = cutter(rule)
    for group in chain(waiting, groups):
        for text in group:
            counter.update(cut(text))
        advance(_bytes(group))
    return counter


def _bytes(group: list[str]) -> int:
    return sum(len(text.encode()) for text in group)


def _by_processes(
    rule: Rule, groups: Iterator[list[str]], workers: int, advance: Callable[[int], None]
) -> Counter[str]:
    """Let processes count the groups, and add up what they have counted.

    Few groups are on their way at once, so the texts need not fit into memory twice.
    """
    total: Counter[str] = Counter()
    ask = Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2 * n_jobs")
    counts = cast(Iterator[tuple[Counter[str], int]], ask(delayed(_count_group)(rule, group) for group in groups))
    for counted, done in counts:
        total.update(counted)
        advance(done)
    return total


def _count_group(rule: Rule, group: list[str]) -> tuple[Counter[str], int]:
    """How often every pre-token occurs in the texts of one group, and how many bytes these are."""
    cut = cutter(rule)
    return Counter(chain.from_iterable(map(cut, group))), _bytes(group)
