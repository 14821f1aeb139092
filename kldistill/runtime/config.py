"""Typed schemas of the groups ``runtime`` and ``logger``, and what the schemas of all groups share. With them, Hydra
refuses a misspelt key or a wrong type before anything runs.

Ranges are checked in ``__post_init__``, which runs when ``OmegaConf.to_object`` makes a stage's slice; what concerns
several groups at once is in ``kldistill.pipeline.checks``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kldistill.runtime.errors import ConfigError


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Raise ``ConfigError`` naming ``key`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key}={value!r}: {rule}.")


def resolved(node: Any) -> dict[str, Any]:
    """A typed slice, as ``OmegaConf.to_object`` made it, as plain JSON types, for fingerprints and run.json."""
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    return asdict(node)


def choice(default: str | None, *names: str) -> Any:
    """A key that takes one of a few names (``check_choices`` checks it, docs/config.md lists them)."""
    return field(default=default, metadata={"choices": names})


def check_choices(cfg: Any, group: str) -> None:
    """Raise ``ConfigError`` for a key of ``cfg`` that is none of its choices."""
    for item in fields(cfg):
        names = item.metadata.get("choices")
        value = getattr(cfg, item.name)
        if names and value != item.default:
            listed = f"{', '.join(names[:-1])} or {names[-1]}"
            require(value in names, f"{group}.{item.name}", value, f"must be {listed}")


@dataclass
class RuntimeConfig:
    """How to run. Never changes a result by more than rounding does, so it never enters a fingerprint.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``mps`` (through accelerate; ``mps`` is untested).
        workers: threads and processes for text work; 0 means all cores.
        threads: torch threads; 0 leaves torch's own choice.
        checkpoint_every: training steps between two checkpoints.
        generation_batch: completions that are written at a time. Null: 64 on a CPU, 256 on an accelerator.
        score_batch: windows of held-out text in one forward pass. Null: 4 on a CPU, 32 on an accelerator.
        matmul_precision: of float32 products on an accelerator, as ``torch.set_float32_matmul_precision`` has it. With
            ``high`` its matrix units round what goes in to 11 bits of 24 (TF32), and are several times as fast.
        chunk: positions whose vocabulary-sized logits exist at a time, in training and in evaluation: memory is about
            chunk times vocabulary times 4 bytes, a few times over. Null: 128 on a CPU, 1,024 on an accelerator.
        pass_tokens: tokens that one pass of training holds at a time, padding included, at most: a step whose snippets
            have more runs in several passes, whose gradients add up, and a snippet that is longer runs alone
            (elsewhere: gradient accumulation). Lets a large ``batch_size`` into little memory. Null: 512 on a CPU,
            where longer passes save no time, 8,192 on an accelerator, and one pass a step in ``finetune=full``.
        compile: let torch compile the layers of the body for training (``torch.compile``; needs a C++ compiler: g++, or
            what the environment variable CXX names). Half a minute, after which a step on a CPU takes 0.92 of its time,
            on a busy one 0.85. Not with ``shard``.
        loader_workers: processes that prepare the batches of the next steps (alignment of both cuts, padding) while
            this one trains. 0 prepares each when it is due: less than a hundredth of a step on a CPU, but an
            accelerator waits for it.
        shard: split the frozen layers of the model among the processes of a run (FSDP2), each of which then holds its
            part of them and gathers one layer at a time, for models that one device cannot hold. In the stages in
            which all processes run one model (teacher, distill, the scoring of text, finetune but for
            ``method=full``). Embedding, head and all that is trained stay whole in each.
        trust: other packages whose losses, inits, sources and suites may be named by ``_target_``. Only on the command
            line, as their code then runs: a file or a preset cannot say it.
    """

    device: str = "auto"
    workers: int = 0
    threads: int = 0
    checkpoint_every: int = 20
    generation_batch: int | None = None
    score_batch: int | None = None
    matmul_precision: str = choice("highest", "highest", "high", "medium")
    chunk: int | None = None
    pass_tokens: int | None = None
    compile: bool = False
    loader_workers: int = 0
    shard: bool = False
    trust: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choices(self, "runtime")
        require(self.workers >= 0, "runtime.workers", self.workers, "must be 0 (all cores) or more")
        require(self.threads >= 0, "runtime.threads", self.threads, "must be 0 (torch's choice) or more")
        require(0 <= self.loader_workers <= 1024, "runtime.loader_workers", self.loader_workers, "must be 0 to 1024")
        require(self.checkpoint_every >= 1, "runtime.checkpoint_every", self.checkpoint_every, "must be at least 1")
        for key in ("generation_batch", "score_batch", "chunk", "pass_tokens"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"runtime.{key}", value, "must be at least 1, or null")
        require(
            not (self.compile and self.shard), "runtime.compile", self.compile, "does not go with runtime.shard=true"
        )
        for name in self.trust:
            require(name.isidentifier(), "runtime.trust", name, "name packages as they are imported, such as [mypkg]")


@dataclass
class LoggerConfig:
    """Where figures go beside ``metrics.jsonl``.

    Attributes:
        name: the dashboard; ``none`` leaves it at the run's own files.
        project: the dashboard's project; None takes ``WANDB_PROJECT`` from the environment, else ``kldistill``.
        mode: wandb's mode; None takes ``WANDB_MODE``, else ``offline``.
        entity: user or team on wandb; None takes ``WANDB_ENTITY``, else the account's own default.
        group: the run's group; None takes ``WANDB_RUN_GROUP``, else the run's experiment, so that a sweep is a group.
        tags: the run's tags, beside those of its model, init and loss; an empty list takes those of ``WANDB_TAGS``.
    """

    name: str = choice("wandb", "wandb", "trackio", "none")
    project: str | None = None
    mode: str | None = choice(None, "offline", "online", "shared", "disabled")
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choices(self, "logger")
