"""Stage ``distill``: train the new rows and, if asked, a low-rank update of the body, on the chosen loss."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import broadcast
from jaxtyping import Float
from torch import Tensor

from kldistill.losses.sampled import Sampling
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.sharding import home, place
from kldistill.runtime.devices import accelerator, sizes
from kldistill.runtime.files import write_summary, write_text
from kldistill.runtime.job import Job
from kldistill.runtime.shares import Share
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.pieces import PieceTable
from kldistill.training import adapters, texts
from kldistill.training.batches import Steps, schedule
from kldistill.training.compiled import compile_layers
from kldistill.training.config import DistillConfig
from kldistill.training.cuts import TwoCuts
from kldistill.training.loop import train
from kldistill.training.objective import Objective, any_masked, held_out, needs_teacher, terms_of, unit_of, validation
from kldistill.training.sampled import sampling
from kldistill.training.shared_map import shared_maps
from kldistill.training.solve import Readout, solve, tied_rows


def build(cfg: DistillConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Train the rows of ``init`` and write them as ``rows.safetensors``; goes on from ``checkpoint.safetensors`` if
    there is one.

    Args:
        inputs: ``model``, ``tokens``, ``init`` and ``teacher``.
        out: gets ``rows.safetensors``, ``rows.json``, ``metrics.jsonl``, ``summary.json`` and, where ``cfg.lora`` has a
            rank, the body's adapter (see ``kldistill.training.adapters``).
    """
    accelerate, size = accelerator(job.runtime, cfg.precision), sizes(job.runtime)
    device, share = accelerate.device, Share.of(accelerate, job.runtime)
    pieces = PieceTable.load(inputs["tokens"])
    tokenizer = load_extended_tokenizer(inputs["tokens"])
    torch.manual_seed(cfg.seed)
    model = load_original(inputs["model"], home(device, share))
    learns = adapters.Training("lora" if cfg.lora.r else "rows", cfg.lora, checkpointing=cfg.gradient_checkpointing)
    rows = Rows.load(inputs["init"])
    if cfg.solve.iterations and rows.output is None and not cfg.solve.tie:
        rows = Rows(rows.input, rows.input, rows.made_by)  # a tied model: from here on two rows a token
    student, adapter = adapters.unfreeze(model, rows, pieces.old_size, learns)
    place(student, device, share)
    if job.runtime.compile:
        compile_layers(student)
    unit = unit_of(student, cfg.lr_unit)
    cuts = TwoCuts.read(inputs["teacher"], "train", tokenizer, pieces)
    sets = held_out(inputs["teacher"], tokenizer, pieces)
    more = "More text, or smaller snippets (distill.snippet_bytes), give more; fewer steps train on each less often."
    passes = texts.passes(cfg, "distill", len(cuts), more, job.say)
    order = schedule(cuts.lengths, cfg.batch_size, cfg.steps, cfg.seed)
    terms = terms_of(cfg.loss)
    objective = Objective(student, terms, nullcontext if adapter is None else adapter.disable_adapter)
    hidden = None if cuts.states.values is None else cuts.states.hidden
    if cfg.teacher == "online":
        hidden = partial(online_states, objective, cuts, device)
    columns = cfg.sampled_softmax
    if columns and (whole := sorted(name for name, term in terms.items() if not term.sampled)):
        job.say(f"Softmaxes go over all tokens, as @loss(sampled=True) is not said of {', '.join(whole)}.")
        columns = None
    part = sampling(student, cuts, hidden, columns, cfg.seed)
    batches = Steps(
        cuts,
        order,
        chunk=size.chunk,
        budget=size.pass_tokens,
        online=cfg.teacher == "online" and needs_teacher(terms),
        sampling=part,
        share=share,
    )
    validate = validation(
        student,
        sets,
        batch_size=2 * cfg.batch_size,
        chunk=size.chunk,
        device=device,
        share=share,
        masked=any_masked(terms),
    )
    checkpoint = out / "checkpoint.safetensors"
    solved: dict[str, float] = {}
    told, start = out / "solve.json", out / "start"
    if cfg.solve.iterations and len(rows.input):
        if checkpoint.is_file():  # of an attempt that was stopped; where the rows began is what the shared map is of
            solved = json.loads(told.read_text())
            student.rows.load_state_dict(Rows.load(start).state_dict())
        else:
            solved = _solve(cfg, objective, cuts, sets["validation"], hidden, part, job)
            # Sums on an accelerator come in no fixed order: all processes begin from the rows of the first.
            broadcast(student.rows.head.data)
            if share.main:
                start.mkdir(exist_ok=True)
                student.rows.save(start)
                write_text(told, json.dumps(solved, indent=2) + "\n")
        for side in ("output",) if rows.output is not None else ("input", "output"):
            rows.made_by[side] = f"{rows.made_by.get(side, '')}, solved".lstrip(", ")
    figures = train(
        objective,
        batches,
        cfg,
        checkpoint,
        job,
        description=f"Distilling ({cfg.loss.name})",
        validate=validate,
        factor=lambda name: _rate(name, cfg, unit) / cfg.lr,
        seen=objective.seen if cfg.lazy_rows else None,
        shared=shared_maps(student, pieces.pieces, cfg.shared_lr / cfg.lr) if cfg.shared_lr else None,
    )
    if not share.main:
        return
    if adapter is None:
        student.rows.save(out)
    else:
        adapters.save(student, adapter, learns, out, model.dtype)
    summary = {**solved, **figures, "passes": passes}
    write_summary(out, {f"distill/{name}": value for name, value in summary.items()})
    checkpoint.unlink(missing_ok=True)
    shutil.rmtree(start, ignore_errors=True)


def _solve(
    cfg: DistillConfig,
    objective: Objective,
    cuts: TwoCuts,
    held_out: TwoCuts,
    hidden: Callable[[int], Tensor] | None,
    part: Sampling | None,
    job: Job,
) -> dict[str, float]:
    """Solve the student's output rows in place; figures of it. The texts' reduced logits are let go of at the end."""
    student, rows = objective.student, objective.student.rows
    train_on = Readout(student, cuts, hidden, most=cfg.solve.snippets, sampling=part)
    judge = Readout(student, held_out)
    output_ND, figures = solve(train_on, judge, rows.head.detach(), objective.terms, cfg.solve, job.say)
    rows.head.data.copy_(output_ND if rows.output is not None else tied_rows(student, cuts.pieces, output_ND))
    return figures


def online_states(objective: Objective, cuts: TwoCuts, device: torch.device, index: int) -> Float[Tensor, "U D"]:
    """The teacher's states of one training text, where none are stored."""
    return objective.teacher(torch.tensor([cuts.states.ids[index]], device=device))[0]


def _rate(name: str, cfg: DistillConfig, unit: float) -> float:
    """The learning rate of a parameter of the objective, as the optimiser has it."""
    if ".lora_" in name:
        return cfg.lora_lr
    if name.endswith(".rows.output") and cfg.output_lr is not None:
        return cfg.output_lr * unit
    return cfg.lr * unit
