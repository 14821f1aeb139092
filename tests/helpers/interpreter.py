"""An executable that is ``python`` without the seconds of its imports, and the command of the package run by it."""

import atexit
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.helpers.paths import HELPERS, ROOT
from tests.helpers.patience import PATIENCE
from tests.helpers.unpainted import WISH

FOLDER = "KLDISTILL_INTERPRETERS"  # the variable that tells workers where this session's server is
ITSELF = "KLDISTILL_INTERPRETER"  # and which interpreter this session has been started with


def offer() -> None:
    """Let this process and its workers, if it is the first of a session, share one server, which ends with it."""
    if FOLDER in os.environ:
        # A worker may be a fork of that server: what it starts as ``sys.executable`` is to be a new interpreter.
        sys.executable = os.environ[ITSELF]
        return
    os.environ[ITSELF] = sys.executable
    folder = Path(mkdtemp(prefix="kldistill-python-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.mkfifo(folder / "alive")
    os.open(folder / "alive", os.O_RDWR)  # whoever reads it learns when this process has ended
    os.environ[FOLDER] = str(folder)


def bytecode() -> str | None:
    """``sys.pycache_prefix`` of the forks: this session has a folder where none may be beside the files."""
    return str(Path(os.environ[FOLDER]) / "bytecode") if sys.dont_write_bytecode else sys.pycache_prefix


@cache
def python() -> str:
    """Path of the executable; each start of it is a fork of one process of this session that has all slow packages.

    Takes ``-c CODE``, ``-m MODULE`` or a file, after ``-I`` or ``-u``. What must not find these packages loaded, or
    gives a variable that they read when they are imported, starts ``sys.executable``. So does a test that kills what it
    starts and at once looks at what is left: the fork is gone some milliseconds after the process that stands for it.
    """
    folder = Path(os.environ[FOLDER])
    executable = folder / "python"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not executable.exists():
            start(folder, executable)
    return str(executable)


def start(folder: Path, executable: Path) -> None:
    """Start the server of this session, and write the executable that asks it."""
    served = folder / "socket"
    with (folder / "alive").open("rb", buffering=0) as alive:
        server = subprocess.Popen(
            [sys.executable, HELPERS / "interpreter_server.py", served],
            # Threads of tokenizers, which a test may have asked for, would be lost in a fork, and waited for.
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            | {"TOKENIZERS_PARALLELISM": "false"},
            stdin=alive,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    client = [sys.executable, "-S", "-E", str(HELPERS / "interpreter_client.py"), str(served), str(executable)]
    # The controller of submitit's jobs names them by its process id, which has to be that of what was started.
    itself = f'[ "$2" = submitit.local._local ] && exec {shlex.quote(sys.executable)} "$@"'
    partial = executable.with_suffix(".partial")
    partial.write_text(f'#!/bin/sh\n{itself}\nexec {shlex.join(client)} "$@"\n')
    partial.chmod(0o755)
    partial.rename(executable)


def kldistill(*arguments: str, folder: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder``, as a user would, but that pictures are blank."""
    return subprocess.run(
        [python(), "-m", "kldistill", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **WISH, **(env or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
