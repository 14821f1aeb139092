"""The texts that a tokenizer is extended for, as often as they are gone through."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kldistill.corpus.documents import Documents


@dataclass(frozen=True)
class Texts:
    """The texts of a split, those of a conversation by themselves, as no token reaches from one into the next.

    They are read from disk whenever they are gone through, so that memory holds one at a time.

    Attributes:
        documents: of the split.
        limit: the first texts that together hold no more than this many bytes are meant (at least one text).
    """

    documents: Documents
    limit: int | None = None

    def __iter__(self) -> Iterator[str]:
        return up_to((run for document in self.documents for run in document.runs), self.limit)


def up_to(texts: Iterable[str], limit: int | None) -> Iterator[str]:
    """The first texts that together hold no more than ``limit`` bytes (at least one text)."""
    total = 0
    for i, text in enumerate(texts):
        total += len(text.encode())
        if limit is not None and total > limit and i:
            return
        yield text
