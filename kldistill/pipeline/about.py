"""What a run was run with: the program, its packages, the machine. It goes into ``run.json`` as ``about``."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from kldistill import __version__
from kldistill.pipeline.compose import Config
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.files import read_summary

_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "safetensors", "numpy")


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def program() -> dict[str, str | None]:
    """``version`` and ``commit`` of kldistill."""
    return {"version": __version__, "commit": _commit()}


@cache
def packages() -> Mapping[str, str]:
    """Versions by name of the packages that decide a result. To tell one takes reading all that it says of itself."""
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def about(cfg: Config) -> dict[str, Any]:
    """What is known when a run starts. ``host`` is the kind of the machine, not its name.

    Keys: ``model`` (its name in the configuration), ``seed``, ``kldistill`` (see ``program``), ``packages`` (versions
    by name), ``python``, ``device`` (``kind`` as torch calls it, ``name`` of the hardware), ``threads`` (of torch, in
    a process), ``processes``, ``host`` (``system``, ``machine``, ``cores``, ``memory_bytes``), ``started`` (see
    ``now``).
    """
    import torch  # slow to load: not for those who only read a record

    return {
        "model": str(getattr(cfg.model, "name", None) or getattr(cfg.model, "path", "")),
        "seed": cfg.seed,
        "kldistill": program(),
        "packages": dict(packages()),
        "python": platform.python_version(),
        "device": _device(cfg),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE") or 1),
        "host": {
            "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "started": now(),
    }


def of_artifacts(artifacts: Mapping[str, Path]) -> dict[str, Any]:
    """What the artifacts tell of the ``model``, of the ``tokenizer`` and of the ``first_token`` that begins every text;
    empty as long as they are not there.
    """
    facts_told: dict[str, Any] = {}
    if "model" in artifacts and (path := artifacts["model"] / "model.json").is_file():
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.get("name"):
            facts_told["model"] = facts["name"]
    if "tokens" in artifacts:
        sizes = read_summary(artifacts["tokens"])
        if {"tokens/old_size", "tokens/new_size"} <= set(sizes):
            facts_told["tokenizer"] = {
                "old_size": int(sizes["tokens/old_size"]),
                "new_size": int(sizes["tokens/new_size"]),
                "artifact": artifacts["tokens"].name,
            }
        settings = artifacts["tokens"] / "tokenizer" / "tokenizer_config.json"
        if settings.is_file():
            roles = json.loads(settings.read_text(encoding="utf-8"))
            facts_told["first_token"] = roles.get("bos_token") or roles.get("eos_token")
    return facts_told


def _device(cfg: Config) -> dict[str, str]:
    import torch

    from kldistill.runtime.devices import device_of

    try:
        device = device_of(cfg.runtime)
    except ConfigError:  # whoever needs it says so; this run may need none
        return {"kind": cfg.runtime.device, "name": "not found"}
    if device.type == "cuda":
        return {"kind": str(device), "name": torch.cuda.get_device_name(device)}
    return {"kind": str(device), "name": _processor() if device.type == "cpu" else platform.processor()}


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@cache
def _commit() -> str | None:
    """The commit that this code is of: of its checkout (``-dirty`` if files were changed), or of what pip was given."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        try:
            command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() or None if done.returncode == 0 else None
    try:
        given = metadata.distribution("kldistill").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(given).get("vcs_info", {}).get("commit_id") if given else None
