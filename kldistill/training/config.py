"""Typed schemas of the teacher and of distillation, and what both groups that train share.

(The loss's: ``kldistill.training.loss_config``; fine-tuning's: ``kldistill.training.finetune_config``.)
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import II

from kldistill.runtime.config import check_choices, choice, require
from kldistill.training.loss_config import LossConfig


def check_training(cfg: Any, group: str) -> None:
    """The ranges of what the training loop reads (see ``training.Settings``). Raises ``ConfigError``."""
    for key in ("steps", "batch_size", "validate_every"):
        require(getattr(cfg, key) >= 1, f"{group}.{key}", getattr(cfg, key), "must be at least 1")
    for key in ("lr", "clip"):
        require(getattr(cfg, key) > 0, f"{group}.{key}", getattr(cfg, key), "must be above 0")
    require(cfg.snippets is None or cfg.snippets >= 1, f"{group}.snippets", cfg.snippets, "must be at least 1, or null")
    require(0 <= cfg.general < 1, f"{group}.general", cfg.general, "is a share of the snippets, from 0 to below 1")
    require(cfg.snippet_bytes >= 32, f"{group}.snippet_bytes", cfg.snippet_bytes, "must be at least 32")
    require(0 <= cfg.warmup < 1, f"{group}.warmup", cfg.warmup, "is a share of the steps, at least 0 and below 1")
    require(cfg.weight_decay >= 0, f"{group}.weight_decay", cfg.weight_decay, "must be 0 or more")
    require(
        len(cfg.betas) == 2 and all(0 <= beta < 1 for beta in cfg.betas),
        f"{group}.betas",
        cfg.betas,
        "must be two numbers, at least 0 and below 1",
    )
    cfg.lora.check(group, least=0 if group == "distill" else 1)
    rule = f"must be {' or '.join(BEST_BY)}, or null for the last step"
    require(cfg.best_by is None or cfg.best_by in BEST_BY, f"{group}.best_by", cfg.best_by, rule)
    check_choices(cfg, group)


SCHEDULES = ("cosine", "linear", "constant_with_warmup")
PRECISIONS = ("no", "bf16")
BEST_BY = ("bits_per_byte", "kl_to_teacher")


@dataclass
class LoraConfig:
    """A low-rank adapter of the body (arXiv 2106.09685), as ``peft`` knows it.

    Attributes:
        r: rank of every update. In ``distill`` 0 stands for no adapter.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapter's input, in training.
        target_modules: names of linear layers of the body, or ends of names. Null: all of them. Never the head.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | None = None

    def check(self, group: str, least: int) -> None:
        """The ranges. Raises ``ConfigError`` naming the key below ``group``."""
        require(self.r >= least, f"{group}.lora.r", self.r, f"must be at least {least}")
        require(self.alpha > 0, f"{group}.lora.alpha", self.alpha, "must be above 0")
        require(0 <= self.dropout < 1, f"{group}.lora.dropout", self.dropout, "must be at least 0 and below 1")
        require(
            self.target_modules is None or len(self.target_modules) > 0,
            f"{group}.lora.target_modules",
            self.target_modules,
            "must name a module, or be null for all linear layers of the body",
        )


@dataclass
class SolveConfig:
    """Solving the output rows at the teacher's states before the training (see ``kldistill.training.solve``).

    Attributes:
        iterations: of L-BFGS for each ridge; one is a pass over the training text's positions, or two. 0: nothing is
            solved, training starts from the rows of ``init``.
        tie: a tied model keeps one row a token, seven tenths of it the solved row and three tenths the row of its last
            piece. False: solved output rows stand beside the input rows of ``init``, at the cost of one more
            matrix at export.
        snippets: of the training text, at most. A snippet of 700 bytes is held in about a megabyte.
        ridges: strengths of the pull towards the start, tried from the strongest on while the validation loss falls. 1
            weighs a move of all rows by the old rows' median length like half a nat a position.
    """

    iterations: int = 0
    tie: bool = True
    snippets: int = 400
    ridges: list[float] = field(default_factory=lambda: [0.01, 1e-4])

    def check(self, group: str) -> None:
        """The ranges. Raises ``ConfigError`` naming the key below ``group``."""
        require(self.iterations >= 0, f"{group}.iterations", self.iterations, "must be 0 (nothing is solved) or more")
        require(self.snippets >= 1, f"{group}.snippets", self.snippets, "must be at least 1")
        require(
            len(self.ridges) > 0 and all(0 <= ridge < float("inf") for ridge in self.ridges),
            f"{group}.ridges",
            self.ridges,
            "must be one number or more, each at least 0",
        )


