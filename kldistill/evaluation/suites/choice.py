"""Choice: the canonical solution of a programming task among mutants of it that fail the task's tests.

For models too weak to write a solution: nothing is generated, chance is 25 %, and every tokenizer ranks the same texts.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kldistill.evaluation.suites.mutants import mutants
from kldistill.evaluation.suites.others import programs_of
from kldistill.evaluation.suites.task import Sources, Task
from kldistill.runtime.components import component
from kldistill.runtime.config import require

log = logging.getLogger(__name__)


@component("suite")
@dataclass(frozen=True)
class Choice:
    """The tasks of other suites, each as a choice between its canonical solution and three mutants.

    A task is left out if its canonical solution fails (on a newer Python, say), or if too few mutants of it do.

    Attributes:
        suites: names of the suites; their tasks must be programs. MBPP's are asked without solved examples in front.
        mutants: wrong options of each task. Chance is 1 / (mutants + 1).
        tries: mutants of each task that are run, at most.
        seed: draws the mutants, and the order of the tasks.
    """

    runs_code: ClassVar[bool] = True

    suites: list[str] = field(default_factory=lambda: ["humaneval", "mbpp"])
    mutants: int = 3
    tries: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.suites), "eval.choice.suites", self.suites, "name at least one suite of programs")
        require(self.mutants >= 1, "eval.choice.mutants", self.mutants, "must be at least 1")
        require(self.tries >= self.mutants, "eval.choice.tries", self.tries, "must be at least eval.choice.mutants")

    def tasks(self, sources: Sources) -> list[Task]:
        """The tasks in seeded order, so that the first ones are of all suites. Raises ``EvaluationError``."""
        asked = sorted(
            programs_of(self.suites, sources, "eval.choice.suites"), key=lambda task: (self._hash(task), task.id)
        )
        chosen: list[Task] = []
        left_out: Counter[str] = Counter()
        done = 0
        wanted = len(asked) if sources.limit is None else sources.limit
        while done < len(asked) and len(chosen) < wanted:
            # A few more than are missing, as not all have enough mutants.
            missing = wanted - len(chosen)
            block = asked[done : done + missing + missing // 8 + 1]
            done += len(block)
            for search in self._searched(block, sources):
                if search.flaw:
                    left_out[search.flaw] += 1
                else:
                    chosen.append(self._task(search))
        if left_out:
            reasons = ", ".join(f"{number} as {flaw}" for flaw, number in sorted(left_out.items()))
            log.info("choice: %d of %d tasks left out: %s", left_out.total(), done, reasons)
        return chosen[:wanted]

    def identity(self) -> Mapping[str, Any]:
        """Nothing beside the fields and the sources."""
        return {}

    def _searched(self, tasks: Sequence[Task], sources: Sources) -> list["_Search"]:
        """Mutants of all tasks together, in few rounds: what a round lacks, the next one tries."""
        searches = [_Search(task, self.mutants, self.tries, self.seed) for task in tasks]
        programs = [search.program(search.task.reference) for search in searches]
        for search, passed in zip(searches, _passes(sources, programs), strict=True):
            if not passed:
                search.flaw = "the canonical solution fails"
        while rounds := [(search, text) for search in searches for text in search.next()]:
            verdicts = _passes(sources, [search.program(text) for search, text in rounds])
            for (search, text), passed in zip(rounds, verdicts, strict=True):
                search.tell(text, passed)
        return searches

    def _task(self, search: "_Search") -> Task:
        task = search.task
        return Task(
            id=task.id,
            kind="choice",
            prompt=task.prompt,
            reference=task.reference,
            options=[task.reference, *search.failing],
            group=task.group,
        )

    def _hash(self, task: Task) -> int:
        return int.from_bytes(hashlib.blake2b(f"{self.seed}\0{task.id}".encode(), digest_size=8).digest())


class _Search:
    """The search for mutants of one task that fail.

    Attributes:
        failing: texts of those that were found, in the order of trying.
        flaw: why the task has no choice, once that is known.
    """

    def __init__(self, task: Task, wanted: int, tries: int, seed: int) -> None:
        self.task = task
        self.wanted = wanted
        self.failing: list[str] = []
        self.flaw = ""
        self._open = [mutant.text for mutant in mutants(task.before, task.reference, f"{seed}\0{task.id}")][:tries]

    def program(self, text: str) -> str:
        return self.task.before + text + self.task.after

    def next(self) -> list[str]:
        """What to run next: as many as are missing. Empty if the search is over."""
        missing = self.wanted - len(self.failing)
        if self.flaw or missing == 0:
            return []
        if len(self._open) < missing:
            self.flaw = "too few mutants fail"
            return []
        batch, self._open = self._open[:missing], self._open[missing:]
        return batch

    def tell(self, text: str, passed: bool) -> None:
        """Take the verdict on a text that ``next`` gave."""
        if not passed:
            self.failing.append(text)


def _passes(sources: Sources, programs: Sequence[str]) -> list[bool]:
    verdicts = sources.passes(programs)
    assert len(verdicts) == len(programs), "one verdict for each program"
    return verdicts
