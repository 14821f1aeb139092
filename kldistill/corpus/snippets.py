"""Documents cut at lines into snippets, of which no model is fed more than its window."""

import bisect
import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from kldistill.corpus.documents import Document, Part, spoken
from kldistill.runtime.errors import CorpusError


class Text(Protocol):
    """Anything with an id and a text, such as a corpus document."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...


class Snippet(NamedTuple):
    """Consecutive lines of one document, and what they are made of (see ``Document.parts``)."""

    document: str
    text: str
    parts: tuple[Part, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Size in bytes of UTF-8, without special tokens."""
        return len(self.text.encode())

    @property
    def scored_bytes(self) -> int:
        """Size in bytes of UTF-8 of what losses and metrics are of."""
        if not self.parts:
            return self.n_bytes
        return sum(len(run.encode()) for part, run in spoken(self.text, self.parts) if part.scored)

    def between(self, start: int, end: int) -> "Snippet":
        """The characters from ``start`` to before ``end``; a special token at ``end`` belongs to what follows.

        At the end of the whole, where nothing follows, it belongs to the last.
        """
        parts: list[Part] = []
        at = 0
        for part in self.parts:
            if part.special:
                if start <= at < end or at == end == len(self.text):
                    parts.append(part)
            elif (length := min(end, at + part.length) - max(start, at)) > 0:
                parts.append(part._replace(length=length))
            at += part.length
        return Snippet(self.document, self.text[start:end], tuple(parts))


def cut(documents: Iterable[Text], size: int) -> Iterator[Snippet]:
    """Cut every document, at ends of lines, into snippets of at least ``size`` bytes and less than twice that.

    A rest below half the size joins the last snippet, which is then less than two and a half times the size.

    Lines longer than ``size`` (prose with a paragraph a line, transcripts) are cut too: before white space, or, in
    text without it, between characters. Snippets of which nothing is scored are left out, as blank ones are.
    """
    for document in documents:
        whole = Snippet(document.id, document.text, document.parts)
        ends: list[int] = []  # in characters
        at = held = 0
        for line in document.text.splitlines(keepends=True):
            for piece in pieces_of(line, size):
                at += len(piece)
                held += len(piece.encode())
                if held >= size:
                    ends.append(at)
                    held = 0
        if held >= size / 2 or (held and not ends):
            ends.append(at)
        elif held:
            ends[-1] = at
        for start, end in itertools.pairwise([0, *ends]):
            snippet = whole.between(start, end) if whole.parts else Snippet(document.id, document.text[start:end])
            if snippet.text.strip() and (not snippet.parts or any(part.scored for part in snippet.parts)):
                yield snippet


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


def fit(snippets: Iterable[Snippet], tokens: Callable[[Snippet], int], window: float) -> list[Snippet]:
    """The snippets, those of more than ``window`` tokens halved until none is left: no model is ever fed more.

    Args:
        snippets: what to halve; their order stays.
        tokens: number of tokens of a snippet, with all that the model is fed beside it.
        window: the most tokens that the model takes, 2 or more; infinite for one without a limit.
    """
    fitting: list[Snippet] = []
    for snippet in snippets:
        # A token has a byte or more, so most snippets need no count.
        size = snippet.n_bytes + len(snippet.parts) + 2
        if size <= window or tokens(snippet) <= window or len(snippet.text) == 1:
            fitting.append(snippet)
            continue
        whole = Document(snippet.document, snippet.text, snippet.parts)
        halves = list(cut([whole], max(1, snippet.n_bytes // 2)))
        if [half.text for half in halves] == [snippet.text]:  # the second half was a short rest
            middle = len(snippet.text) // 2
            halves = [snippet.between(0, middle), snippet.between(middle, len(snippet.text))]
        fitting += fit(halves, tokens, window)
    return fitting


def draw(
    snippets: Iterable[Snippet], *, n: int | None = None, n_bytes: int | None = None, seed: int = 0
) -> list[Snippet]:
    """The first ``n`` snippets, or the first that fill ``n_bytes``, in the order of their hashes.

    So they come from many documents, and not in runs from one. The order depends on each snippet's document and text
    and on the seed alone, so that a larger ``n`` keeps what a smaller one has. No more are held at a time than are
    drawn, so ``snippets`` may be those of a corpus of any size.

    Raises:
        CorpusError: there are none.
    """
    snippets = iter(snippets)
    first = next(snippets, None)
    if first is None:
        raise CorpusError("No text to draw snippets from: the split is empty. Give the corpus more text.")
    snippets = itertools.chain([first], snippets)
    start = f"{seed}\n" if seed else ""

    def rank(snippet: Snippet) -> tuple[bytes, str]:
        return hashlib.sha256(f"{start}{snippet.document}\n{snippet.text}".encode()).digest(), snippet.document

    if n is not None:
        return heapq.nsmallest(n, snippets, key=rank)
    assert n_bytes is not None
    chosen: list[tuple[tuple[bytes, str], Snippet]] = []
    total = 0
    for snippet in snippets:
        if total >= n_bytes and chosen and rank(snippet) >= chosen[-1][0]:
            continue
        bisect.insort(chosen, (rank(snippet), snippet))
        total += snippet.n_bytes
        while len(chosen) > 1 and total - chosen[-1][1].n_bytes >= n_bytes:
            total -= chosen.pop()[1].n_bytes
    return [snippet for _, snippet in chosen]


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