@dataclass
class DistillConfig:
    """Training of the new rows and, if asked, of a low-rank update of the body.

    Attributes:
        lora: an adapter of the body that learns with the rows: against the teacher's stored states it learns the new
            cut and, with the KL alone, nothing else. It is merged at export. Rank 0: the body stays bit-identical.
        lora_lr: its learning rate, as it is.
        shared_lr: learning rate of a linear map that the rows of all new tokens learn together, from the rows of a
            token's pieces and the row it began with to what is added to its row (see ``training.shared_map``), so that
            a rare token learns from the text of the others; a share of the size of an old row's entries. 0: each row
            learns for itself.
        lazy_rows: update only the new rows that occur in the step (see ``LazyAdamW``). Off, as an output row that is
            left alone where its token is absent is never pushed down there (docs/log.md).
        solve: fit the output rows to the teacher's states first, which costs no pass through the body.
        output_lr: learning rate of separate output rows, in ``lr_unit``. Null: ``lr``.
        teacher: ``self``: the original model runs over the text once, before the training, and its states are stored
            (the model's width a token of the text, in its own type; a sweep shares them). ``online``: it runs in every
            step, which costs half as much again in time and no disk, for long training on much text. ``none``: losses
            that need no teacher; validation then shows no KL.
        steps: of the optimiser.
        batch_size: snippets per step, over all processes.
        snippets: how many different snippets there are; the teacher runs once over each. Null: one per step and place
            in the batch, so none is seen twice (up to what the corpus has).
        snippet_bytes: documents are cut at lines into snippets of about this many bytes.
        draw: which snippets. ``cover``: those that show every new token often, the rare ones too (see
            ``corpus.snippets.cover``). ``hash``: in an order that has nothing to do with the new tokens, so that
            runs with other tokens share the teacher's states.
        text_seed: of what is drawn; another seed trains on other text.
        general: share of the snippets that are of general text (prose and code in equal parts, where the corpus has
            both), from 0 to below 1: so that what the domain does not show stays as it was.
        self_written: share of the snippets that the original model wrote, drawn from its whole distribution after
            beginnings of the train split, from 0 to below 1; together with ``general`` below 1. Only what it wrote is
            trained on, not the beginnings. The KL is exact in expectation on such text alone.
        validation_bytes: text from the validation split that is scored during training; of general text a third as
            much.
        lr: highest learning rate of AdamW for the new rows, in ``lr_unit``.
        lr_unit: ``row``: rates are shares of the size of an old row's entries (the root mean square of the row of
            median length; 0.13 for SmolLM2, 0.04 for Gemma 3), so that a rate that fits one model fits another.
            ``one``: rates are as they are.
        warmup: share of the steps in which the rate rises to ``lr``.
        schedule: how the rate goes on after that, as transformers names it.
        weight_decay: of AdamW.
        betas: of AdamW: how long it remembers the gradient, and its square.
        clip: the gradient's norm is cut to this.
        sampled_softmax: over how many tokens of the old vocabulary the softmaxes of a step go, about: those of the
            training text, the teacher's likeliest up to three quarters of the number, and some of the others, drawn
            anew in each step, that stand for all of them (see ``losses.sampled``). Null: over all, which is exact;
            validation and evaluation always are.
        precision: ``no`` (float32) or ``bf16`` (accelerate's mixed precision). Not ``fp16``: the gradient of a new
            token's row where the token is absent is below its smallest number.
        gradient_checkpointing: keep only each layer's input for the way back, and run the layer again there: a third
            more time, a fraction of the memory that grows with the batch. The results are the same.
        validate_every: steps; validation also runs before the first and after the last step.
        best_by: what is written is what was best by this figure of validation, ``bits_per_byte`` or
            ``kl_to_teacher``; null: what the last step made.
        seed: order of the snippets.
        loss: the loss; the group ``loss`` itself.
    """

    teacher: str = choice("self", "self", "online", "none")
    steps: int = 200
    batch_size: int = 2
    snippets: int | None = None
    snippet_bytes: int = 700
    draw: str = choice("cover", "hash", "cover")
    text_seed: int = 0
    general: float = 0.0
    self_written: float = 0.0
    validation_bytes: int = 8_000
    lr: float = 0.023
    lr_unit: str = choice("row", "row", "one")
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(r=0))
    lora_lr: float = 1e-3
    shared_lr: float = 0.0
    lazy_rows: bool = False
    solve: SolveConfig = field(default_factory=SolveConfig)
    output_lr: float | None = None
    warmup: float = 0.1
    schedule: str = choice("cosine", *SCHEDULES)
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip: float = 1.0
    sampled_softmax: int | None = None
    precision: str = choice("no", *PRECISIONS)
    gradient_checkpointing: bool = False
    validate_every: int = 100
    best_by: str | None = None
    seed: int = 0
    loss: LossConfig = II("loss")  # noqa: RUF009

    @property
    def n_snippets(self) -> int:
        """How many different snippets there are, at most."""
        return self.snippets or self.steps * self.batch_size

    def __post_init__(self) -> None:
        self.solve.check("distill.solve")
        require(
            self.output_lr is None or self.output_lr > 0,
            "distill.output_lr",
            self.output_lr,
            "must be above 0, or null",
        )
        require(self.lora_lr > 0, "distill.lora_lr", self.lora_lr, "must be above 0")
        require(self.shared_lr >= 0, "distill.shared_lr", self.shared_lr, "must be 0 or above")
        require(
            0 <= self.self_written < 1 - self.general,
            "distill.self_written",
            self.self_written,
            f"is a share of the snippets, from 0; with distill.general={self.general} it must stay below 1",
        )
        require(
            self.sampled_softmax is None or self.sampled_softmax >= 4,
            "distill.sampled_softmax",
            self.sampled_softmax,
            "is a number of tokens, at least 4, or null for all of them",
        )
        require(self.validation_bytes >= 1, "distill.validation_bytes", self.validation_bytes, "must be at least 1")
        check_training(self, "distill")


@dataclass
class TeacherConfig:
    """What the states depend on beside model and text: derived from ``distill``, and the same for every loss.

    Attributes:
        snippet_bytes: documents are cut at lines into snippets of about this many bytes.
        n_snippets: training snippets at most.
        draw, seed, general, self_written: how they are chosen (see ``DistillConfig``).
        validation_bytes: text of the validation split.
        states: of which text the states are stored: ``all``, ``held_out`` (the teacher runs online in training) or
            ``none`` (a run without a teacher). The ids are written in any case.
    """

    snippet_bytes: int
    n_snippets: int
    validation_bytes: int
    states: str = choice("all", "all", "held_out", "none")
    draw: str = "hash"
    seed: int = 0
    general: float = 0.0
    self_written: float = 0.0
