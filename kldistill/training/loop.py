"""The one training loop: AdamW, warm-up and decay, clipping, validation, checkpoints, exact resume; on accelerate.

It knows nothing of losses or vocabularies: a step is a module that turns a batch into a loss and some figures.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import get_scheduler

from kldistill.rows.sharding import spare
from kldistill.runtime.devices import accelerator
from kldistill.runtime.errors import TrainingError
from kldistill.runtime.job import Job
from kldistill.runtime.progress import Bar
from kldistill.training.checkpoint import Best, restore, store
from kldistill.training.compiled import check_gradient
from kldistill.training.optimizer import LazyAdamW
from kldistill.training.shared_map import SharedMap


class Settings(Protocol):
    """What the loop reads of a stage's configuration (see ``DistillConfig``)."""

    steps: int
    lr: float
    warmup: float
    schedule: str
    weight_decay: float
    betas: list[float]
    clip: float
    precision: str
    validate_every: int
    seed: int
    best_by: str | None


class Sized(Protocol):
    """A batch: knows its tokens, and moves to a device."""

    n_tokens: int

    def to(self, device: Any) -> Any: ...


def train(
    step_of: nn.Module,
    batches: Dataset[Sequence[Any]],
    settings: Settings,
    checkpoint: Path,
    job: Job,
    *,
    description: str,
    validate: Callable[[], Mapping[str, float]],
    factor: Callable[[str], float] = lambda name: 1.0,
    seen: Callable[[Any], Mapping[nn.Parameter, Tensor]] | None = None,
    shared: Mapping[nn.Parameter, SharedMap] | None = None,
) -> dict[str, float]:
    """Train the parameters of ``step_of`` that ask for a gradient, and leave them as they were at the best validation.

    Args:
        step_of: maps a batch to (loss, figures); the loss in whatever unit, figures as scalar tensors. Both add up over
            the batches of a step.
        batches: item ``step`` holds the batches of that step (of this process), which run one after the other; their
            gradients add up.
        checkpoint: a file; where it exists, training goes on from it. It is replaced at every checkpoint.
        validate: figures of the current parameters; called before the first step, every ``validate_every``, and at
            the end.
        factor: of the learning rate, by the name of a parameter in ``step_of``.
        seen: for a batch, a mask over the rows of those parameters of which only the rows that occur in the step (in
            any process) are updated (see ``LazyAdamW``). None: every row at every step.
        shared: the map that the rows of a parameter learn together, as it is before the first step.

    Returns:
        The figures of ``validate`` for the parameters that are left, ``best_step`` (the step they are of, with
        ``settings.best_by``; 0 where no step was better than the start, which is said),
        ``seconds`` (of all attempts, validation included), ``tokens_per_second`` (student tokens of this process,
        training alone), ``peak_memory_bytes`` (most that was held while this call trained: by the process, model
        included; on an accelerator, of its memory).

    Raises:
        TrainingError: the loss or its gradient is not finite, or compiled layers have another gradient.
    """
    accelerate = accelerator(job.runtime, settings.precision)
    forget_peak(accelerate.device)
    trainable = {name: parameter for name, parameter in step_of.named_parameters() if parameter.requires_grad}
    if not trainable:
        job.say(f"{description}: there is nothing to train.")
        return dict(validate())
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        groups.setdefault(factor(name), []).append(parameter)
    lazy = optimizer = LazyAdamW(
        [{"params": parameters, "factor": of} for of, parameters in groups.items()],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=(settings.betas[0], settings.betas[1]),
        shared=shared,
    )
    warmup = max(1, round(settings.warmup * settings.steps)) if settings.warmup else 0
    schedule = get_scheduler(
        settings.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=settings.steps + 1
    )
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    # A function of the step alone: nothing of it needs storing. At step 0 a warm-up is 0, so 1 is the first.
    factor_of = schedule.lr_lambdas[0]
    best = Best(settings.best_by, trainable)
    state = restore(checkpoint, trainable, optimizer, best, accelerate)
    spare(step_of)
    module, optimizer = accelerate.prepare(step_of, optimizer)
    todo, workers = range(int(state["step"]), settings.steps), job.runtime.loader_workers
    loader = DataLoader(batches, batch_size=None, sampler=todo, num_workers=workers)
    job.rewind(int(state["step"]) or -1)
    if state["step"]:
        job.say(f"{description} goes on after step {int(state['step']):,} of {settings.steps:,}.")
    latest: Mapping[str, float] = {}  # of the last validation, for the user's eyes
    if not state["step"]:
        latest = dict(validate())
        best.see(0, latest)
        job.log(latest, step=0)
    started = time.perf_counter() - state["seconds"]
    with Bar(description, total=settings.steps, unit="steps") as bar:
        bar.advance(int(state["step"]))
        for step, passes in enumerate(loader, start=int(state["step"]) + 1):
            begun = time.perf_counter()
            lr = settings.lr * factor_of(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["factor"]
            # What a step draws (dropout) depends on nothing but its number, so a resumed run draws the same.
            seed = settings.seed + 1_000_003 * step + accelerate.process_index
            torch.manual_seed(seed)
            if job.runtime.compile and step == todo.start + 1:
                check_gradient(module, partial(_backward, accelerate, step_of, passes[0]), trainable)
                torch.manual_seed(seed)
            sums = dict[str, Tensor]()
            for batch in passes:
                # Processes wait for each other once a step, in its last pass.
                with accelerate.no_sync(module) if batch is not passes[-1] else nullcontext():
                    loss, figures = module(batch.to(accelerate.device))
                    accelerate.backward(loss)
                for name, value in {"loss": loss.detach(), **figures}.items():
                    sums[name] = sums[name] + value if name in sums else value
            norm = accelerate.clip_grad_norm_(list(trainable.values()), settings.clip)
            assert norm is not None
            # Before the step: what is not finite must reach neither the parameters nor a checkpoint.
            of_all = accelerate.reduce(sums, "mean")  # of all processes
            assert isinstance(of_all, dict)
            names = [*of_all, "gradient_norm"]
            # All in one, as an accelerator is waited for.
            numbers = torch.stack([value.float() for value in (*of_all.values(), norm)]).tolist()
            shown = dict(zip(names, numbers, strict=True))
            _check_finite(shown["loss"], "loss", step, settings.lr)
            _check_finite(shown["gradient_norm"], "gradient's norm", step, settings.lr)
            if seen is not None:
                shown_rows = [seen(batch) for batch in passes]
                for parameter in shown_rows[0]:
                    mask = torch.stack([rows[parameter] for rows in shown_rows]).any(0)
                    shared = accelerate.reduce(mask.to(accelerate.device, torch.float32), "sum")
                    assert isinstance(shared, Tensor)
                    lazy.seen[parameter] = shared > 0
            optimizer.step()
            optimizer.zero_grad()
            seconds = time.perf_counter() - begun
            n_tokens = sum(batch.n_tokens for batch in passes)
            state["step"], state["tokens"] = step, state["tokens"] + n_tokens
            state["training_seconds"] += seconds
            job.log(
                {
                    **shown,
                    "lr": lr,
                    "tokens_per_second": n_tokens / seconds,
                },
                step=step,
            )
            bar.note(_note(shown["loss"], lr, latest))
            bar.advance(1)
            if step % settings.validate_every == 0 or step == settings.steps:
                latest = dict(validate())
                best.see(step, latest)
                job.log(latest, step=step)
            state["seconds"] = time.perf_counter() - started
            if step % job.runtime.checkpoint_every == 0 or step == settings.steps:
                store(checkpoint, trainable, optimizer, best, state, accelerate)
    best.put_back()
    if best.chooses and best.step == 0:
        job.say(
            f"Warning: {description}: at no step was {best.name} on validation text better than at the start, so the "
            "start is what is kept. Lower the rate, or train longer or on more text."
        )
    return {
        **best.figures,
        **({"best_step": float(best.step)} if best.chooses else {}),
        "seconds": state["seconds"],
        "tokens_per_second": state["tokens"] / max(state["training_seconds"], 1e-9),
        "peak_memory_bytes": peak_memory(accelerate.device),
    }


def _backward(accelerate: Accelerator, step_of: nn.Module, batch: Any) -> None:
    """Add the gradient of one batch of this process to the parameters."""
    with accelerate.autocast():
        loss, _ = step_of(batch.to(accelerate.device))
    loss.backward()


def _note(loss: float, lr: float, validation: Mapping[str, float]) -> str:
    """What stands beside the bar: loss and rate of the last step, and the first figure of the last validation, which
    is bits/byte.
    """
    text = f"loss {loss:.3f} lr {lr:.1e}"
    return f"{text} val {next(iter(validation.values())):.3f}" if validation else text


def forget_peak(device: torch.device) -> None:
    """Let ``peak_memory`` count from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # see proc(5)


def peak_memory(device: torch.device) -> float:
    """Most bytes held since ``forget_peak``: by this process (resident), or by tensors on the accelerator.

    Where the system cannot forget (it is not Linux), the most that the process has ever held.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _check_finite(value: float, name: str, step: int, lr: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(f"The {name} is {value} at step {step}: lower the learning rate (lr, now {lr:g}).")
