"""English prose out of README and documentation files: code, tables, badges and lists of names are left out.

Paragraphs are judged one by one. What remains is text of a general kind, for measuring what a model forgets.
"""

import ast
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kldistill.corpus.documents import Document, Skipped, Source, decode, digest, read_bytes
from kldistill.runtime.components import component
from kldistill.runtime.errors import CorpusError

# The commonest function words of English; about four words in ten of prose, hardly any in code or in other languages.
_FUNCTION_WORDS = """
a about all also an and any are as at be been but by can do each for from has have if in into is it its may
more no not of on one only or other our out same should so some such than that the their them then there these
they this to use used was we were when where which will with would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
MIN_WORDS = 12
MIN_FUNCTION_WORDS = 0.25
MIN_LETTERS = 0.8

_FENCES = re.compile(r"^[ \t]*(```|~~~).*?(^[ \t]*\1[^\n]*|\Z)", flags=re.DOTALL | re.MULTILINE)
_TAGS = re.compile(r"<!--.*?-->|</?[a-zA-Z][\w-]*(?:\s[^<>]{0,500})?/?>", flags=re.DOTALL)
# Lines of tables, doctests, directives, fields, badges, shell prompts and rules.
_NO_PROSE = re.compile(r"\s*(\||>>>|\.\. |:[\w-]+:|!?\[!\[|!\[|\$ |[-+=~^*_#]{3,}\s*$)")
# Blocks that begin with an indented line: code, in Markdown and in reStructuredText.
_INDENTED = re.compile(r" {4}|\t")
_WORDS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_LICENCE_NAME = re.compile(r"licen[cs]e|copying|notice|authors|copyright|third.?party", flags=re.IGNORECASE)
_LICENCE_TEXT = re.compile(
    r"permission is hereby granted|redistribution and use in source|warranties or conditions of any kind|"
    r"without warranty of any kind|licensed (to the apache|under the)|terms and conditions for use|"
    r"gnu (lesser |affero )?general public licen[cs]e",
    flags=re.IGNORECASE,
)


def is_licence_name(path: str) -> bool:
    """Whether a file's path says that it holds a licence, a notice or a list of authors."""
    return _LICENCE_NAME.search(path) is not None


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads as English: enough words, mostly letters, and as many function words as prose has."""
    words = _WORDS.findall(paragraph)
    if len(words) < MIN_WORDS:
        return False
    marks = "".join(paragraph.split())  # Without white space, of which code has plenty too.
    letters = sum(map(str.isalpha, marks))
    known = sum(word.lower() in FUNCTION_WORDS for word in words)
    return (
        letters >= MIN_LETTERS * len(marks) and known >= MIN_FUNCTION_WORDS * len(words) and not _is_python(paragraph)
    )


def _is_python(paragraph: str) -> bool:
    """Whether a paragraph is Python, whose keywords are function words of English. Prose never parses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            ast.parse(paragraph)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return False
    return True


def prose(text: str, max_bytes: int) -> str:
    """The English paragraphs of a document in Markdown, reStructuredText or plain text, separated by blank lines.

    Args:
        text: the document.
        max_bytes: stop before the paragraph that would take the result beyond this, so that one long change log does
            not outweigh everything else.

    Returns:
        The text that is left, without markup for blocks; empty if there is no prose or if it is a licence.
    """
    text = _TAGS.sub("", _FENCES.sub("", text.replace("\r\n", "\n")))
    kept: list[str] = []
    size = 0
    for block in re.split(r"\n[ \t]*\n", text):
        if _INDENTED.match(block.lstrip("\n")):
            continue
        paragraph = "\n".join(line.rstrip() for line in block.split("\n") if not _NO_PROSE.match(line)).strip()
        if _LICENCE_TEXT.search(paragraph) or not is_prose(paragraph):
            continue
        size += len(paragraph.encode()) + 2
        if size > max_bytes:
            break
        kept.append(paragraph)
    return "\n\n".join(kept)


@component("source")
def package_docs(
    packages: list[str],
    requirements: bool = False,
    exclude: list[str] | None = None,
    suffixes: list[str] | None = None,
    max_document_bytes: int = 20_000,
) -> Source:
    """English prose of installed distributions: their long descriptions and the documents that they ship.

    Args:
        packages: distribution names; an empty list means everything that is installed.
        requirements: take the packages that those need as well, to any depth, as far as they are installed.
        exclude: import or distribution names to leave out, such as the domain's own.
        suffixes: what a document is called; ``.md``, ``.rst`` and ``.txt`` by default.
        max_document_bytes: how much prose to take of one document, at most.
    """
    endings = tuple(suffixes or [".md", ".rst", ".txt"])
    without = {str(canonicalize_name(name.split(".")[0])) for name in exclude or []}

    def texts() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for name, distribution in sorted(_distributions(packages, requirements).items()):
            files = distribution.files or []
            tops = {file.parts[0] for file in files if len(file.parts) > 1}
            if name in without or without.intersection(map(canonicalize_name, tops)):
                continue
            yield f"{name}/METADATA", partial(_description, distribution)
            for file in sorted(file for file in files if file.name.endswith(endings)):
                path = Path(str(file.locate()))
                if not is_licence_name(file.as_posix()) and path.is_file():
                    yield f"{name}/{file.as_posix()}", partial(read_bytes, path)

    def read() -> Iterator[Document | Skipped]:
        for name, content in texts():
            document = decode(name, content())
            if isinstance(document, Document):
                text = prose(document.text, max_document_bytes)
                document = Document(name, text) if text else Skipped(name, "no_prose")
            yield document

    def identity() -> dict[str, Any]:
        chosen = _distributions(packages, requirements)
        versions = {name: chosen[name].version for name in sorted(chosen)}
        return {"packages": versions, "sha256": digest(texts())}

    return Source(read=read, identity=identity)


def _description(distribution: importlib.metadata.Distribution) -> bytes:
    """A distribution's long description, usually its README, wherever the metadata holds it."""
    metadata: Any = distribution.metadata
    body = metadata.get_payload() or metadata.get("Description") or ""
    # In a header, continuation lines carry a margin.
    return re.sub(r"^(?: {8}| {7}\|)", "", body, flags=re.MULTILINE).encode(errors="surrogateescape")


def _distributions(packages: list[str], requirements: bool) -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions by canonical name."""
    if not packages:
        return _by_name(importlib.metadata.distributions())
    chosen: dict[str, importlib.metadata.Distribution] = {}
    waiting = []
    for package in packages:
        if not _installed(package):
            raise CorpusError(f"corpus.general.packages: no distribution {package!r} is installed; install or drop it.")
        waiting.append(canonicalize_name(package))
    while waiting:
        name = waiting.pop()
        if name in chosen or not (found := _installed(name)):
            continue
        chosen.update(found)
        for text in (found[name].requires or []) if requirements else []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(need.name))
    return chosen


def _installed(name: str) -> dict[str, importlib.metadata.Distribution]:
    """The distribution of a name; empty where it is not installed. The long descriptions of others stay unread."""
    return _by_name(importlib.metadata.distributions(name=name))


def _by_name(
    distributions: Iterable[importlib.metadata.Distribution],
) -> dict[str, importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in distributions:
        # The first of a name on the path is the one that Python imports; a broken installation may have no name.
        metadata = distribution.metadata
        if metadata and metadata["Name"]:
            found.setdefault(canonicalize_name(metadata["Name"]), distribution)
    return found
