"""Completion: lines of held-out domain files that hold a term which became a new token.

The lines are chosen from text alone, so original and extended model get the same ones. A term is the string of a new
token without the white space around it, where it stands as a word of its own.

A line that stands verbatim in the training text or in its own prompt can be written from memory or copied. Most tasks
are lines of which neither is true, and the suite's figures are theirs; some of the others are asked too, and reported
apart.
"""

import ast
import bisect
import hashlib
import logging
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from kldistill.corpus.documents import Document, read_documents
from kldistill.evaluation.suites.task import Sources, Task, stripped_lines
from kldistill.runtime.components import component
from kldistill.runtime.config import require
from kldistill.tokens.artifact import read_new_tokens

log = logging.getLogger(__name__)

STOP = ["\n"]
# Lines that say nothing: comments and imports, in the languages where these can be told by how a line begins.
TRIVIAL = re.compile(
    r"""\s*(?:\#|//|/\*|\*|--|%|;|'{3}|"{3}|import\b|from\s+\S+\s+import\b|using\b|use\b|require\b|package\b|export\b)"""
)
REPEATED_TAIL = 100  # characters before a line that make it another one if they differ


class Place(NamedTuple):
    """A line of a document (its id), and the terms in it by where they begin, relative to the line."""

    document: str
    number: int
    start: int
    line: str
    terms: list[int]


@component("suite")
@dataclass(frozen=True)
class Completion:
    """Write the rest of a line.

    Attributes:
        n: unseen lines, chosen by a hash of their place; all if there are fewer.
        n_seen: lines that stand in the training split or in their own prompt, chosen the same way, after the others.
        where: the prompt ends at the beginning of the line (``line``); or inside it, before a term that begins an
            identifier and the blanks in front of the term (``middle``); or at either, as a hash of the line says, if it
            has such a term (``mixed``).
        prompt_bytes: text in front, at most: whole lines, unless the last alone is longer.
        budget: bytes of a completion, at most; longer references are left out.
        seed: draws the choice.
    """

    runs_code: ClassVar[bool] = False

    n: int = 1_000
    n_seen: int = 200
    where: str = "mixed"
    prompt_bytes: int = 768
    budget: int = 160
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.where in ("line", "middle", "mixed"),
            "eval.completion.where",
            self.where,
            "must be line, middle or mixed",
        )
        for key in ("n", "budget"):
            require(getattr(self, key) >= 1, f"eval.completion.{key}", getattr(self, key), "must be at least 1")
        require(self.n_seen >= 0, "eval.completion.n_seen", self.n_seen, "must be at least 0")
        require(self.prompt_bytes >= 32, "eval.completion.prompt_bytes", self.prompt_bytes, "must be at least 32 bytes")

    def tasks(self, sources: Sources) -> list[Task]:
        """At most ``n`` unseen lines in seeded order, then at most ``n_seen`` others; none without unseen lines."""
        terms = terms_of(token.string for token in read_new_tokens(sources.tokens))
        test = read_documents(sources.corpus, "test")
        places = [(index, place) for index, document in enumerate(test) for place in places_of(document, terms)]
        asked = {place.line.strip() for _, place in places}
        documents = read_documents(sources.corpus, "train")
        train = {line for document in documents for line in asked.intersection(stripped_lines(document.text))}
        unseen: list[Task] = []
        seen: list[Task] = []
        known: set[tuple[str, str]] = set()
        places.sort(key=lambda item: (self._hash("rank", item[1]), item[1].document, item[1].number))
        for index, place in places:
            task = self._task(place, test[index].text, train)
            # The same line after the same text, as copied code has it, is one piece of evidence.
            key = (task.prompt[-REPEATED_TAIL:], task.reference) if task else ("", "")
            if task is None or key in known:
                continue
            chosen, most = (seen, self.n_seen) if task.seen else (unseen, self.n)
            if len(chosen) < most:
                known.add(key)
                chosen.append(task)
            if len(unseen) == self.n and len(seen) == self.n_seen:
                break
        wanted = self.n if sources.limit is None else min(self.n, sources.limit)
        if 0 < len(unseen) < wanted:
            log.warning(
                "eval.completion.n=%d: the test documents have only %d unseen lines with a new term, and all of these "
                "are asked; intervals are wider. More text, or a larger corpus.test, gives more.",
                self.n,
                len(unseen),
            )
        return [*unseen, *seen] if unseen else []

    def identity(self) -> Mapping[str, Any]:
        """Nothing beside the fields and the sources."""
        return {}

    def _task(self, place: Place, text: str, train: Collection[str]) -> Task | None:
        """The task of a line of ``text``; ``None`` if it has none: too long, or no term inside where one is needed."""
        line = place.line
        inside = [start for start in place.terms if _starts_word(line, start) and line[:start].strip()]
        middle = self.where == "middle" or (self.where == "mixed" and self._hash("where", place) % 2 == 1)
        if self.where == "middle" and not inside:
            return None
        cut = len(line[: inside[self._hash("term", place) % len(inside)]].rstrip()) if middle and inside else 0
        prompt = self._prompt(text, place.start + cut)
        reference = line[cut:].rstrip()
        if not prompt.strip() or len(reference.encode()) > self.budget:
            return None
        return Task(
            id=f"{place.document}:{place.number}",
            kind="text",
            prompt=prompt,
            budget=self.budget,
            stop=list(STOP),
            reference=reference,
            seen=["train"] * (line.strip() in train) + ["prompt"] * _in_prompt(line, prompt),
            group=place.document,
        )

    def _prompt(self, text: str, end: int) -> str:
        """The last whole lines before a place that fit; of a last line that is too long by itself, whole characters."""
        data = text[max(0, end - self.prompt_bytes - 1) : end].encode()
        if len(data) <= self.prompt_bytes:
            return data.decode()
        # With the byte before the window: if that ends a line, the window begins with a whole one.
        window = data[-self.prompt_bytes - 1 :]
        _, newline, lines = window.partition(b"\n")
        return lines.decode() if newline and lines.strip() else window[1:].decode(errors="ignore")

    def _hash(self, purpose: str, place: Place) -> int:
        key = f"{self.seed}\0{purpose}\0{place.document}\0{place.number}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


