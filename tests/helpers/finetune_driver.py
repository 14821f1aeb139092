"""Runs the stage ``finetune`` in processes that are killed at chosen moments. Called by test_finetune_resume.py.

See resume_driver.py, of which this is the small sister: a script of its own, as only a process that has never trained
anything may be forked. Reads its work from the first file it is given, writes exit codes to the second.
"""

import json
import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - loaded once, before the forks
import torch

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.job import Job
from kldistill.training import finetune
from kldistill.training.config import LoraConfig
from kldistill.training.finetune_config import FinetuneConfig
from kldistill.training.load import load_student
from kldistill.training.loss_config import LossConfig, LossTerm
from tests.helpers.forks import ended, forked
from tests.helpers.resume_driver import kill_at


def attempt(folders: dict[str, Path], job: dict[str, Any]) -> int:
    """Build once in a child process; its exit code, or minus the signal that killed it."""

    def work() -> None:
        if job["kill"] is not None:
            kill_at(**job["kill"])
        loss = LossConfig("ce", terms={"ce": LossTerm({"_target_": "kldistill.losses.ce"})})
        cfg = FinetuneConfig(**{**job["settings"], "lora": LoraConfig(r=2, dropout=0.3), "loss": loss})
        runtime = RuntimeConfig(device="cpu", checkpoint_every=2)
        finetune.build(cfg, folders, Path(job["out"]), Job(runtime))

    return ended(forked(work))


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = json.loads(Path(sys.argv[1]).read_text())
    inputs = {name: Path(folder) for name, folder in work["folders"].items()}
    load_student(inputs["model"], inputs["rows"])  # what is slow the first time is done before the forks
    Path(sys.argv[2]).write_text(json.dumps([attempt(inputs, job) for job in work["jobs"]]))
