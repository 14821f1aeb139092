"""The one training loop: AdamW, warm-up and decay, clipping, validation, checkpoints, exact resume; on accelerate.

It knows nothing of losses or vocabularies: a step is a module that turns a batch into a loss and some figures.
"""

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import get_scheduler

from kldistill.runtime.devices import accelerator
from kldistill.runtime.errors import ArtifactError, TrainingError
from kldistill.runtime.job import Job
from kldistill.runtime.progress import Bar
from kldistill.training.optimizer import LazyAdamW


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
    batches: Dataset[Any],
    settings: Settings,
    checkpoint: Path,
    job: Job,
    *,
    description: str,
    validate: Callable[[], Mapping[str, float]],
    factor: Callable[[str], float] = lambda name: 1.0,
    seen: Callable[[Any], Mapping[nn.Parameter, Tensor]] | None = None,
) -> dict[str, float]:
    """Train the parameters of ``step_of`` that ask for a gradient, and leave them as they were at the best validation.

    Args:
        step_of: maps a batch to (loss, figures); the loss in whatever unit, figures as scalar tensors.
        batches: item ``step`` is the batch of that step (of this process).
        checkpoint: a file; where it exists, training goes on from it. It is replaced at every checkpoint.
        validate: figures of the current parameters; called before the first step, every ``validate_every``, and at
            the end.
        factor: of the learning rate, by the name of a parameter in ``step_of``.
        seen: for a batch, a mask over the rows of those parameters of which only the rows that occur in the step (in
            any process) are updated (see ``LazyAdamW``). None: every row at every step.

    Returns:
        The figures of ``validate`` for the parameters that are left, ``best_step`` (the step they are of, with
        ``settings.best_by``; 0 where no step was better than the start, which is said),
        ``seconds`` (of all attempts, validation included), ``tokens_per_second`` (student tokens of this process,
        training alone), ``peak_memory_bytes`` (most that was held while this call trained: by the process, model
        included; on an accelerator, of its memory).

    Raises:
        TrainingError: the loss or its gradient is not finite.
    """
    accelerate = accelerator(job.runtime, settings.precision)
    forget_peak(accelerate.device)
    trainable = {name: parameter for name, parameter in step_of.named_parameters() if parameter.requires_grad}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        groups.setdefault(factor(name), []).append(parameter)
    lazy = optimizer = LazyAdamW(
        [{"params": parameters, "factor": of} for of, parameters in groups.items()],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=(settings.betas[0], settings.betas[1]),
    )
    warmup = max(1, round(settings.warmup * settings.steps)) if settings.warmup else 0
    schedule = get_scheduler(
        settings.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=settings.steps + 1
    )
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    # A function of the step alone: nothing of it needs storing. At step 0 a warm-up is 0, so 1 is the first.
    factor_of = schedule.lr_lambdas[0]
    best = Best(settings.best_by, trainable)
    state = _restore(checkpoint, trainable, optimizer, best, accelerate)
    module, optimizer = accelerate.prepare(step_of, optimizer)
    loader = DataLoader(batches, batch_size=None, sampler=range(int(state["step"]), settings.steps))
    job.rewind(int(state["step"]) or -1)
    latest: Mapping[str, float] = {}  # of the last validation, for the user's eyes
    if not state["step"]:
        latest = dict(validate())
        best.see(0, latest)
        job.log(latest, step=0)
    started = time.perf_counter() - state["seconds"]
    with Bar(description, total=settings.steps, unit="steps") as bar:
        bar.advance(int(state["step"]))
        for step, batch in enumerate(loader, start=int(state["step"]) + 1):
            begun = time.perf_counter()
            lr = settings.lr * factor_of(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["factor"]
            # What a step draws (dropout) depends on nothing but its number, so a resumed run draws the same.
            torch.manual_seed(settings.seed + 1_000_003 * step + accelerate.process_index)
            loss, figures = module(batch.to(accelerate.device))
            accelerate.backward(loss)
            norm = accelerate.clip_grad_norm_(list(trainable.values()), settings.clip)
            assert norm is not None
            # Before the step: what is not finite must reach neither the parameters nor a checkpoint. (With fp16 the
            # gradient may overflow now and then; accelerate's scaler then skips the step by itself.)
            shown = accelerate.reduce({"loss": loss.detach(), **figures}, "mean")  # of all processes
            assert isinstance(shown, dict)
            _check_finite(shown["loss"], "loss", step, settings.lr)
            if settings.precision != "fp16":
                _check_finite(norm, "gradient's norm", step, settings.lr)
            if seen is not None:
                for parameter, mask in seen(batch).items():
                    shared = accelerate.reduce(mask.to(accelerate.device, torch.float32), "sum")
                    assert isinstance(shared, Tensor)
                    lazy.seen[parameter] = shared > 0
            optimizer.step()
            optimizer.zero_grad()
            seconds = time.perf_counter() - begun
            state["step"], state["tokens"] = step, state["tokens"] + batch.n_tokens
            state["training_seconds"] += seconds
            job.log(
                {
                    **{name: value.item() for name, value in shown.items()},
                    "lr": lr,
                    "gradient_norm": float(norm),
                    "tokens_per_second": batch.n_tokens / seconds,
                },
                step=step,
            )
            bar.note(_note(float(shown["loss"]), lr, latest))
            bar.advance(1)
            if step % settings.validate_every == 0 or step == settings.steps:
                latest = dict(validate())
                best.see(step, latest)
                job.log(latest, step=step)
            state["seconds"] = time.perf_counter() - started
            if step % job.runtime.checkpoint_every == 0 or step == settings.steps:
                _store(checkpoint, trainable, optimizer, best, state, accelerate)
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


class Best:
    """The parameters at the best validation so far; without a figure to choose by, those at the last.

    Attributes:
        name: the figure that chooses, less is better, as ``validate`` calls it; None for none. Where ``validate`` does
            not give it (a KL without a teacher), its first figure chooses.
        step: the step of the parameters.
        figures: what validation said of them.
    """

    def __init__(self, by: str | None, parameters: Mapping[str, nn.Parameter]) -> None:
        self.name = None if by is None else f"validation_{by}"
        self.parameters = parameters
        self.step = 0
        self.figures: dict[str, float] = {}
        self.kept: dict[str, Tensor] = {}

    @property
    def chooses(self) -> bool:
        """Whether the best is kept, and not the last."""
        return self.name is not None

    def see(self, step: int, figures: Mapping[str, float]) -> None:
        """Take note of a validation of the parameters as they are now."""
        if self.name is not None and self.name not in figures:
            self.name = next(iter(figures))
        if self.name is not None and self.figures and figures[self.name] >= self.figures[self.name]:
            return
        self.step, self.figures = step, dict(figures)
        if self.name is not None:
            self.kept = {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the parameters the values they had at the best validation."""
        for name, value in self.kept.items():
            self.parameters[name].copy_(value)


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


def _check_finite(value: Tensor, name: str, step: int, lr: float) -> None:
    if not torch.isfinite(value):
        raise TrainingError(f"The {name} is {value.item()} at step {step}: lower the learning rate (lr, now {lr:g}).")


def _store(
    path: Path,
    trainable: Mapping[str, Tensor],
    optimizer: Any,
    best: Best,
    state: Mapping[str, float],
    accelerate: Accelerator,
) -> None:
    """Write parameters, those of the best validation, AdamW's moments and counters as one safetensors file; the old one
    stays until the new is whole.
    """
    if not accelerate.is_main_process:
        return
    tensors: dict[str, Tensor] = {f"best/{name}": value for name, value in best.kept.items()}
    for name, parameter in trainable.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).detach()
    temporary = path.with_suffix(".tmp")
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**state, "best": [best.name, best.step, best.figures]})
    save_file(contiguous, temporary, metadata={"state": text, "sha256": _checksum(text, contiguous)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _restore(
    path: Path, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, best: Best, accelerate: Accelerator
) -> dict[str, float]:
    """Counters of the checkpoint, its tensors put back in place; zeros where there is none.

    Raises:
        ArtifactError: the checkpoint is not what was written.
    """
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "training_seconds": 0.0}
    if not path.is_file():
        return state
    try:
        tensors, metadata = load_file(path), _metadata(path)
        whole = metadata["sha256"] == _checksum(metadata["state"], tensors)
    except (SafetensorError, KeyError, ValueError):
        whole, tensors, metadata = False, {}, {}
    if not whole:
        raise ArtifactError(
            f"{path}: this checkpoint is damaged (its checksum differs), so training does not go on from it. "
            f"force=[{path.parent.parent.name}] trains from the beginning."
        )
    state |= json.loads(metadata["state"])
    best.name, best.step, best.figures = state.pop("best")
    best.kept = {name.removeprefix("best/"): tensor for name, tensor in tensors.items() if name.startswith("best/")}
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            optimizer.state[parameter] = {
                key: _placed(tensors[f"{key}/{name}"], parameter) for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return state


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt", device="cpu") as file:
        return file.metadata() or {}


def _checksum(state: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a checkpoint's counters and tensors, names, types and shapes included."""
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _placed(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of the optimiser's state where it was: AdamW keeps its count of steps, one number, on the CPU."""
    return tensor if tensor.ndim == 0 else tensor.to(parameter.device)
