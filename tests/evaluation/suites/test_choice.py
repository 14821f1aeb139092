"""Choice: options are verified, seeded, and the same whatever the limit; and what every suite's YAML file holds."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from kldistill.evaluation.judge import program_of
from kldistill.evaluation.suites.choice import Choice
from kldistill.evaluation.suites.humaneval import HumanEval
from kldistill.evaluation.suites.mbpp import Mbpp
from kldistill.evaluation.suites.task import Sources, Task
from kldistill.pipeline import compose
from kldistill.runtime.errors import ConfigError, EvaluationError
from tests.helpers.programs import passes

SOLUTIONS = [
    ("add", "def add(a, b):\n  return a + b\n", ["assert add(2, 3) == 5", "assert add(-1, 4) == 3"]),
    (
        "last",
        "def last(x):\n  if x:\n    return x[-1]\n  return 0\n",
        ["assert last([1, 2]) == 2", "assert last([]) == 0"],
    ),
    (
        "total",
        "def total(n):\n  s = 0\n  while n > 0:\n    s += n\n    n -= 1\n  return s\n",
        ["assert total(4) == 10"],
    ),
    ("wrong", "def wrong(a, b):\n  return a + b\n", ["assert wrong(1, 1) == 3"]),
    ("any_", "def any_(a, b):\n  return a + b\n", ["assert any_(1, 1) in range(-9, 9)"]),
]


@dataclasses.dataclass(frozen=True)
class Programs:
    """A suite of the solutions above."""

    def tasks(self, sources: Sources) -> list[Task]:
        return [
            Task(id=name, kind="program", prompt=f"# {name}\n", after="\n".join(tests), reference=code, group=name)
            for name, code, tests in SOLUTIONS
        ]

    def identity(self) -> dict[str, Any]:
        return {}


class Counting:
    """``passes`` with a list of what was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, programs: Sequence[str]) -> list[bool]:
        self.asked.append(list(programs))
        return passes(programs, seconds=2)


def sources(asked: Any, limit: int | None = None) -> Sources:
    return Sources(Path("none"), Path("none"), asked, {"programs": Programs()}, limit)


@pytest.fixture(scope="module")
def made() -> tuple[list[Task], Counting]:
    asked = Counting()
    return Choice(suites=["programs"]).tasks(sources(asked)), asked


def test_each_option_is_what_it_should_be(made: tuple[list[Task], Counting]) -> None:
    """Canonical 100 %, mutants 0 %, checked anew."""
    tasks, _ = made
    assert sorted(task.id for task in tasks) == ["add", "last", "total"]
    programs = {task.id: task for task in Programs().tasks(sources(None))}
    for task in tasks:
        assert task.kind == "choice" and task.prompt == f"# {task.id}\n" and task.group == task.id
        assert len(set(task.options)) == 4
        assert task.options[0] == task.reference == programs[task.id].reference
        assert passes([program_of(programs[task.id], option) for option in task.options]) == [True, False, False, False]


def test_what_has_no_choice_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="kldistill")
    Choice(suites=["programs"]).tasks(sources(lambda programs: [program.startswith("def add") for program in programs]))
    # To this judge all mutants of "add" pass, and the other canonical solutions fail.
    assert "5 of 5 tasks left out: 4 as the canonical solution fails, 1 as too few mutants fail" in caplog.text


def test_programs_run_together_and_mutants_only_of_what_passes(made: tuple[list[Task], Counting]) -> None:
    _, asked = made
    assert sorted(asked.asked[0]) == sorted(code + "\n".join(tests) for _, code, tests in SOLUTIONS)
    assert len(asked.asked[1]) == 3 * 4  # all but "wrong"
    assert len(asked.asked) < 10
    programs = [program for batch in asked.asked for program in batch]
    assert len(set(programs)) == len(programs)


def test_tries_are_bounded() -> None:
    asked = Counting()
    Choice(suites=["programs"], tries=3).tasks(sources(asked))
    assert [len(programs) for programs in asked.asked] == [5, 12]


def test_a_limit_takes_the_first_ones_and_runs_no_others(made: tuple[list[Task], Counting]) -> None:
    asked = Counting()
    assert Choice(suites=["programs"]).tasks(sources(asked, limit=1)) == made[0][:1]
    assert sum(map(len, asked.asked)) < sum(map(len, made[1].asked))


def test_the_seed_decides(made: tuple[list[Task], Counting]) -> None:
    assert Choice(suites=["programs"]).tasks(sources(passes)) == made[0]
    other = Choice(suites=["programs"], seed=1).tasks(sources(passes))
    assert {task.id for task in other} == {task.id for task in made[0]} and other != made[0]


def test_layout_and_comments_are_those_of_the_solution(made: tuple[list[Task], Counting]) -> None:
    for task in made[0]:
        for option in task.options[1:]:
            lines = zip(task.reference.split("\n"), option.split("\n"), strict=True)
            assert sum(one != other for one, other in lines) == 1


def test_humaneval_and_mbpp_mixed_without_shots(tmp_path: Path) -> None:
    """A few real tasks: MBPP's are asked without examples, and the first ones are of both suites."""
    entries = [
        {
            "text": f"Write a function to add {number}.",
            "code": f"def add(x):\r\n\treturn x + {number} - 0 * x",
            "task_id": number,
            "test_setup_code": "",
            "test_list": [f"assert add(1) == {number + 1}", f"assert add(7) == {number + 7}"],
        }
        for number in range(1, 111)
    ]
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    suites = {"humaneval": HumanEval(), "mbpp": Mbpp(path=str(path))}
    tasks = Choice().tasks(Sources(tmp_path, tmp_path, Counting(), suites, 5))
    assert len(tasks) == 5
    of_mbpp = [task for task in tasks if task.id.startswith("mbpp/")]
    assert 0 < len(of_mbpp) < 5
    for task in of_mbpp:
        assert task.prompt.startswith("You are an expert") and task.prompt.count("[BEGIN]") == 1
        assert "[DONE]" not in task.prompt
    originals = {task.id: task for suite in suites.values() for task in suite.tasks(sources(None))}
    programs = [program_of(originals[task.id], option) for task in tasks for option in task.options]
    assert passes(programs) == [True, False, False, False] * 5


def test_suites_that_do_not_fit() -> None:
    with pytest.raises(EvaluationError, match=r"no suite 'mbpp' \(there are: programs\)"):
        Choice(suites=["programs", "mbpp"]).tasks(sources(passes))

    class Lines(Programs):
        def tasks(self, sources: Sources) -> list[Task]:
            return [Task(id="a", kind="text", prompt="")]

    with pytest.raises(EvaluationError, match="no programs"):
        Choice(suites=["lines"]).tasks(dataclasses.replace(sources(passes), suites={"lines": Lines()}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suites": []}, r"eval\.choice\.suites=\[\]"),
        ({"mutants": 0}, r"eval\.choice\.mutants=0"),
        ({"tries": 2}, r"eval\.choice\.tries=2"),
    ],
)
def test_keys_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Choice(**settings)


@pytest.mark.parametrize(
    "path", sorted((compose.conf_folder() / "eval" / "suite").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_suite_file_holds_the_fields_of_its_suite(path: Path) -> None:
    """All keys, with the defaults of the class, and a line that says what it is."""
    assert path.read_text().startswith("# ")
    node = OmegaConf.create({"seed": 0, "suite": OmegaConf.load(path)})
    held = OmegaConf.to_container(node.suite, resolve=True)
    assert isinstance(held, dict)
    made = get_class(held.pop("_target_"))()
    assert held == dataclasses.asdict(made)
    assert instantiate(node.suite, _convert_="all") == made
