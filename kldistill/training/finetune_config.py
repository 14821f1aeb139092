"""Typed schema of the group finetune."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from kldistill.runtime.config import choice, require
from kldistill.training.config import PRECISIONS, SCHEDULES, LoraConfig, check_training
from kldistill.training.loss_config import LossConfig

METHODS = ("none", "lora", "full", "rows")


@dataclass
class FinetuneConfig:
    """Training of the model with its new vocabulary, after distillation.

    Attributes:
        lora: the adapter of ``method=lora``.
        method: ``none`` leaves the stage out. ``lora`` trains low-rank updates of the body, ``full`` every weight (in
            float32, whatever the type of the model), ``rows`` the new rows alone. The new rows train along.
        train_rows: false keeps the new rows as they were distilled.
        control: also fine-tune the original model, with its own tokenizer, on the same text in the same way: what one
            would do without new tokens. Measured as ``control``.
        loss: what is trained on, as in ``distill``: cross-entropy by default, ``loss@finetune.loss=kl_ce`` with the
            KL to the original model beside it, to limit forgetting.
        lazy_rows: update only the new rows that occur in the step (see ``LazyAdamW``). Off, as an output row that is
            left alone where its token is absent is never pushed down there (docs/log.md).
        snippets: how many different snippets of the train split there are, first those that distillation has not
            seen. Null: one per step and place in the batch. A loss that needs the teacher takes those of distillation,
            as the teacher's states are stored for these alone.
        general: share of fresh snippets that are of general text (see ``DistillConfig``).
        snippet_bytes: documents are cut at lines into snippets of about this many bytes.
        gradient_checkpointing: as in ``distill``.
        lr: of the body's weights.
        rows_lr: of the new rows, in ``lr_unit``; null: the body's, as it is.
        lr_unit: of ``rows_lr``, as in ``distill``.
        seed: order of the snippets, the adapter's first values, dropout.

    The others are those of ``distill`` (see ``DistillConfig``).
    """

    method: str = choice("none", *METHODS)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train_rows: bool = True
    control: bool = False
    loss: LossConfig = MISSING
    lazy_rows: bool = False
    steps: int = 150
    batch_size: int = 2
    snippets: int | None = None
    general: float = 0.0
    snippet_bytes: int = 700
    lr: float = 5e-4
    rows_lr: float | None = None
    lr_unit: str = choice("row", "row", "one")
    warmup: float = 0.1
    schedule: str = choice("cosine", *SCHEDULES)
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip: float = 1.0
    precision: str = choice("no", *PRECISIONS)
    gradient_checkpointing: bool = False
    validate_every: int = 50
    best_by: str | None = None
    seed: int = 0

    @property
    def n_snippets(self) -> int:
        """How many different snippets there are, at most."""
        return self.snippets or self.steps * self.batch_size

    def __post_init__(self) -> None:
        require(
            self.train_rows or self.method != "rows",
            "finetune.train_rows",
            self.train_rows,
            "leaves nothing to train with finetune=rows",
        )
        require(
            not self.control or self.method in ("lora", "full"),
            "finetune.control",
            self.control,
            "needs a body that learns: finetune=lora or full",
        )
        require(self.rows_lr is None or self.rows_lr > 0, "finetune.rows_lr", self.rows_lr, "must be above 0, or null")
        check_training(self, "finetune")
