"""Typed schema of the group ``loss``: a weighted sum of losses, and what training with it was tuned to."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from kldistill.runtime.config import require


@dataclass
class LossTerm:
    """One summand of the loss.

    Attributes:
        function: ``_target_`` of a loss, such as ``kldistill.losses.kl``, with its own settings if any. What it needs
            (the teacher, exact pieces) the loss says itself.
        weight: its factor in the sum. First-class: tune it on validation.
    """

    function: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self) -> None:
        require("_target_" in self.function, "loss.terms.*.function", self.function, "needs a _target_")
        require(self.weight > 0, "loss.terms.*.weight", self.weight, "must be above 0 (leave the term out instead)")


@dataclass
class LossConfig:
    """A weighted sum of terms.

    Attributes:
        name: for tables and tags.
        terms: the summands by name: a loss and its weight each.
        lr: the learning rate of the rows alone, which ``distill=rows`` takes as its ``distill.lr``, in its ``lr_unit``;
            tuned on validation text for ``kl``, ``ce`` and ``kl_ce``. ``distill=lora`` has a rate of its own.
        best_by: the figure of validation by which training with this loss is judged (``distill.best_by`` takes it).
    """

    name: str = MISSING
    lr: float = 0.023
    best_by: str | None = None
    terms: dict[str, LossTerm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.terms), "loss.terms", self.terms, "needs at least one term (see conf/loss)")
        require(self.lr > 0, "loss.lr", self.lr, "must be above 0")
