"""Memory that has come to its end, a device's or the machine's, told in a sentence with what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.devices import is_cpu, sizes
from kldistill.runtime.errors import KldistillError, MemoryShortageError, causes

# What to lower, by what a step's name begins with: keys of the group runtime, and what else helps.
WAYS = {
    "teacher": (("score_batch",), ""),
    "evaluate": (("score_batch", "chunk"), ""),
    "generate": (("generation_batch",), ""),
    "write": (("generation_batch",), ""),
    "distill": (("pass_tokens", "chunk"), "distill.gradient_checkpointing=true"),
    "finetune": (("pass_tokens", "chunk"), "finetune.gradient_checkpointing=true"),
    "control": (("pass_tokens", "chunk"), "finetune.gradient_checkpointing=true"),
}
_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that there is no memory left."""
    return any(
        isinstance(cause, MemoryError | torch.OutOfMemoryError)
        or (isinstance(cause, RuntimeError) and any(words in str(cause).lower() for words in _WORDS))
        for cause in causes(error)
    )


@contextmanager
def told(step: str, runtime: RuntimeConfig) -> Iterator[None]:
    """Turn the end of a memory within a step into one message that says what to lower, and what it is now.

    Raises:
        MemoryShortageError: in place of torch's or Python's own error; all others pass as they are.
    """
    try:
        yield
    except KldistillError:
        raise
    except Exception as error:
        if not is_shortage(error):
            raise
        keys, more = next((way for start, way in WAYS.items() if step.startswith(start)), ((), ""))
        now = sizes(runtime)
        advice = [f"lower runtime.{key} ({getattr(now, key):,} now)" for key in keys]
        advice += [f"set {more}"] if more else []
        advice += ["load the weights in model.dtype=bfloat16"] if not is_cpu(runtime) else []
        advice += ["end what else uses it"]
        message = f"{step}: {_where(runtime)} has no memory left. Any of these helps: {'; '.join(advice)}."
        raise MemoryShortageError(f"{message} The same command then goes on from what is finished.") from error


def _where(runtime: RuntimeConfig) -> str:
    """The device, with what of its memory is whose, as far as it tells."""
    if is_cpu(runtime):
        return "this machine"
    if not torch.cuda.is_available():
        return "the accelerator"
    numbers = (*torch.cuda.mem_get_info(), torch.cuda.memory_reserved())
    free, total, own = (number / 1e9 for number in numbers)
    return f"{torch.cuda.get_device_name()} ({free:.1f} of {total:.1f} GB free, {own:.1f} held by this process)"
