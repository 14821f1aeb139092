"""One of two processes that build artifacts as processes of one run. Called by test_processes.py.

Writes what became of each build in this process, as JSON, to the file that it is given.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from kldistill.runtime.artifacts import Store
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.devices import accelerator
from kldistill.runtime.errors import KldistillError
from kldistill.runtime.processes import Processes, join

told: list[dict[str, object]] = []


def attempt(processes: Processes, number: int, case: str, together: bool = False) -> None:
    """Build artifact ``number``; ``case`` says what happens meanwhile."""
    ran = False
    runtime = RuntimeConfig(device="cpu")

    def builder(partial: Path) -> None:
        nonlocal ran
        ran = True
        if case == "slow":
            time.sleep(0.3)
        if case == "main fails":
            raise OSError("the disk is full")
        if case == "together":
            total = accelerator(runtime, "no").reduce(torch.tensor(1 + processes.rank), "sum")
            (partial / f"sum_in_{processes.rank}_is_{int(total)}").touch()
        if case == "the other dies":
            if not processes.main:
                os._exit(3)
            distributed.barrier()
        (partial / f"made_by_{processes.rank}").touch()

    end: dict[str, object] = {"case": case}
    try:
        path = processes.build(store, "stage", f"{number:x}".ljust(16, "0"), builder, together=together, meta={})
        end["files"] = sorted(file.name for file in path.iterdir())
    except (KldistillError, OSError, RuntimeError) as error:
        end["error"] = f"{type(error).__name__}: {error}"
    told.append({**end, "ran": ran})
    Path(sys.argv[2]).write_text(json.dumps(told))


if __name__ == "__main__":
    store = Store(Path(sys.argv[1]))
    us = join(RuntimeConfig(device="cpu", threads=1))
    attempt(us, 1, "slow")
    attempt(us, 1, "found")
    attempt(us, 2, "together", together=True)
    attempt(us, 3, "main fails")
    attempt(us, 4 + us.rank, "different inputs")
    attempt(us, 6, "all is well again")
    attempt(us, 7, "the other dies", together=True)
