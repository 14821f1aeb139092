"""Solution: how well a model predicts the canonical solutions of other suites' tasks, in bits a byte.

Nothing is generated, and every task tells something, where a weak model solves one task in twenty: so it tells two
models apart that no count of solved tasks does.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kldistill.evaluation.suites.others import tasks_of
from kldistill.evaluation.suites.task import Sources, Task
from kldistill.runtime.components import component
from kldistill.runtime.config import require


@component("suite")
@dataclass(frozen=True)
class Solution:
    """The canonical completions of other suites' tasks.

    Attributes:
        suites: names of the suites; their tasks must have a canonical completion. MBPP's are asked without solved
            examples in front.
    """

    runs_code: ClassVar[bool] = False

    suites: list[str] = field(default_factory=lambda: ["humaneval"])

    def __post_init__(self) -> None:
        require(bool(self.suites), "eval.solution.suites", self.suites, "name at least one other suite")

    def tasks(self, sources: Sources) -> list[Task]:
        """The tasks of all suites in turn. Raises ``EvaluationError``."""
        found = tasks_of(
            self.suites,
            sources,
            "eval.solution.suites",
            lambda task: bool(task.reference.strip()),
            "have no canonical completion",
        )
        return [
            dataclasses.replace(task, kind="solution", budget=0, stop=[], before="", after="", options=[])
            for task in found
        ]

    def identity(self) -> Mapping[str, Any]:
        """Nothing beside the fields and the sources."""
        return {}
