"""Stages in which all processes run one model, on small artifacts; as a program, in one of several processes that
share its layers: `python sharding_driver.py FOLDERS OUT RANK`.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import distributed
from torch.distributed.tensor import DTensor

from kldistill.evaluation.config import EvaluateConfig, ScoringConfig
from kldistill.evaluation.score import evaluate_original, evaluate_student
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.files import read_summary
from kldistill.runtime.job import Job
from kldistill.runtime.processes import join
from kldistill.training import distill, loop, teacher
from kldistill.training.config import DistillConfig, LoraConfig, TeacherConfig
from kldistill.training.loss_config import LossConfig, LossTerm

TERMS = {name: LossTerm({"_target_": f"kldistill.losses.{name}"}) for name in ("kl", "ce")}
SETTINGS: dict[str, Any] = {"steps": 4, "batch_size": 5, "snippet_bytes": 300, "validate_every": 2, "lr_unit": "one"}
# Of five snippets one process has three and the other two, which in passes of 150 tokens are other numbers of passes.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rows": ({}, {"pass_tokens": 150}),
    "lora": ({"lora": LoraConfig(r=4), "teacher": "online", "gradient_checkpointing": True}, {}),
}


def work(folders: dict[str, Path], out: Path, runtime: RuntimeConfig) -> dict[str, list[float]]:
    """What the teacher, the distillation and the scoring of text give, by stage, case and name."""
    scoring = ScoringConfig(domain_bytes=1500, general_bytes=800, window_bytes=300)
    found: dict[str, list[float]] = {}

    def log(case: str, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if "seconds" not in name and "per_second" not in name:
                found.setdefault(f"{case}/{name}", []).append(value)

    def wait() -> None:
        """Until every process is here, as after each step of a run: the main one writes what all go on to read."""
        if distributed.is_initialized():
            distributed.barrier()

    folders = {**folders, **{name: out / name for name in ("teacher", "evaluate_original")}}
    for name in ("teacher", "evaluate_original"):
        folders[name].mkdir(parents=True, exist_ok=True)
    teacher.build(TeacherConfig(300, 12, 2000), folders, folders["teacher"], Job(runtime, partial(log, "teacher")))
    wait()
    for case, (settings, how) in CASES.items():
        (out / case).mkdir(exist_ok=True)
        cfg = DistillConfig(**{**SETTINGS, **settings}, loss=LossConfig("some", terms=TERMS))
        distill.build(cfg, folders, out / case, Job(replace(runtime, **how), partial(log, case)))
        wait()
    evaluate_original(EvaluateConfig("original", scoring), folders, folders["evaluate_original"], Job(runtime))
    wait()
    log("original", read_summary(folders["evaluate_original"]))
    evaluated = out / "evaluated"
    evaluated.mkdir(exist_ok=True)
    evaluate_student(EvaluateConfig("distilled", scoring), {**folders, "rows": out / "lora"}, evaluated, Job(runtime))
    wait()
    log("distilled", read_summary(evaluated))
    return found


def main(folders: dict[str, Path], out: Path, rank: int) -> None:
    """The work, and how much of the body this process held in training."""
    held: list[float] = []
    spare = loop.spare

    def noted(module: Any) -> None:
        frozen = [parameter for parameter in module.student.body.parameters() if not parameter.requires_grad]
        parts = sum(each.to_local().numel() for each in frozen if isinstance(each, DTensor))
        held.append(parts / sum(each.numel() for each in frozen if isinstance(each, DTensor)))
        spare(module)

    loop.spare = noted
    runtime = RuntimeConfig(device="cpu", threads=1, shard=True)
    join(runtime)
    found = work(folders, out, runtime)
    (out / f"told{rank}.json").write_text(json.dumps({"found": found, "held": held}))


if __name__ == "__main__":
    main({name: Path(path) for name, path in json.loads(sys.argv[1]).items()}, Path(sys.argv[2]), int(sys.argv[3]))
