"""One process of several that answer tasks together: `python answers_driver.py MODEL TASKS OUT SAMPLES`."""

import json
import sys
from pathlib import Path

from kldistill.evaluation import answer
from kldistill.evaluation.config import GenerateConfig
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.job import Job
from kldistill.runtime.processes import join

if __name__ == "__main__":
    model, tasks, out = map(Path, sys.argv[1:4])
    runtime = RuntimeConfig(device="cpu", threads=1, generation_batch=3)
    us = join(runtime)
    written = answer.written

    def noted(cfg, mine, *rest):  # type: ignore[no-untyped-def]
        """The same, with a note of which tasks this process was given."""
        (out.parent / f"given{us.rank}.json").write_text(json.dumps([task.id for task in mine]))
        return written(cfg, mine, *rest)

    answer.written = noted
    cfg = GenerateConfig("original", "some", n_samples=int(sys.argv[4]), temperature=0.7)
    answer.build(cfg, {"model": model, "tasks": tasks}, out, Job(runtime))
