"""Programs in several processes, as a launcher starts them."""

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This process's, with this checkout's modules to import."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def together(command: Sequence[str | Path], *of_rank: Sequence[str | Path], world: int = 2) -> list[tuple[str, int]]:
    """Run a program in processes that find each other: what each wrote to standard error, and its exit code.

    Args:
        of_rank: further arguments of each process.
    """
    port, running = str(free_port()), []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        env = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **place)
        whole = [*command, *(of_rank[rank] if of_rank else ())]
        running.append(subprocess.Popen(whole, env=env, stderr=subprocess.PIPE, text=True))
    return [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in running]
