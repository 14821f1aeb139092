"""torch.compile for training: the layers of the body, each by itself, as all are one function of different weights.

So one layer is compiled, in half a minute, and not the model. Norms, rotary positions and activations become one
loop each, there and back, in place of ten passes over memory (docs/performance.md says what that saves).
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from kldistill.rows.student import Student, layers_of
from kldistill.runtime.errors import ConfigError

BACKEND = "inductor"


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
