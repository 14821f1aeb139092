"""Programs in several processes, as a launcher starts them.

No port is chosen before it is used, which another process could take meanwhile: whoever is asked at it holds it.
"""

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import TCPStore

from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE
from tests.helpers.unpainted import WISH


@contextmanager
def taken_port() -> Iterator[int]:
    """A port at which this process listens.

    ``accelerate launch`` that is given a taken port lets torch bind one instead; given port 0 it would look for a free
    one and use it later.
    """
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This process's, with this checkout's modules to import. Pictures are blank."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **WISH, **more}


def together(command: Sequence[str | Path], *of_rank: Sequence[str | Path], world: int = 2) -> list[tuple[str, int]]:
    """Run a program in processes that find each other: what each wrote to standard error, and its exit code.

    Args:
        of_rank: further arguments of each process.
    """
    # As torchrun does: the launcher serves the store where processes meet, at a port that the system gave it.
    store, running = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), []
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        whole = [*command, *(of_rank[rank] if of_rank else ())]
        running.append(subprocess.Popen(whole, env=environment(**meet, **place), stderr=subprocess.PIPE, text=True))
    return [(process.communicate(timeout=PATIENCE)[1], process.returncode) for process in running]
