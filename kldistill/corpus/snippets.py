"""Documents cut at lines into snippets, and their ids as both models see them."""

import hashlib
from collections.abc import Iterable, Sequence
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


def draw(snippets: Sequence[Snippet], *, n: int | None = None, n_bytes: int | None = None) -> list[Snippet]:
    """The first ``n`` snippets, or the first that fill ``n_bytes``, in an order by hash: many documents, no
    clusters.

    The order depends on nothing but the text, so that everything that is cached for a snippet serves every seed.

    Raises:
        CorpusError: there are none.
    """
    if not snippets:
        raise CorpusError("No text to draw snippets from: the split is empty. Give the corpus more text.")
    order = sorted(snippets, key=lambda s: (hashlib.sha256(f"{s.document}\n{s.text}".encode()).digest(), s.document))
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
