"""torch.compile for training: the layers of the body, each by itself, as all are one function of different weights.

So one layer is compiled, in half a minute, and not the model. Norms, rotary positions and activations become one
loop each, there and back, in place of ten passes over memory (docs/performance.md says what that saves).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kldistill.rows.student import Student, layers_of
from kldistill.runtime.errors import ConfigError, TrainingError

BACKEND = "inductor"
CLOSE = 0.5  # of a gradient's norm: half precision stays below, and what is lost is off by all of it


def compile_layers(student: Student) -> None:
    """Let torch compile the layers of the student's body when they are first run, for texts of any length.

    Raises:
        ConfigError: the body has no layers that transformers marks as such.
    """
    layers = layers_of(student.body)
    if not layers:
        raise ConfigError(
            f"runtime.compile=true: {type(student.model).__name__} has no layers that can be told apart. Use "
            "runtime.compile=false."
        )
    how: dict[str, Any] = {"dynamic": True, "backend": BACKEND}
    for layer in layers:
        forward = layer.forward
        if isinstance(forward, partial):  # a layer that runs again on the way back: each time as compiled
            layer.forward = partial(forward.func, torch.compile(*forward.args, **how), **forward.keywords)
        else:
            layer.compile(**how)


def as_written() -> AbstractContextManager[object]:
    """Within it, nothing is compiled or runs compiled: what is done now and then is not worth half a minute."""
    return torch.compiler.set_stance("force_eager")


def check_gradient(module: nn.Module, backward: Callable[[], None], trainable: Mapping[str, nn.Parameter]) -> None:
    """See that compiled layers have the gradient that the layers have as they are written.

    A compiler that loses a gradient says nothing: the loss is the right one, and the training goes on without what it
    was to train. (torch 2.11 lost that of an adapter, see ``low_rank``.) Costs one step of each kind.

    Args:
        module: what is trained.
        backward: adds the gradient of one batch to the parameters; called twice.
        trainable: the parameters by name; their gradients are none afterwards.

    Raises:
        TrainingError: names ``runtime.compile``, the parameter and this torch.
    """
    gradients = list[dict[str, Tensor]]()
    for how in (as_written(), nullcontext()):
        with how:
            backward()
        gradients.append(
            {
                name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for name, parameter in trainable.items()
            }
        )
        for parameter in trainable.values():
            parameter.grad = None
    written, compiled = gradients
    lost = [name for name, gradient in written.items() if gradient.any() and not compiled[name].any()]
    if not _draws(module):
        lost += [name for name, of in written.items() if (compiled[name] - of).norm() > CLOSE * of.norm()]
    if lost:
        raise TrainingError(
            f"runtime.compile=true: the gradient of {lost[0]} is lost or another where the layers are compiled (torch "
            f"{torch.__version__}). Use runtime.compile=false, or another version of torch."
        )


def _draws(module: nn.Module) -> bool:
    """Whether random numbers are drawn on the way, which compiled code draws in another order."""
    kinds = ("p", "attention_dropout")  # of a dropout layer, of attention
    chances = [getattr(part, kind, 0) for part in module.modules() for kind in kinds]
    return any(isinstance(chance, float) and chance > 0 for chance in chances)
