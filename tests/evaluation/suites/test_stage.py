"""The stage that makes tasks: from a suite's node to tasks.jsonl, and what it refuses."""

import json
from pathlib import Path

import pytest

from kldistill.evaluation.config import TasksConfig
from kldistill.evaluation.suites import stage as tasks_stage
from kldistill.evaluation.suites.task import read
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.job import Job

HUMANEVAL = {"_target_": "kldistill.evaluation.suites.humaneval.HumanEval", "budget": 99}


def test_tasks_are_written_up_to_the_limit(tmp_path: Path) -> None:
    tasks_stage.build(
        TasksConfig("humaneval", HUMANEVAL, {}, limit=3), {"corpus": tmp_path, "tokens": tmp_path}, tmp_path, Job()
    )
    found = read(tmp_path / "tasks.jsonl")
    assert [task.id for task in found] == ["HumanEval/0", "HumanEval/1", "HumanEval/2"]
    assert {task.budget for task in found} == {99}
    assert json.loads((tmp_path / "summary.json").read_text()) == {"tasks/humaneval": 3}


def test_a_suite_says_itself_what_is_wrong_with_its_keys() -> None:
    with pytest.raises(ConfigError, match=r"^eval.humaneval.budget=0: must be at least 1"):
        tasks_stage.suite_of({**HUMANEVAL, "budget": 0}, "humaneval")


def test_a_suite_that_cannot_be_made_is_an_error_of_the_users() -> None:
    with pytest.raises(ConfigError, match=r"eval\.humaneval\.colour: HumanEval has no such setting; it has budget"):
        tasks_stage.suite_of({**HUMANEVAL, "colour": "red"}, "humaneval")


def test_the_identity_holds_the_files_of_all_suites_that_are_used(tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text("one")
    mbpp = {"_target_": "kldistill.evaluation.suites.mbpp.Mbpp", "path": str(path)}
    choice = {"_target_": "kldistill.evaluation.suites.choice.Choice", "suites": ["mbpp"]}
    cfg = TasksConfig("choice", choice, {"mbpp": mbpp})
    before = tasks_stage.identity(cfg)
    assert set(before) == {"choice", "mbpp"}
    path.write_text("two")
    assert tasks_stage.identity(cfg) != before
