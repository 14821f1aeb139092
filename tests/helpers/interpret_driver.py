"""One of several processes that run the stage ``interpret`` together: `python interpret_driver.py FOLDERS OUT RANK`.

They run it twice: as it is into OUT/whole, and with a model that refuses its attention in the last process alone into
OUT/refused. OUT/seenRANK.json has the number of texts that this process's original model read in the first of them.
"""

import json
import sys
from pathlib import Path

from torch import distributed

from kldistill.interpret import attention
from kldistill.interpret.models import Models
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ModelError
from kldistill.runtime.job import Job
from kldistill.runtime.processes import join
from tests.helpers.interpreted import SHARED, run

if __name__ == "__main__":
    folders, out, rank = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    runtime = RuntimeConfig(device="cpu", threads=1)
    us = join(runtime)
    read, run_model, maps, seen = {name: Path(path) for name, path in folders.items()}, Models.run, attention.maps, [0]

    def counted(self, name, ids):  # type: ignore[no-untyped-def]
        seen[0] += name == "original"
        return run_model(self, name, ids)

    def refused(student, ids):  # type: ignore[no-untyped-def]
        if us.rank == us.world - 1:
            raise ModelError("no attention here")
        return maps(student, ids)

    Models.run = counted  # type: ignore[method-assign]
    run(read, out / "whole", Job(runtime), **SHARED)
    (out / f"seen{rank}.json").write_text(json.dumps(seen[0]))
    distributed.barrier()
    attention.maps = refused
    run(read, out / "refused", Job(runtime), **SHARED)
