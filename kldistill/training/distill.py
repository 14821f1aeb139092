"""Stage ``distill``: train the new rows, and nothing else, on the chosen loss."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer

from kldistill.losses.weighted import Term
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from kldistill.runtime.components import find
from kldistill.runtime.devices import accelerator
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import encode
from kldistill.tokens.pieces import PieceTable
from kldistill.training import states
from kldistill.training.batches import Steps, schedule
from kldistill.training.config import DistillConfig, LossConfig
from kldistill.training.loop import train
from kldistill.training.objective import Objective, validation


def build(cfg: DistillConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Train the rows of ``init`` and write them as ``rows.safetensors``; goes on from ``checkpoint.safetensors`` if
    there is one.

    Args:
        inputs: ``model``, ``tokens``, ``init`` and ``teacher``.
        out: gets ``rows.safetensors``, ``rows.json``, ``metrics.jsonl``, ``summary.json``.
    """
    accelerate = accelerator(job.runtime, cfg.precision)
    device = accelerate.device
    pieces = PieceTable.load(inputs["tokens"])
    tokenizer = AutoTokenizer.from_pretrained(inputs["tokens"] / "tokenizer")
    torch.manual_seed(cfg.seed)
    student = Student(load_original(inputs["model"], device), Rows.load(inputs["init"]), pieces.old_size).to(device)
    sets = {name: states.read(inputs["teacher"], name) for name in ("train", "validation")}
    new_ids = {name: encode(tokenizer, [s.text for s in found.snippets]) for name, found in sets.items()}
    order = schedule([len(row) for row in new_ids["train"]], cfg.batch_size, cfg.steps, cfg.seed)
    batches = Steps(
        sets["train"],
        new_ids["train"],
        pieces,
        order,
        chunk=cfg.chunk,
        rank=accelerate.process_index,
        world=accelerate.num_processes,
    )

    validate = validation(
        student,
        sets["validation"],
        new_ids["validation"],
        pieces,
        teacher=cfg.teacher == "self" and pieces.exact,
        batch_size=2 * cfg.batch_size,
        chunk=cfg.chunk,
        device=device,
    )
    checkpoint = out / "checkpoint.safetensors"
    figures = train(
        Objective(student, terms_of(cfg.loss)),
        batches,
        cfg,
        checkpoint,
        job,
        description=f"Distilling ({cfg.loss.name})",
        validate=validate,
    )
    if not accelerate.is_main_process:
        return
    student.rows.save(out)
    summary = {f"distill/{name}": value for name, value in figures.items()}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)


def terms_of(loss: LossConfig) -> dict[str, Term]:
    """The loss's terms with their functions, as ``weighted`` wants them."""
    return {
        name: Term(find(term.function, "loss", f"loss.terms.{name}.function"), term.weight)
        for name, term in loss.terms.items()
    }
