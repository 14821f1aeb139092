"""Where text comes from: functions that ``corpus.source`` and ``corpus.general`` name by ``_target_``.

A function looks nothing up until its ``Source`` is read or asked for its identity. To add a source, write a function
that returns a ``Source`` and name it in a YAML file under ``conf/corpus``.
"""

import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kldistill.corpus.documents import Document, Skipped, Source, decode, digest, line_feeds, read_bytes
from kldistill.corpus.folders import as_dataset, existing, expanded, files_below, name_of, without_match
from kldistill.runtime.components import component
from kldistill.runtime.errors import CorpusError
from kldistill.runtime.own import own_among

log = logging.getLogger(__name__)


def _contents(files: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for name, path in files:
        yield name, partial(read_bytes, path)


@component("source")
def python_package(packages: list[str], suffixes: list[str] | None = None, exclude: list[str] | None = None) -> Source:
    """Files of installed Python packages, the standard library's included. Nothing is imported.

    Args:
        packages: import names (``sklearn``, ``transformers.generation``) or distribution names (``scikit-learn``).
        suffixes: which files, by the ends of their names; ``.py`` by default.
        exclude: import or distribution names to leave out of ``packages``, with all that is below them.
    """
    without = {name.split(".")[0] for name in exclude or []}
    packages = [package for package in packages if package.split(".")[0] not in without]
    endings = tuple(suffixes or [".py"])

    def files() -> dict[str, Path]:
        paths: dict[str, Path] = {}
        for package in packages:
            mine = {name: path for name, path in _package_files(package) if name.endswith(endings)}
            if not mine:
                raise CorpusError(
                    f"corpus.packages: {package!r} holds no {' or '.join(endings)} file; set corpus.suffixes."
                )
            paths.update(mine)
        return dict(sorted(paths.items()))

    return Source(
        read=lambda: (decode(name, read_bytes(path)) for name, path in files().items()),
        identity=lambda: {"packages": {p: _version(p) for p in packages}, "sha256": digest(_contents(files().items()))},
    )


def _package_files(package: str) -> Iterator[tuple[str, Path]]:
    """Names (relative to where the package is installed) and paths of all files of a package."""
    top, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except ValueError:  # A module that is running and has no spec, such as __main__.
        spec = None
    if spec is not None:
        folders = [Path(location) for location in spec.submodule_search_locations or []]
        roots = [folder.joinpath(*rest) for folder in folders]
        if not folders and not rest and spec.origin and Path(spec.origin).is_file():
            roots = [Path(spec.origin)]
        yield from _files_below([root if root.exists() else root.with_suffix(".py") for root in roots], 1 + len(rest))
        return
    try:
        distribution = importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise CorpusError(
            f"corpus.packages: there is no installed package {package!r}. Install it (pip install {package}) or name "
            "another; a top-level import name or a distribution name will do."
        ) from None
    for file in distribution.files or []:
        path = Path(str(file.locate()))
        if ".." not in file.parts and path.is_file():
            yield file.as_posix(), path


def _files_below(roots: list[Path], levels: int) -> Iterator[tuple[str, Path]]:
    """Files at or below ``roots``, named relative to the folder ``levels`` above each root."""
    for root in roots:
        base = root.parents[levels - 1]
        paths = [root] if root.is_file() else root.rglob("*")
        for path in paths:
            name = path.relative_to(base)
            if "__pycache__" not in name.parts and path.is_file():
                yield name_of(name), path


def _version(package: str) -> str:
    """Version of the distribution of that name, or of the interpreter for the standard library."""
    for name in (package, package.split(".")[0]):
        try:
            return importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return f"python {sys.version.split()[0]}" if package.split(".")[0] in sys.stdlib_module_names else "unknown"


@component("source")
def local_files(path: str, glob: str) -> Source:
    """Text files below a folder.

    Hidden files and folders (``.git``, ``.venv``) are passed over; kldistill's outputs, virtual environments, other
    people's code (``node_modules``, ``vendor``, ``third_party``, ...), what is built (``build``, ``dist``, Cargo's
    ``target``, ...) and what git ignores are left out and counted. ``path`` itself may be such a folder.

    Args:
        path: the folder, or one file, whatever the pattern.
        glob: pattern for ``pathlib.Path.glob``, such as ``**/*.py`` or, with alternatives, ``**/*.{py,md}``.
    """

    def files() -> list[tuple[str, Path, str]]:
        root = existing(path)
        if root.is_file():
            return [(root.name, root, "")]
        matches = list(files_below(root, glob))
        if not any(not reason for _, _, reason in matches):
            raise CorpusError(
                f"corpus.glob={glob!r}: no file below {root.absolute()} matches{without_match(root, glob)}"
            )
        return matches

    def read() -> Iterator[Document | Skipped]:
        found = files()
        if told := as_dataset([file for _, file, reason in found if not reason]):
            log.warning(
                "Files of rows are read as they stand, keys and escapes and all. If a column is meant: %s", told
            )
        for name, file, reason in found:
            yield Skipped(name, reason) if reason else decode(name, read_bytes(file))

    def own() -> list[tuple[str, Path]]:
        return [(name, file) for name, file, reason in files() if not reason]

    return Source(
        read=read,
        identity=lambda: {"files": len(kept := own()), "sha256": digest(_contents(kept))},
    )


@component("source")
def hf_dataset(
    path: str,
    name: str | None = None,
    split: str = "train",
    text_field: str = "text",
    messages_field: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
    data_files: list[str] | None = None,
    limit: int | None = None,
) -> Source:
    """One column of a dataset that ``datasets.load_dataset`` can load, from the hub or from local files.

    A document is named by the digest of its text, since rows have no names; its place in the dataset does not matter.
    The identity of local files is their content; of a dataset on the hub, the commit. Give ``revision`` as a commit
    hash to do without the network once the dataset is in the local cache.

    Args:
        path: dataset on the hub, local folder, or format (``json``, ``parquet``, ``csv``, ``text``) of ``data_files``.
        name: configuration of the dataset.
        split: such as ``train`` or ``train[:10%]``.
        text_field: the column.
        messages_field: the column of conversations, if these are wanted in place of texts. A row's text is then the
            contents of its messages, a blank line between two.
        streaming: read rows as they come, without filling the local cache.
        revision: branch, tag or commit.
        data_files: files or patterns.
        limit: rows to read at most.
    """
    where: dict[str, Any] = {
        # From the root: ``datasets`` names a dataset by its folder's name, and ``.`` has none.
        "path": str(expanded(path, "corpus.path").resolve()) if path.startswith(("~", ".")) else path,
        "name": name,
        "revision": revision,
        "data_files": [
            str(expanded(file, "corpus.data_files")) if file.startswith("~") else file for file in data_files or []
        ]
        or None,
    }
    if path == "text":  # a file is a document; by default every line would be one
        where["sample_by"] = "document"

    def refuse_file() -> None:
        if (file := expanded(path, "corpus.path")).is_file():
            named = f"corpus=hf_dataset corpus.path=FORMAT 'corpus.data_files=[\"{file.absolute()}\"]'"
            told = as_dataset([file]) or named
            raise CorpusError(f"corpus.path={path!r}: is a file, and a dataset's path its format or folder. Say {told}")

    def failed(error: Exception) -> CorpusError:
        if path == "json" and (place := malformed(where["data_files"] or [])):
            return CorpusError(f"corpus.data_files: {place}. Mend the row or leave it out.")
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        return CorpusError(
            f"corpus.path={path!r} (split {split!r}) cannot be loaded: {told} Without the network, give local files: "
            "corpus.path=json corpus.data_files=[FILE], or a dataset that is in the cache."
        )

    def looked_up() -> tuple[list[str], str | None]:
        """The files of the dataset, and the digest of what it is made of. Raises ``CorpusError``."""
        from datasets import load_dataset_builder  # Takes seconds to import; only who uses it pays.
        from datasets.exceptions import DatasetsError

        try:
            builder = load_dataset_builder(**where)
            if Path(where["path"]).is_dir() and hasattr(builder.config, "sample_by"):  # of text: here too, not a line
                where["sample_by"] = "document"
                builder = load_dataset_builder(**where)
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            raise failed(error) from error
        listed = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
        root = (Path(where["path"]) if Path(where["path"]).is_dir() else Path()).absolute()
        named = {root / file for file in where["data_files"] or []}
        found = (file for file in map(Path, listed) if file not in named)  # by a pattern
        if own := own_among(found, root):
            raise CorpusError(
                f"corpus.{'data_files' if data_files else 'path'}: {len(own):,} of the files found there were written "
                f"by kldistill itself, such as {own[0]}. Name another place for its results with outputs=FOLDER, or "
                "the dataset's own files in corpus.data_files."
            )
        return listed, builder.hash

    def read() -> Iterator[Document | Skipped]:
        refuse_file()
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        if Path(where["path"]).is_dir() or any(set(file) & set("*?[") for file in where["data_files"] or []):
            looked_up()  # since the fingerprint was made, the folder may have been written to
        try:
            rows: Any = load_dataset(**where, split=split, streaming=streaming)
            for number, row in enumerate(itertools.islice(rows, limit)):
                field = messages_field or text_field
                if field not in row:
                    key = "messages_field" if messages_field else "text_field"
                    raise CorpusError(f"corpus.{key}={field!r}: the columns of {path!r} are {', '.join(sorted(row))}.")
                if messages_field:
                    yield conversation(f"{split}/{number}", row[field])
                    continue
                text = row[field]
                if not isinstance(text, str):
                    yield Skipped(f"{split}/{number}", "no_text")
                elif "\0" in text:
                    yield Skipped(f"{split}/{number}", "binary")
                else:
                    text = line_feeds(text)
                    yield Document(hashlib.blake2b(text.encode(), digest_size=12).hexdigest(), text)
        except CorpusError:
            raise
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            raise failed(error) from error

    def identity() -> dict[str, Any]:
        refuse_file()
        if revision and len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
            return {"commit": revision}
        listed, hash_of = looked_up()
        local = [(Path(file).name, Path(file)) for file in listed if Path(file).is_file()]
        # An address on the hub holds the commit.
        distant = sorted(file for file in listed if not Path(file).is_file())
        return {"sha256": digest(_contents(local)), "files": distant or [hash_of] if not local else distant}

    return Source(read=read, identity=identity)


def conversation(name: str, messages: Any) -> Document | Skipped:
    """A row of messages as a document; its name is the digest of what is said by whom.

    Args:
        name: of the row, if it is no list of messages that each have a role and a content of text.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return Skipped(name, "no_messages")
    # Arrow gives every message the columns of all of them, empty where it has none.
    kept = [{key: value for key, value in message.items() if value is not None} for message in messages]
    if not all(isinstance(message.get(key), str) for message in kept for key in ("role", "content")):
        return Skipped(name, "no_messages")
    if any("\0" in message["content"] for message in kept):
        return Skipped(name, "binary")
    said = [message | {"content": line_feeds(message["content"])} for message in kept]
    digest_ = hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    return Document(digest_, "\n\n".join(message["content"] for message in said), messages=tuple(said))


def malformed(files: Iterable[str]) -> str | None:
    """The first row of some JSON Lines files that is no JSON of UTF-8: where it stands and what is wrong with it."""
    for file in files:
        path = Path(file)
        if not path.is_file():
            continue
        with path.open("rb") as rows:
            for number, row in enumerate(rows, 1):
                try:
                    if row.strip():
                        json.dumps(json.loads(row.decode("utf-8-sig")), ensure_ascii=False).encode()
                except UnicodeDecodeError:
                    return f"{file}, row {number}: is not UTF-8"
                except UnicodeEncodeError:
                    return f"{file}, row {number}: spells half a surrogate pair (\\ud800 to \\udfff), which is no text"
                except json.JSONDecodeError as error:
                    return f"{file}, row {number}: is no JSON ({error.msg}, column {error.colno})"
    return None
