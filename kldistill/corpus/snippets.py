"""Documents cut at lines into snippets, of which no model is fed more than its window."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from kldistill.corpus.documents import Document
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
    """Cut every document, at ends of lines, into snippets of at least ``size`` bytes and less than twice that.

    A rest below half the size joins the last snippet, which is then less than two and a half times the size.

    Lines longer than ``size`` (prose with a paragraph a line, transcripts) are cut too: before white space, or, in
    text without it, between characters.
    """
    snippets: list[Snippet] = []
    for document in documents:
        parts: list[str] = []
        lines: list[str] = []
        held = 0
        for line in document.text.splitlines(keepends=True):
            for piece in pieces_of(line, size):
                lines.append(piece)
                held += len(piece.encode())
                if held >= size:
                    parts.append("".join(lines))
                    lines, held = [], 0
        if held >= size / 2 or (held and not parts):
            parts.append("".join(lines))
        elif held:
            parts[-1] += "".join(lines)
        snippets.extend(Snippet(document.id, part) for part in parts if part.strip())
    return snippets


def pieces_of(line: str, size: int) -> Iterator[str]:
    """A line in pieces of at most ``size`` bytes (but of one character at least), which together are the line.

    A piece ends before white space, so that a word keeps the blank in front of it, as tokenizers have it; where there
    is none in its second half, it ends between two characters.
    """
    data = line.encode()
    while len(data) > size:
        window = data[:size].decode(errors="ignore") or line[:1]
        blank = max(window.rfind(" ", len(window) // 2), window.rfind("\t", len(window) // 2))
        piece = window[:blank] if blank > 0 else window
        yield piece
        line = line[len(piece) :]
        data = line.encode()
    yield line


def fit(snippets: Iterable[Snippet], tokens: Callable[[str], int], window: float) -> list[Snippet]:
    """The snippets, those of more than ``window`` tokens halved until none is left: no model is ever fed more.

    Args:
        snippets: what to halve; their order stays.
        tokens: number of tokens of a text, with all that the model is fed beside it.
        window: the most tokens that the model takes, 2 or more; infinite for one without a limit.
    """
    fitting: list[Snippet] = []
    for snippet in snippets:
        # A token has a byte or more, so most snippets need no count.
        if snippet.n_bytes + 2 <= window or tokens(snippet.text) <= window or len(snippet.text) == 1:
            fitting.append(snippet)
            continue
        halves = cut([Document(snippet.document, snippet.text)], max(1, snippet.n_bytes // 2))
        if len(halves) == 1:  # the second half was a short rest
            middle = len(snippet.text) // 2
            halves = [Snippet(snippet.document, part) for part in (snippet.text[:middle], snippet.text[middle:])]
        fitting += fit(halves, tokens, window)
    return fitting


def draw(
    snippets: Sequence[Snippet], *, n: int | None = None, n_bytes: int | None = None, seed: int = 0
) -> list[Snippet]:
    """The first ``n`` snippets, or the first that fill ``n_bytes``, in the order of their hashes.

    So they come from many documents, and not in runs from one. The order depends on each snippet's document and text
    and on the seed alone, so that a larger ``n`` keeps what a smaller one has.

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
