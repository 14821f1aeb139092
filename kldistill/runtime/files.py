"""Files of one JSON object a line that survive a killed writer, and nothing secret in them."""

import glob
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from kldistill.runtime.secrets import redact

SUMMARY = "summary.json"


def read_lines(path: Path) -> list[str]:
    """The whole lines of a JSON-lines file; a torn end (of a process killed while writing) is left out."""
    whole: list[str] = []
    if not path.exists():
        return whole
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not isinstance(content, dict):
            break
        whole.append(line.decode())
    return whole


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Replace a file in one step: readers see the old or the new one, never half of it.

    Writers at the same time do not disturb each other: each has a temporary file of its own, and the last one wins.
    """
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors=errors)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sweep(path: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*.tmp"):
        pid = left.name.removeprefix(f".{path.name}.").partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            left.unlink(missing_ok=True)


def write_summary(out: Path, figures: Mapping[str, float]) -> None:
    """Write a stage's final figures, by their stable names (docs/metrics.md), into its artifact's ``summary.json``."""
    (out / SUMMARY).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def read_summary(artifact: Path) -> dict[str, float]:
    """What ``write_summary`` has written into an artifact; empty for a stage that writes none."""
    path = artifact / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def truncate(path: Path, lines: Sequence[str]) -> None:
    """Cut a file to its first lines, which are ``lines``."""
    if path.exists():
        os.truncate(path, sum(len(line.encode()) + 1 for line in lines))


def replace(path: Path, lines: Sequence[str]) -> None:
    """Write other lines in one step: there is no moment at which some are missing."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def append(path: Path, line: str) -> None:
    """Add one line."""
    with path.open("ab") as file:
        file.write(f"{line}\n".encode())


def dump(content: Mapping[str, Any]) -> str:
    """One line of JSON, redacted.

    Raises:
        TypeError, ValueError: if ``content`` holds something that JSON cannot express exactly.
    """
    return json.dumps(redact(content), ensure_ascii=False, allow_nan=False)


def extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the plain files of an archive below ``folder``, and nothing else of it: no link, no file elsewhere.

    As ``extractall(filter="data")``, which Python has from 3.11.4 on.

    Raises:
        ValueError: a file would lie outside the folder.
    """
    for member in archive:
        content, target = archive.extractfile(member) if member.isfile() else None, folder / member.name
        if content is None:
            continue
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{member.name}: this file of {archive.name} would lie outside {folder}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
