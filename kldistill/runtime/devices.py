"""Where tensors live: accelerate's choice, or the user's. Tested on a CPU always, on one GPU now and then."""

from datetime import timedelta
from typing import NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ConfigError

PATIENCE = timedelta(days=2)  # with a process that is still at work: shares of generation differ by hours, not minutes


class Sizes(NamedTuple):
    """How much is done at a time.

    Attributes:
        chunk, score_batch, generation_batch, pass_tokens: as in ``RuntimeConfig``, whose values go before these.
        solve_positions: student positions of a part, about, when output rows are solved.
        idle_tokens: what a pass of generation costs beside its tokens, in tokens.
        attention_rows: rows that write whose tokens meet what is before them in one product. They are padded to the
            longest of them.
        attention_cells: the same for rows whose prompts are run: rows times tokens times columns, at most. 0 for each
            by itself.
        prompt_tokens: tokens of prompts in one pass of generation.
        guessed_tokens: rows times tokens of a guess, at most: attention pads to that.
        cells: rows times columns of the cache of generation, at most, unless one prompt alone is more. On a CUDA device
            never more than a third of its free memory holds.
    """

    chunk: int
    score_batch: int
    generation_batch: int
    pass_tokens: int
    solve_positions: int
    idle_tokens: int
    attention_rows: int
    attention_cells: int
    prompt_tokens: int
    guessed_tokens: int
    cells: int


# A CPU's products are as fast in passes of 512 tokens as in longer ones (docs/performance.md), and what its layers keep
# for the way back is little beside the model then: on SmolLM2 1.2 MB a token. Solving on it, one text of 160 positions
# a part takes 1.4 times as long a pass as parts of 1,024, parts of 4,096 take 1.5 times as long. On one core
# SmolLM2-135M takes 66, 132, 185 and 400 ms for 1, 8, 16 and 64 tokens of generation, so that a pass costs 8 beside its
# own.
ON_CPU = Sizes(
    chunk=128,
    score_batch=4,
    generation_batch=64,
    pass_tokens=512,
    solve_positions=1024,
    idle_tokens=8,
    attention_rows=16,
    attention_cells=0,
    prompt_tokens=256,
    guessed_tokens=256,
    cells=2**15,
)
# An accelerator waits for its next kernel unless each does much, so padding costs less there than another product. What
# a pass costs beside its tokens is a guess.
ON_ACCELERATOR = Sizes(
    chunk=1024,
    score_batch=32,
    generation_batch=256,
    pass_tokens=8192,
    solve_positions=8192,
    idle_tokens=400,
    attention_rows=256,
    attention_cells=2**22,
    prompt_tokens=8192,
    guessed_tokens=1024,
    cells=2**17,
)


def suited(device: torch.device | str) -> Sizes:
    """What suits a device, whatever the configuration says."""
    return ON_CPU if torch.device(device).type == "cpu" else ON_ACCELERATOR


def sizes(runtime: RuntimeConfig) -> Sizes:
    """What the configuration says, and what suits the device where it says null, or nothing."""
    of_device = ON_CPU if is_cpu(runtime) else ON_ACCELERATOR
    said = {name: getattr(runtime, name, None) for name in Sizes._fields}
    return of_device._replace(**{name: value for name, value in said.items() if value is not None})


def check_device(runtime: RuntimeConfig) -> None:
    """Refuse a device that this machine does not have, without taking it.

    Raises:
        ConfigError: names ``runtime.device``.
    """
    wanted = runtime.device
    if wanted in ("auto", "cpu"):
        return
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"runtime.device={wanted!r}: is no device of torch; take auto, cpu, cuda or mps.") from None
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or device.type != here.type:
        has = "has no accelerator" if here is None else f"has {here.type}"
        raise ConfigError(f"runtime.device={wanted!r}: this machine {has}; take auto, cpu or what it has.")
    if device.index is not None:
        raise ConfigError(
            f"runtime.device={wanted!r}: name no number; choose it from outside, with "
            f"CUDA_VISIBLE_DEVICES={device.index}, and take runtime.device={device.type}."
        )


def device_of(runtime: RuntimeConfig) -> torch.device:
    """The device that ``runtime.device`` names; ``auto`` takes what accelerate finds.

    Raises:
        ConfigError: the device does not exist here.
    """
    device = process_state(runtime).device
    assert device is not None
    return device


def check_compiler() -> None:
    """Refuse ``runtime.compile`` where torch finds no C++ compiler: it looks for the one that ``CXX`` named when torch
    was imported, else for g++ (on macOS clang++), and for no other.

    Raises:
        ConfigError: names ``runtime.compile`` and the compiler that torch looks for.
    """
    from torch._inductor import config  # takes seconds, and only who compiles needs it
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"runtime.compile=true: torch needs a C++ compiler, and finds no {config.cpp.cxx[-1]} that works here. "
            "Install one (apt install g++), name another with the environment variable CXX (CXX=clang++), or use "
            "runtime.compile=false."
        ) from error


def is_cpu(runtime: RuntimeConfig) -> bool:
    """Whether ``runtime.device`` means the CPU on this machine; no device is taken to know it."""
    return runtime.device == "cpu" or (runtime.device == "auto" and not torch.accelerator.is_available())


def process_state(runtime: RuntimeConfig) -> PartialState:
    """This process's device, its rank, and how many processes there are; joins them at the first call.

    Raises:
        ConfigError: the device does not exist here, or the processes cannot be joined.
    """
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    if not is_cpu(runtime):
        torch.set_float32_matmul_precision(runtime.matmul_precision)
    wanted = runtime.device
    try:
        # Without an accelerator, accelerate joins several processes only if it is told that they are for the CPU.
        made = PartialState(cpu=is_cpu(runtime), timeout=PATIENCE)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"runtime.device={wanted}: {error}") from error
    assert made.device is not None
    if wanted not in ("auto", made.device.type):
        raise ConfigError(f"runtime.device={wanted!r}: accelerate gives {made.device.type!r} on this machine.")
    return made


def accelerator(runtime: RuntimeConfig, precision: str) -> Accelerator:
    """An ``Accelerator`` for this process (accelerate keeps the device for the life of the process).

    Raises:
        ConfigError: the device does not exist here, or cannot compute in this precision.
    """
    device = device_of(runtime)
    # accelerate keeps the first precision for the life of the process, but each stage has its own.
    AcceleratorState._reset_state()
    try:
        return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"precision={precision}, runtime.device={runtime.device}: {error}") from error
