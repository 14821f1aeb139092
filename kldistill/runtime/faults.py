"""Faults of disks and folders, told in a sentence with a way out, and the lock of a run's folder."""

import errno
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from kldistill.runtime.errors import FolderInUseError, KldistillError, StorageError, causes
from kldistill.runtime.files import write_text

LOCK = ".lock"
HOLDER = ".holder.json"
SPARE = ".spare"
_SPARE_BYTES = 64 * 1024
_ELSEWHERE = "name another place with outputs=FOLDER"
_SPACE = f"no space is left there: free some, or {_ELSEWHERE}"
_FAULTS = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: f"the quota is used up: free some space, or {_ELSEWHERE}",
    errno.EFBIG: f"the file is larger than this file system or this user's limit allows: {_ELSEWHERE}",
    errno.EROFS: f"the file system is read-only: {_ELSEWHERE}",
    errno.EACCES: f"permission denied: change its permissions, or {_ELSEWHERE}",
    errno.EPERM: f"operation not permitted: change its owner or permissions, or {_ELSEWHERE}",
    errno.EISDIR: "a folder is where a file should be: move it away",
    errno.ENOTDIR: "a file is where a folder should be: move it away",
    errno.EEXIST: "something else is where a file or folder should be: move it away",
    errno.ENOTEMPTY: "files appeared in this folder while it was removed: end whatever writes there",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or set runtime.workers=1",
    errno.ENAMETOOLONG: f"the name is too long for this file system: {_ELSEWHERE}",
    errno.EIO: "the disk or the network file system does not answer properly: look at its health",
    errno.ESTALE: "the network file system has lost this file: mount it again",
}


def storage_fault(error: BaseException | None) -> str | None:
    """What is wrong with a disk or a folder, and what to do; None where ``error`` comes from anything else.

    Libraries written in Rust (safetensors, tokenizers) wrap what the system said in errors of their own, so does
    ``shutil`` where it copies a folder, and numpy tells only that fewer bytes were written than it wanted; these count
    too.
    """
    for cause in causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None and (match := re.search(r"(?:\(os error |\[Errno )(\d+)[)\]]", str(cause))):
            number = int(match[1])
        if number is None and re.search(r"\d+ requested and \d+ written", str(cause)):
            number = errno.ENOSPC
        if number in _FAULTS:
            where = next((str(name) for name in _names(cause) if name), None)
            return f"{where}: {_FAULTS[number]}" if where else _FAULTS[number]
    return None


def _names(error: BaseException) -> tuple[object, ...]:
    return (getattr(error, "filename", None), getattr(error, "filename2", None))


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn a fault of a disk or a folder into one clear message that begins with ``what``, a stage for example.

    Raises:
        StorageError: in place of such a fault; all other exceptions pass as they are.
    """
    try:
        yield
    except KldistillError:  # says already what is wrong
        raise
    except Exception as error:
        if (fault := storage_fault(error)) is None:
            raise
        raise StorageError(f"{what}: {fault}. The same command then goes on from what is finished.") from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that one process writes there at a time; made if need be.

    The lock is the operating system's (``flock``), which frees it however its holder ends: a dead run locks nobody out.
    While the folder is held, ``.holder.json`` in it says by whom, and ``.spare`` keeps a little room on the disk, for
    the last words of a run on a full one (``give_room``).

    Raises:
        FolderInUseError: another process holds it; names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use by {_holder(folder)}. Wait for it to end, or give this run a folder of its own "
            "(hydra.run.dir=FOLDER)."
        ) from None
    try:
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_text(folder / HOLDER, json.dumps(me) + "\n")
        (folder / SPARE).write_bytes(os.urandom(_SPARE_BYTES))  # zeros could be compressed away
        yield
    finally:
        for name in (HOLDER, SPARE):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        lock.release()


def give_room(folder: Path) -> None:
    """Free what ``held`` keeps of a disk, for a small file that must still be written."""
    with suppress(OSError):
        (folder / SPARE).unlink(missing_ok=True)


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
