"""Where tensors live: accelerate's choice, or the user's. Only the CPU is tested; the rest is accelerate's promise."""

import torch
from accelerate import Accelerator

from kldistill.config import RuntimeConfig
from kldistill.errors import ConfigError


def device_of(runtime: RuntimeConfig) -> torch.device:
    """The device that ``runtime.device`` names; ``auto`` takes what accelerate finds.

    Raises:
        ConfigError: the device does not exist here.
    """
    return accelerator(runtime, "no").device


def accelerator(runtime: RuntimeConfig, precision: str) -> Accelerator:
    """An ``Accelerator`` for this process (accelerate keeps the device for the life of the process)."""
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    wanted = runtime.device
    try:
        made = Accelerator(cpu=wanted == "cpu", mixed_precision=None if precision == "no" else precision)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"precision={precision}, runtime.device={wanted}: {error}") from error
    if wanted not in ("auto", made.device.type):
        raise ConfigError(f"runtime.device={wanted!r}: accelerate gives {made.device.type!r} on this machine.")
    return made
