"""What a training step leaves on disk, so that a stopped run goes on bit for bit, and the best parameters so far."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kldistill.runtime.errors import ArtifactError


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
            if self.figures:
                return  # this once it was no number, by which nothing is better than before
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


def store(
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


def restore(
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
    kept: dict[str, dict[str, Tensor]] = {}  # by parameter: itself, and what the optimiser has of it
    for path_in_file, tensor in tensors.items():
        key, name = path_in_file.split("/", 1)
        if key != "best":
            kept.setdefault(name, {})[key] = tensor
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(kept[name].pop("parameter"))
            optimizer.state[parameter] = {key: _placed(tensor, parameter) for key, tensor in kept[name].items()}
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