def _in_prompt(line: str, prompt: str) -> bool:
    """Whether a line stands in the whole lines of its own prompt (whose last one is the line itself, begun)."""
    return line.strip() in stripped_lines(prompt.rpartition("\n")[0])


def terms_of(strings: Iterable[str]) -> list[str]:
    """New tokens' strings as terms: without white space around, and only those with a letter and none inside."""
    stripped = {string.strip() for string in strings}
    return sorted(s for s in stripped if len(s) >= 2 and re.search(r"[^\W\d_]", s) and not re.search(r"\s|\ufffd", s))


def places_of(document: Document, terms: Iterable[str]) -> Iterator[Place]:
    """The lines of a document that hold a term and are neither comment, import nor docstring."""
    text = document.text
    lines = text.split("\n")
    starts = [0]
    for line in lines[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    by_line: dict[int, set[int]] = {}
    for term in terms:
        start = text.find(term)
        while start >= 0:
            if _whole(text, start, start + len(term)):
                index = bisect.bisect_right(starts, start) - 1
                by_line.setdefault(index, set()).add(start - starts[index])
            start = text.find(term, start + 1)
    prose = _prose(text) if document.id.endswith(".py") else set()
    for index in sorted(by_line):
        if index + 1 not in prose and not TRIVIAL.match(lines[index]):
            yield Place(document.id, index + 1, starts[index], lines[index], sorted(by_line[index]))


def _whole(text: str, start: int, end: int) -> bool:
    """Whether a term is no part of a longer word; an underscore ends a word."""
    before = start > 0 and text[start].isalnum() and text[start - 1].isalnum()
    return not before and not (end < len(text) and text[end - 1].isalnum() and text[end].isalnum())


def _starts_word(line: str, place: int) -> bool:
    """Whether a place is not in the middle of an identifier, underscores included, where nobody stops typing."""
    return place == 0 or not (line[place - 1].isalnum() or line[place - 1] == "_")


def _prose(text: str) -> set[int]:
    """Numbers of the lines of a Python file that are in a docstring or an import; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return set()  # Not the Python of this interpreter: its lines are judged by how they begin.
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom):
            continue
        if not isinstance(node, ast.Expr) or isinstance(node.value, ast.Constant):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines
