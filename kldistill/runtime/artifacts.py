"""Finished results of stages on disk: found by fingerprint, built once under a lock, whole or absent, checked on use.

Layout: ``<root>/<stage>/<fingerprint>/`` holds the files of a finished artifact and ``artifact.json`` with their
checksums; ``<fingerprint>.partial/`` is under construction; ``<fingerprint>.lock`` is the lock's file.

A build writes into ``.partial``, everything is flushed to the disk, ``artifact.json`` is written last, and one rename
makes it the artifact: a process killed at any moment leaves either all of it or none. The lock belongs to the process
(``flock``), so the operating system frees it however the process ends.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kldistill import __version__
from kldistill.runtime.errors import ArtifactError

MANIFEST = "artifact.json"
LAYOUT = 1  # version of this module's layout on disk

Signature = tuple[tuple[str, int, int, int, int], ...]
_verified: dict[Path, Signature] = {}  # what this process has already checksummed, with the files' stat at that time


def fingerprint(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Name of the artifact that ``stage`` makes from this configuration and these inputs: 16 hex digits.

    Args:
        version: the version of the stage's code, which is raised whenever the code would write something else for the
            same configuration.
        config: the stage's resolved configuration slice, of plain JSON types.
        inputs: fingerprints of the input artifacts by stage name.

    Raises:
        TypeError, ValueError: if ``config`` holds something that JSON cannot express exactly (an object, a NaN).
    """
    return hashlib.sha256(_canonical([stage, version, config, inputs])).hexdigest()[:16]


def manifest(folder: Path) -> dict[str, Any]:
    """The content of a finished artifact's ``artifact.json``: stage, version, config, inputs, files and so on.

    Raises:
        ArtifactError: if it is missing or is not what was written.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(_open(path).read())
        digest = content.pop("digest")
        whole = digest == _digest(content) and content["fingerprint"] == folder.name
    except FileNotFoundError:
        raise _damaged(folder, MANIFEST, "is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(folder, MANIFEST, f"cannot be read ({error})") from error
    if not whole:
        raise _damaged(folder, MANIFEST, "was changed after it was written, or the folder was renamed")
    return content


def verify(folder: Path) -> None:
    """Check every file of a finished artifact against its recorded size and SHA-256.

    Files are read once per process: as long as no file's size, times or inode change, further calls only look at those.

    Raises:
        ArtifactError: names the first file that is missing, truncated, changed, or was not written by the build, and
            says how to rebuild.
    """
    if folder.is_symlink():
        raise _damaged(folder, ".", "is a symbolic link")
    try:
        present = dict(_walk(folder))
        signature = _signature(present)
        if _verified.get(folder) == signature:
            return
        recorded = manifest(folder)["files"]
        for name in sorted(set(recorded) | (set(present) - {MANIFEST})):
            if name not in present:
                raise _damaged(folder, name, "is missing")
            if not stat.S_ISREG(present[name].st_mode):
                raise _damaged(folder, name, "is a symbolic link or a special file")
            if name not in recorded:
                if Path(name).name.startswith("."):  # left by a file system or a desktop, read by nobody
                    continue
                raise _damaged(folder, name, "was not written by the build")
            if (size := present[name].st_size) != (wanted := recorded[name]["bytes"]):
                how = "is truncated" if size < wanted else "has grown"
                raise _damaged(folder, name, f"{how}: {size:,} bytes instead of {wanted:,}")
            if _sha256(folder / name) != recorded[name]["sha256"]:
                raise _damaged(folder, name, "has changed: its checksum differs")
    except OSError as error:
        raise _damaged(folder, error.filename or ".", f"cannot be read ({error.strerror})") from error
    _verified[folder] = signature


class Store:
    """All artifacts under one root folder.

    Args:
        root: made if need be, for example ``outputs/artifacts``.
        say: tells the user one line (that this process waits for another one).
    """

    def __init__(self, root: Path, say: Callable[[str], None] = print) -> None:
        self.root = Path(os.path.abspath(root))
        self.say = say

    def path(self, stage: str, fingerprint: str) -> Path:
        """Where the finished artifact lies, whether or not it exists."""
        return self.root / stage / fingerprint

    def partial(self, stage: str, fingerprint: str) -> Path:
        """Where it lies while it is being built."""
        return self.root / stage / f"{fingerprint}.partial"

    def has(self, stage: str, fingerprint: str) -> bool:
        """Whether the artifact is there. It is not checked; ``build`` does that."""
        return os.path.lexists(self.path(stage, fingerprint))

    def build(
        self,
        stage: str,
        fingerprint: str,
        builder: Callable[[Path], None],
        *,
        meta: Mapping[str, Any],
        resumable: bool = False,
        force: bool = False,
    ) -> Path:
        """Return the finished artifact's folder; call ``builder`` on a ``.partial`` folder if there is none.

        Args:
            builder: writes everything into the folder it is given, and nothing else there than what shall stay.
            meta: recorded in ``artifact.json``: version, config and inputs of the stage.
            resumable: hand the builder what an interrupted build left, instead of an empty folder. The builder must
                itself tell whole files from torn ones.
            force: build anew even if the artifact exists (the old one is replaced only when the new one is whole), and
                from the beginning.

        Raises:
            ArtifactError: if the artifact exists but is damaged, or if the builder left links or special files.
            Exception: whatever ``builder`` raises; then there is no artifact, and the lock is free.
        """
        folder = self.path(stage, fingerprint)
        meta = json.loads(_canonical(dict(meta)))  # so that what JSON cannot hold is found before the work is done
        if not force and os.path.lexists(folder):
            try:
                verify(folder)
                return folder
            except ArtifactError:
                pass  # damaged, or another process is just replacing it: decided under the lock
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(folder.with_name(f"{fingerprint}.lock"), stage):
            if not force and os.path.lexists(folder):
                verify(folder)
                return folder
            partial = self.partial(stage, fingerprint)
            if not force and os.path.lexists(partial / MANIFEST):
                return self._publish(partial, folder)  # killed between sealing and renaming
            if not resumable or force or partial.is_symlink() or not partial.is_dir():
                _remove(partial)
            partial.mkdir(exist_ok=True)
            try:
                builder(partial)
                _seal(partial, {"stage": stage, "fingerprint": fingerprint, **meta})
            except BaseException:
                if not resumable:
                    _remove(partial)
                raise
            return self._publish(partial, folder)

    @contextmanager
    def _locked(self, path: Path, stage: str) -> Iterator[None]:
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self.say(f"Waiting for another process that is building {stage} ({path.with_suffix('')}).")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _publish(self, partial: Path, folder: Path) -> Path:
        """Rename a sealed folder to its final name; an older artifact there goes away."""
        old = folder.with_name(f"{folder.name}.old")
        _remove(old)
        if os.path.lexists(folder):
            os.rename(folder, old)
        _verified.pop(folder, None)
        os.rename(partial, folder)
        _flush_folder(folder.parent)
        if signature := _verified.pop(partial, None):
            _verified[folder] = signature  # hashed a moment ago, when it was sealed
        _remove(old)
        verify(folder)
        return folder


def _seal(folder: Path, meta: Mapping[str, Any]) -> None:
    """Flush all files to the disk, then write their checksums to ``artifact.json``."""
    files, folders = {}, {folder}
    temporary = folder / f".{MANIFEST}"
    temporary.unlink(missing_ok=True)  # a process was killed just here
    present = dict(_walk(folder))
    assert MANIFEST not in present, f"a builder must not write {MANIFEST}"
    for name, info in sorted(present.items()):
        path = folder / name
        if not stat.S_ISREG(info.st_mode):
            raise ArtifactError(f"{path}: an artifact holds plain files only, no symbolic links or special files.")
        with _open(path) as file:
            files[name] = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}
            os.fsync(file.fileno())
        folders.update(parent for parent in path.parents if parent.is_relative_to(folder))
    content = {
        "layout": LAYOUT,
        "kldistill": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **meta,
        "files": files,
    }
    content["digest"] = _digest(content)
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    for parent in folders:
        _flush_folder(parent)
    os.rename(temporary, folder / MANIFEST)
    _flush_folder(folder)
    _verified[folder] = _signature(dict(_walk(folder)))


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Give relative name and ``lstat`` of everything below ``folder`` that is no folder; links are not followed."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            for name, info in _walk(folder / entry.name):
                yield f"{entry.name}/{name}", info
        else:
            yield entry.name, entry.stat(follow_symlinks=False)


def _signature(present: Mapping[str, os.stat_result]) -> Signature:
    stats = ((name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino) for name, info in present.items())
    return tuple(sorted(stats))


def _open(path: Path) -> Any:
    """Open a file for reading bytes; a symbolic link is an ``OSError``."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")


def _sha256(path: Path) -> str:
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _damaged(folder: Path, name: str, what: str) -> ArtifactError:
    stage = folder.parent.name
    return ArtifactError(f"{folder / name} {what}, so this artifact is not used; force=[{stage}] rebuilds it.")
