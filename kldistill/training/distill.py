"""Stage ``distill``: train the new rows and, if asked, a low-rank update of the body, on the chosen loss."""

from collections.abc import Mapping
from pathlib import Path

import torch

from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.runtime.devices import accelerator
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.encoding import encode
from kldistill.tokens.pieces import PieceTable
from kldistill.training import adapters, states
from kldistill.training.batches import Steps, schedule
from kldistill.training.config import DistillConfig
from kldistill.training.loop import train
from kldistill.training.objective import Objective, terms_of, validation


def build(cfg: DistillConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Train the rows of ``init`` and write them as ``rows.safetensors``; goes on from ``checkpoint.safetensors`` if
    there is one.

    Args:
        inputs: ``model``, ``tokens``, ``init`` and ``teacher``.
        out: gets ``rows.safetensors``, ``rows.json``, ``metrics.jsonl``, ``summary.json`` and, with ``cfg.lora``, the
            body's adapter (see ``kldistill.training.adapters``).
    """
    accelerate = accelerator(job.runtime, cfg.precision)
    device = accelerate.device
    pieces = PieceTable.load(inputs["tokens"])
    tokenizer = load_extended_tokenizer(inputs["tokens"])
    torch.manual_seed(cfg.seed)
    model = load_original(inputs["model"], device)
    learns = adapters.Training("rows" if cfg.lora is None else "lora", cfg.lora)
    student, adapter = adapters.unfreeze(model, Rows.load(inputs["init"]), pieces.old_size, learns)
    student.to(device)
    sets = {name: states.read(inputs["teacher"], name) for name in ("train", "validation")}
    new_ids = {name: encode(tokenizer, [s.text for s in found.snippets]) for name, found in sets.items()}
    order = schedule([len(row) for row in new_ids["train"]], cfg.batch_size, cfg.steps, cfg.seed)
    batches = Steps(
        sets["train"],
        new_ids["train"],
        pieces,
        order,
        chunk=job.runtime.chunk,
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
        chunk=job.runtime.chunk,
        device=device,
    )
    checkpoint = out / "checkpoint.safetensors"
    objective = Objective(student, terms_of(cfg.loss))
    figures = train(
        objective,
        batches,
        cfg,
        checkpoint,
        job,
        description=f"Distilling ({cfg.loss.name})",
        validate=validate,
        factor=lambda name: cfg.lora_lr / cfg.lr if ".lora_" in name else 1.0,
        seen=objective.seen if cfg.lazy_rows else None,
    )
    if not accelerate.is_main_process:
        return
    if adapter is None:
        student.rows.save(out)
    else:
        adapters.save(student, adapter, learns, out, model.dtype)
    summary = {f"distill/{name}": value for name, value in figures.items()}
    write_summary(out, summary)
    checkpoint.unlink(missing_ok=True)
