"""Documents cut at lines into snippets, and their ids as both models see them."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from kldistill.runtime.errors import CorpusError


class Text(Protocol):
    """Anything with an id and a text, such as a corpus document."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...


class Snippet(NamedTuple):
    """Consecutive lines of one document."""

    document: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Size in bytes of UTF-8."""
        return len(self.text.encode())


def cut(documents: Iterable[Text], size: int) -> list[Snippet]:
    """Cut every document, at ends of lines, into snippets of at least ``size`` bytes; a short rest joins the last
    one.

    A line is never cut, so a snippet may be longer by one line.
    """
    snippets: list[Snippet] = []
    for document in documents:
        parts: list[str] = []
        lines: list[str] = []
        held = 0
        for line in document.text.splitlines(keepends=True):
            lines.append(line)
            held += len(line.encode())
            if held >= size:
                parts.append("".join(lines))
                lines, held = [], 0
        if held >= size / 2 or (held and not parts):
            parts.append("".join(lines))
        elif held:
            parts[-1] += "".join(lines)
        snippets.extend(Snippet(document.id, part) for part in parts if part.strip())
    return snippets


def draw(
    snippets: Sequence[Snippet], *, n: int | None = None, n_bytes: int | None = None, seed: int = 0
) -> list[Snippet]:
    """The first ``n`` snippets, or the first that fill ``n_bytes``, in an order by hash: many documents, no
    clusters.

    The order depends on the text and the seed alone (with seed 0 on the text alone), so that a larger ``n`` keeps what
    a smaller one has.

    Raises:
        CorpusError: there are none.
    """
    if not snippets:
        raise CorpusError("No text to draw snippets from: the split is empty. Give the corpus more text.")
    start = f"{seed}\n" if seed else ""

    def rank(snippet: Snippet) -> tuple[bytes, str]:
        return hashlib.sha256(f"{start}{snippet.document}\n{snippet.text}".encode()).digest(), snippet.document

    order = sorted(snippets, key=rank)
    if n is not None:
        return order[:n]
    assert n_bytes is not None
    chosen: list[Snippet] = []
    total = 0
    for snippet in order:
        if chosen and total >= n_bytes:
            break
        chosen.append(snippet)
        total += snippet.n_bytes
    return chosen


def cover(counts: Sequence[Mapping[int, int]], n: int) -> list[int]:
    """Indices of ``n`` texts that together show every item often, the rarest included, in the order of choice.

    Greedy: the next text is the one with the largest sum over its occurrences of 1 / (1 + times seen so far), the
    marginal gain of the sum over items of the harmonic number of how often each is seen. That sum is submodular, so the
    greedy choice is within 1 - 1/e of the best one (Nemhauser, Wolsey and Fisher, 1978), and a gain that was computed
    earlier bounds today's: only the top of the heap is computed anew (Minoux, 1978). Texts without any item come last,
    in their own order, so there are ``n`` wherever there are as many texts.

    Args:
        counts: how often each item (a new token) occurs in each text.
        n: how many texts to choose.
    """
    seen: Counter[int] = Counter()

    def gain(index: int) -> float:
        return sum(1 / (1 + seen[item] + k) for item, times in counts[index].items() for k in range(times))

    heap = [(-gain(index), index) for index in range(len(counts))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < n:
        index = heap[0][1]
        fresh = (-gain(index), index)
        if fresh > heap[0]:
            heapq.heapreplace(heap, fresh)
            continue
        heapq.heappop(heap)
        chosen.append(index)
        seen.update(counts[index])
    return chosen
