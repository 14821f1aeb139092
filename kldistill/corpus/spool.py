"""Documents on disk while a corpus is made of them, so that memory holds their names and sizes alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from kldistill.corpus.documents import Document, document_of, line_of


class Entry(NamedTuple):
    """A document of a spool: its name, its size in bytes of UTF-8, and where it begins in the file."""

    id: str
    n_bytes: int
    start: int


class Spool:
    """A file that documents are written to as they come, and read from one at a time; deleted at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")

    def add(self, document: Document) -> Entry:
        """Write a document."""
        start = self._file.seek(0, 2)
        self._file.write(line_of(document).encode())
        return Entry(document.id, len(document.text.encode()), start)

    def read(self, entry: Entry) -> Document:
        """The document of an entry."""
        self._file.seek(entry.start)
        return document_of(self._file.readline())

    def text(self, entry: Entry) -> str:
        """The text of an entry."""
        return self.read(entry).text

    def documents(self, entries: Iterable[Entry]) -> Iterator[Document]:
        """The documents of some entries, one at a time."""
        return map(self.read, entries)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink()
