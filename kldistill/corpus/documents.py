"""Documents: what a source gives, and how the splits of a corpus artifact are read."""

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from kldistill.runtime.errors import CorpusError

DOMAIN_SPLITS = ("train", "validation", "test")
GENERAL_SPLITS = ("general", "general_code")
WRITTEN = "written"  # what the original model wrote, in an artifact of its own
# The part of the general texts that training may draw on, and validation during it: no document of the above.
GENERAL_PARTS = ("train", "validation")
SPLITS = (*DOMAIN_SPLITS, *GENERAL_SPLITS, *(f"{name}_{part}" for name in GENERAL_SPLITS for part in GENERAL_PARTS))


class Part(NamedTuple):
    """A run of a text's characters that tokenizers read by itself, or a special token between two of them.

    Attributes:
        length: characters of the run; 0 for a special token.
        special: the special token as it is spelt, which is no part of the text; empty for a run.
        scored: whether losses and metrics are of what this part says.
    """

    length: int
    special: str = ""
    scored: bool = True


def spoken(text: str, parts: Iterable[Part]) -> Iterator[tuple[Part, str]]:
    """The runs of a text, each with the part that it is; special tokens are passed over."""
    at = 0
    for part in parts:
        if part.length:
            yield part, text[at : at + part.length]
        at += part.length


class Document(NamedTuple):
    """A text and its name, which is unique in its source and does not depend on the order of reading.

    Attributes:
        parts: what the text is made of, in order, in a conversation that a chat template has rendered; empty for a
            text that is read as one, and scored from end to end.
        messages: the messages of a conversation that is not rendered yet, whose ``text`` are their contents.
    """

    id: str
    text: str
    parts: tuple[Part, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()

    @property
    def runs(self) -> list[str]:
        """The runs of text: what stands between special tokens, and on either side of an answer's ends."""
        return [run for _, run in spoken(self.text, self.parts)] if self.parts else [self.text]


class Skipped(NamedTuple):
    """A document that a source cannot give as text, and why, in one word: ``binary``, ``not_utf8``, ..."""

    id: str
    reason: str


def reasons(skipped: Mapping[str, int]) -> str:
    """How many documents were left out for which reason, for people: ``3 binary, 12 too large``."""
    told = {f"copied_{split}": f"of the {split} split as copies of train" for split in ("validation", "test")}
    return ", ".join(
        f"{number:,} {told.get(reason, reason.replace('_', ' '))}" for reason, number in sorted(skipped.items())
    )


@dataclass(frozen=True)
class Source:
    """Text that can be read, as often as one likes.

    Attributes:
        read: gives the documents one by one. Raises ``CorpusError`` if there is nothing of that name.
        identity: says cheaply what the source holds right now (versions, digests), for the fingerprint of what is built
            from it. JSON values only.
    """

    read: Callable[[], Iterator[Document | Skipped]]
    identity: Callable[[], dict[str, Any]]


def decode(name: str, data: bytes) -> Document | Skipped:
    """Bytes of a file as a document: UTF-8, or UTF-16 and UTF-32 that say so by their mark; line ends as line feeds.

    The document of a notebook (``.ipynb``) is the text of its code and Markdown cells.
    """
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in data:
        return Skipped(name, "binary")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return Skipped(name, "not_utf8")
    if "\0" in text:
        return Skipped(name, "binary")
    if name.endswith(".ipynb"):
        cells = cells_of(text)
        return Skipped(name, "no_notebook") if cells is None else Document(name, line_feeds(cells))
    return Document(name, line_feeds(text))


# The longer marks first: that of UTF-16 begins that of UTF-32.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def cells_of(notebook: str) -> str | None:
    """The code and Markdown cells of a Jupyter notebook, a blank line between two; None for a text that is none.

    Source: https://nbformat.readthedocs.io/en/latest/format_description.html (version 4).
    """
    try:
        cells = json.loads(notebook)["cells"]
        sources = [cell["source"] for cell in cells if cell["cell_type"] in ("code", "markdown")]
        # The text of a cell is a string, or a list of lines with their ends.
        texts = [source if isinstance(source, str) else "".join(source) for source in sources]
    except (ValueError, KeyError, TypeError):
        return None
    return "".join(f"{text.rstrip()}\n\n" for text in texts if text.strip())


def line_feeds(text: str) -> str:
    """The text with every line ending in a line feed alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises ``CorpusError`` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}): mend its permissions or leave it out.") from error


def digest(contents: Iterable[tuple[str, Callable[[], bytes]]]) -> str:
    """One SHA-256 of names and contents, read one at a time."""
    total = hashlib.sha256()
    for name, content in contents:
        total.update(f"{name}\0{hashlib.sha256(content()).hexdigest()}\n".encode())
    return total.hexdigest()


def has_split(folder: Path, split: str) -> bool:
    """Whether a ``corpus`` artifact has this split: there may be no general code, and no general text for training."""
    return (folder / f"{split}.jsonl").is_file()


class Documents(Sequence[Document]):
    """The documents of a JSON Lines file. Each is read from disk when it is asked for, and none is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Document]:
        with self.path.open("rb") as file:
            yield from map(document_of, file)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each document's line begins, in bytes."""
        with self.path.open("rb") as file:
            ends = np.cumsum(np.fromiter(map(len, file), dtype=np.int64))
        return np.concatenate([[0], ends[:-1]]) if len(ends) else ends

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return document_of(file.readline())


def line_of(document: Document) -> str:
    """A document as a line of a JSON Lines file: ``{"id": ..., "text": ...}``, and of a conversation the rest of it."""
    fields = {name: value for name, value in document._asdict().items() if value or name in ("id", "text")}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def document_of(line: bytes) -> Document:
    """The document of a line that ``line_of`` made."""
    fields = json.loads(line)
    parts = tuple(Part(*part) for part in fields.get("parts", ()))
    return Document(fields["id"], fields["text"], parts, tuple(fields.get("messages", ())))


def read_documents(folder: Path, split: str) -> Documents:
    """The documents of one split, which is one of ``SPLITS``, or of what the original model wrote."""
    assert split in (*SPLITS, WRITTEN), f"no split {split!r}"
    return Documents(folder / f"{split}.jsonl")
