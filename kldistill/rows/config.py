"""Typed schema of the group ``init``."""

from dataclasses import dataclass, field
from typing import Any

from kldistill.runtime.config import require


@dataclass
class InitConfig:
    """How the new rows start.

    Attributes:
        input: a function of ``kldistill.rows.inits`` by ``_target_`` for the input rows.
        output: the same for the output rows.
        tie: null keeps what the model does; false gives a tied model separate output rows.
        calibrate: scale every new row to the median norm of the old ones.
        seed: of the methods that draw random numbers.
    """

    input: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    tie: bool | None = None
    calibrate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require("_target_" in self.input, "init.input", self.input, "needs a _target_ (see conf/init)")
        require("_target_" in self.output, "init.output", self.output, "needs a _target_ (see conf/init)")
