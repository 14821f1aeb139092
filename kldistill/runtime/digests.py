"""SHA-256 of files, remembered for large ones, so that a start need not read gigabytes to know that nothing changed.

A digest is remembered in the user's cache folder (``$XDG_CACHE_HOME/kldistill/digests``, else under ``~/.cache``) with
the file's path, device, inode, size, and times of change in nanoseconds. Any change of the content changes the time
that the operating system keeps of it (``st_ctime_ns``, which no program can set), so a remembered digest is that of the
content. Times have a grain, so what was changed only a moment ago is not remembered (as git does with its index).
"""

import hashlib
import json
import os
import time
from pathlib import Path

from kldistill.runtime.files import write_text

LEAST = 16 * 2**20  # bytes; smaller files are read, which takes a few hundredths of a second
SETTLED = 2.0  # seconds since the last change: the coarsest grain of times in use is that of FAT


def sha256(file: Path) -> str:
    """The file's digest, as its content says now. Raises ``OSError`` if it cannot be read."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(file: Path) -> str:
    """The file's digest, without reading it where this user's earlier runs have and nothing has touched it since.

    Raises ``OSError`` if it cannot be read.
    """
    where = file.resolve()
    before = _state(where)
    if before["size"] < LEAST:
        return sha256(where)
    note = _folder() / f"{hashlib.sha256(str(where).encode()).hexdigest()[:32]}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["state"] == before:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing remembered, or a damaged note: the file itself says it
    digest = sha256(where)
    latest = max(before["mtime_ns"], before["ctime_ns"]) / 1e9
    if _state(where) == before and time.time() - latest > SETTLED:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps({"path": str(where), "state": before, "sha256": digest}) + "\n")
        except OSError:
            pass  # a home that cannot be written to only costs time
    return digest


def _state(file: Path) -> dict[str, int]:
    """What changes when a file does, as its file system tells it."""
    info = os.stat(file)
    return {
        "device": info.st_dev,
        "inode": info.st_ino,
        "size": info.st_size,
        "mtime_ns": info.st_mtime_ns,
        "ctime_ns": info.st_ctime_ns,
    }


def _folder() -> Path:
    """Where digests are remembered."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kldistill" / "digests"
