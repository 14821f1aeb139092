"""Cut texts into pre-tokens by a regex and count them, on all cores.

Each core has a process of its own, as Python's threads would wait for each other. A process is this module run as a
script: it imports little, starts in a moment, and needs nothing of the program that started it. Both talk in lines of
JSON.
"""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple

import regex
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
        found: list[str] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                found.append(piece)
            else:
                found += pattern.findall(normalizer.normalize_str(piece) if normalizer else piece)
        return found

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
        return _by_processes(rule, _chained(waiting, groups), workers, advance)
    counter: Counter[str] = Counter()
    cut = cutter(rule)
    for group in _chained(waiting, groups):
        for text in group:
            counter.update(cut(text))
        advance(_bytes(group))
    return counter


def _chained(first: list[list[str]], rest: Iterator[list[str]]) -> Iterator[list[str]]:
    yield from first
    yield from rest


def _bytes(group: list[str]) -> int:
    return sum(len(text.encode()) for text in group)


def _by_processes(
    rule: Rule, groups: Iterator[list[str]], workers: int, advance: Callable[[int], None]
) -> Counter[str]:
    """Let one thread a process hand groups over until none is left, and add up what the processes have counted."""
    total: Counter[str] = Counter()
    lock, failed = threading.Lock(), threading.Event()
    command = [sys.executable, "-P", __file__]  # -P: this folder is no place to import from

    def drive() -> None:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            _send(process.stdin, rule._asdict())
            while not failed.is_set():
                with lock:
                    group = next(groups, None)
                if group is None:
                    break
                _send(process.stdin, group)
                done = int(process.stdout.readline())
                with lock:
                    advance(done)
            process.stdin.close()
            counted = json.loads(process.stdout.readline())
            with lock:
                total.update(counted)

    def guarded() -> None:
        try:
            drive()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(workers) as pool:
        driven = [pool.submit(guarded) for _ in range(workers)]
    try:
        for one in driven:
            one.result()
    except (OSError, ValueError) as error:
        raise RuntimeError(f"counting words: a process of {' '.join(command)} failed ({error})") from error
    return total


def _send(stream: IO[str], content: object) -> None:
    # ASCII with escapes: lone surrogates and any locale get through.
    stream.write(json.dumps(content) + "\n")
    stream.flush()


def main() -> None:
    """The process: a rule, then groups of texts, each answered by its bytes; at the end of the input all counts."""
    cut = cutter(Rule(**json.loads(sys.stdin.readline())))
    counter: Counter[str] = Counter()
    for line in sys.stdin:
        group = json.loads(line)
        for text in group:
            counter.update(cut(text))
        print(_bytes(group), flush=True)
    print(json.dumps(counter), flush=True)


if __name__ == "__main__":
    main()
