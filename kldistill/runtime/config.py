"""Typed schemas of every config group. Hydra refuses a misspelt key or a wrong type with them, before anything runs.

Ranges are checked in ``__post_init__``, which runs when ``OmegaConf.to_object`` makes a stage's slice; what concerns
several groups at once is in ``kldistill.pipeline.checks``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from omegaconf import OmegaConf

from kldistill.runtime.errors import ConfigError


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Raise ``ConfigError`` naming ``key`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key}={value!r}: {rule}.")


def resolved(node: Any) -> dict[str, Any]:
    """A typed slice as plain JSON types, for fingerprints and run.json."""
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(node), resolve=True))


@dataclass
class RuntimeConfig:
    """How to run. Never changes a result, so it never enters a fingerprint.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``mps`` (through accelerate; only ``cpu`` is tested).
        workers: threads and processes for text work; 0 means all cores.
        threads: torch threads; 0 leaves torch's own choice.
        checkpoint_every: training steps between two checkpoints.
        generation_batch: completions that are written at a time; changes them by no more than rounding does.
    """

    device: str = "auto"
    workers: int = 0
    threads: int = 0
    checkpoint_every: int = 20
    generation_batch: int = 64

    def __post_init__(self) -> None:
        require(self.workers >= 0, "runtime.workers", self.workers, "must be 0 (all cores) or more")
        require(self.threads >= 0, "runtime.threads", self.threads, "must be 0 (torch's choice) or more")
        for key in ("checkpoint_every", "generation_batch"):
            require(getattr(self, key) >= 1, f"runtime.{key}", getattr(self, key), "must be at least 1")


@dataclass
class LoggerConfig:
    """Where figures go beside ``metrics.jsonl``.

    Attributes:
        name: ``wandb``, ``trackio`` or ``none``.
        project: of the dashboard; None takes ``WANDB_PROJECT`` from the environment, else ``kldistill``.
        mode: ``offline``, ``online``, ``shared`` or ``disabled``; None takes ``WANDB_MODE``, else ``offline``.
        entity: user or team on wandb; None takes ``WANDB_ENTITY``, else the account's own default.
        group: of the run; None takes ``WANDB_RUN_GROUP``, else the run's experiment, so that a sweep is a group.
        tags: of the run, beside those of its model, init and loss; an empty list takes those of ``WANDB_TAGS``.
    """

    name: str = "wandb"
    project: str | None = None
    mode: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.name in ("wandb", "trackio", "none"), "logger.name", self.name, "must be wandb, trackio or none")
        require(
            self.mode in (None, "offline", "online", "disabled", "shared"),
            "logger.mode",
            self.mode,
            "must be offline, online, shared or disabled",
        )
