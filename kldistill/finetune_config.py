"""Typed schema of the group ``finetune``."""

from dataclasses import dataclass, field

from kldistill.config import require
from kldistill.training_config import check_training

METHODS = ("none", "lora", "full", "rows")


@dataclass
class LoraConfig:
    """The adapter of ``finetune=lora`` (arXiv 2106.09685), as ``peft`` knows it.

    Attributes:
        r: rank of every update.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapter's input, in training.
        target_modules: names of linear layers of the body, or ends of names. Null: all of them. Never the head.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        require(self.r >= 1, "finetune.lora.r", self.r, "must be at least 1")
        require(self.alpha > 0, "finetune.lora.alpha", self.alpha, "must be above 0")
        require(0 <= self.dropout < 1, "finetune.lora.dropout", self.dropout, "must be at least 0 and below 1")
        require(
            self.target_modules is None or len(self.target_modules) > 0,
            "finetune.lora.target_modules",
            self.target_modules,
            "must name a module, or be null for all linear layers of the body",
        )


@dataclass
class FinetuneConfig:
    """Training of the model with its new vocabulary, after distillation.

    Attributes:
        method: ``none`` leaves the stage out. ``lora`` trains low-rank updates of the body, ``full`` every weight (in
            float32, whatever the type of the model), ``rows`` the new rows alone. The new rows train along.
        train_rows: false keeps the new rows as they were distilled.
        anchor: ``none`` trains on cross-entropy alone. ``kl`` adds the KL to the original model, to limit forgetting.
        anchor_weight: factor of that KL; cross-entropy has 1.
        snippets: how many different snippets of the train split there are, first those that distillation has not
            seen. Null: one per step and place in the batch. With ``anchor=kl`` they are those of distillation, as
            the teacher's states are stored for these alone.
        snippet_bytes: documents are cut at lines into snippets of about this many bytes.
        gradient_checkpointing: run each layer again on the way back rather than keep what it made: slower, less
            memory.
        lr: of the body's weights. rows_lr: of the new rows; null: the same.
        seed: order of the snippets, the adapter's first values, dropout.

    The others are those of ``distill`` (see ``DistillConfig``).
    """

    method: str = "none"
    lora: LoraConfig = field(default_factory=LoraConfig)
    train_rows: bool = True
    anchor: str = "none"
    anchor_weight: float = 1.0
    steps: int = 150
    batch_size: int = 2
    snippets: int | None = None
    snippet_bytes: int = 700
    lr: float = 5e-4
    rows_lr: float | None = None
    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip: float = 1.0
    precision: str = "no"
    gradient_checkpointing: bool = False
    chunk: int = 128
    validate_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.method in METHODS, "finetune.method", self.method, f"must be one of {METHODS}")
        require(
            self.train_rows or self.method != "rows",
            "finetune.train_rows",
            self.train_rows,
            "leaves nothing to train with finetune=rows",
        )
        require(self.anchor in ("none", "kl"), "finetune.anchor", self.anchor, "must be none or kl")
        require(
            self.anchor_weight > 0,
            "finetune.anchor_weight",
            self.anchor_weight,
            "must be above 0 (finetune.anchor=none leaves it out)",
        )
        require(self.rows_lr is None or self.rows_lr > 0, "finetune.rows_lr", self.rows_lr, "must be above 0, or null")
        check_training(self, "finetune")
