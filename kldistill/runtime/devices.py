"""Where tensors live: accelerate's choice, or the user's. Only the CPU is tested; the rest is accelerate's promise."""

from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ConfigError

PATIENCE = timedelta(days=2)  # with a process that is still at work: shares of generation differ by hours, not minutes


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
