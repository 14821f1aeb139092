"""The command line of bubblewrap.

Source: https://github.com/containers/bubblewrap, version 0.6 or later.
"""

import functools
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from kldistill.evaluation.sandbox.limits import Limits

ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",  # each arena of a thread takes 64 MiB of address space
    "PATH": "/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the order of a set must not decide a verdict
    "PYTHONUTF8": "1",
    "TMPDIR": "/tmp",
}
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/sbin", "/nix/store")


def python() -> list[str]:
    """The interpreter without site packages, user's packages, and the working folder in its path."""
    return [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-s", "-S", "-P"]


def program() -> str | None:
    """Where bubblewrap is."""
    return shutil.which("bwrap")


def command(limits: Limits, inner: Sequence[str]) -> list[str]:
    """Command line that runs ``inner`` as first process of a sandbox of its own.

    The sandbox has its own namespaces: user, mount, process ids, network (with nothing but a loopback), IPC, host name,
    cgroups. The root is an empty file system that shows ``/usr`` and the interpreter; it and ``/proc`` are read-only
    (bubblewrap alone leaves ``/proc/sys`` writable to a program whose user outside is root). ``/tmp`` and ``/dev/shm``
    are empty and private, in memory, of ``limits.file_bytes`` bytes each. The program has no capabilities, and can get
    no new privileges.
    """
    tmpfs = ("--size", str(limits.file_bytes), "--tmpfs")
    arguments = [
        program() or "bwrap",
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
    ]
    arguments += ["--unshare-cgroup-try", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000"]
    arguments += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    for key, value in ENVIRONMENT.items():
        arguments += ["--setenv", key, value]
    arguments += mounts()
    arguments += ["--proc", "/proc", "--remount-ro", "/proc"]
    arguments += ["--dev", "/dev", *tmpfs, "/dev/shm", "--remount-ro", "/dev", *tmpfs, "/tmp"]
    return [*arguments, "--remount-ro", "/", "--chdir", "/tmp", "--", *inner]


@functools.cache
def mounts() -> tuple[str, ...]:
    """Arguments that show the system's programs and the interpreter's files, read-only, and nothing else."""
    arguments: list[str] = []
    for path in SYSTEM:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            arguments += ["--ro-bind", path, path]
    seen = [Path(path) for path in SYSTEM]
    prefix = Path(os.path.realpath(sys.base_prefix))
    standard = [Path(os.path.realpath(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib")]
    for path in (prefix / "lib", prefix / "lib64", Path(python()[0]), *standard):
        if path.exists() and not path.is_symlink() and not any(path.is_relative_to(parent) for parent in seen):
            arguments += ["--ro-bind", str(path), str(path)]
            seen.append(path)
    if os.path.exists("/etc/ld.so.cache"):  # where the system's libraries are
        arguments += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    return tuple(arguments)
