"""Solution: the canonical completions of other suites' tasks, read and not written."""

import json
from pathlib import Path

import pytest

from kldistill.evaluation.suites.humaneval import HumanEval
from kldistill.evaluation.suites.mbpp import Mbpp
from kldistill.evaluation.suites.solution import Solution
from kldistill.evaluation.suites.task import Sources, Suite
from kldistill.runtime.errors import ConfigError, EvaluationError


def sources(**suites: Suite) -> Sources:
    return Sources(Path("corpus"), Path("tokens"), None, suites)


def test_the_tasks_are_those_of_the_suites_with_their_canonical_completions() -> None:
    originals = HumanEval().tasks(sources())
    tasks = Solution().tasks(sources(humaneval=HumanEval()))
    assert [(task.id, task.prompt, task.reference) for task in tasks] == [
        (task.id, task.prompt, task.reference) for task in originals
    ]
    assert {task.kind for task in tasks} == {"solution"}
    assert {(task.budget, task.before, task.after, tuple(task.stop)) for task in tasks} == {(0, "", "", ())}


def test_mbpp_is_asked_without_solved_examples(tmp_path: Path) -> None:
    entry = {
        "task_id": 11,
        "text": "Add.",
        "code": "def add(a, b):\n  return a + b",
        "test_list": ["assert add(1, 2) == 3"],
    }
    file = tmp_path / "mbpp.jsonl"
    file.write_text(json.dumps(entry | {"test_setup_code": "", "challenge_test_list": []}) + "\n")
    (task,) = Solution(["mbpp"]).tasks(sources(mbpp=Mbpp(path=str(file), split="all", shots=0)))
    assert "return a + b" in task.reference and task.prompt.count("Add.") == 1


def test_what_is_no_suite_of_solutions_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"there is no suite 'other' \(there are: humaneval\)"):
        Solution(["other"]).tasks(sources(humaneval=HumanEval()))
    with pytest.raises(ConfigError, match="name at least one other suite"):
        Solution([])
