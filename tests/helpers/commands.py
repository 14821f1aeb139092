"""``kldistill`` commands as a user gives them, without waiting for its imports each time."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.helpers.paths import HELPERS, ROOT


@cache
def _server() -> "subprocess.Popen[str]":
    """One for this process; it ends with it, as its standard input does."""
    started = subprocess.Popen(
        [sys.executable, HELPERS / "command_server.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


def kldistill(*arguments: str, folder: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder``, in a fork of a process that has the packages loaded."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        job: dict[str, Any] = {"arguments": arguments, "folder": str(folder), "environment": environment}
        server.stdin.write(json.dumps({**job, "out": str(out), "err": str(err)}) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(["kldistill", *arguments], code, out.read_text(), err.read_text())
