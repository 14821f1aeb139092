"""MBPP from a file as its authors published it; what is wrong with a file is said with its line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kldistill.evaluation.judge import program_of
from kldistill.evaluation.suites.mbpp import Mbpp
from kldistill.evaluation.suites.task import Sources, Task
from kldistill.runtime.errors import ConfigError, EvaluationError
from tests.helpers.programs import passes

NOWHERE = Sources(Path("none"), Path("none"), passes)


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """A task as in the original file, with Windows' line ends as there."""
    return {
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\r\n  return x + {number} \r\n",
        "task_id": number,
        "test_setup_code": "",
        "test_list": [f"assert add(1) == {number + 1}", f"assert add(-{number}) == 0", "assert add(0.5) > 0"],
        "challenge_test_list": [],
        **changes,
    }


def sanitized(number: int) -> dict[str, Any]:
    """A task as in the sanitized file."""
    return {
        "source_file": "Benchmark Questions Verification V2.ipynb",
        "task_id": number,
        "prompt": f"Write a function to get the root of x plus {number}.",
        "code": f"import math\ndef root(x):\n  return math.sqrt(x + {number})",
        "test_imports": ["import math", "from math import isclose"],
        "test_list": [f"assert isclose(root(0), math.sqrt({number}))"],
    }


def write_jsonl(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Tasks 1 to 12 and 510 to 512, not in order."""
    return write_jsonl(tmp_path / "mbpp.jsonl", [entry(number) for number in (512, 511, 510, *range(1, 13))])


def tasks_of(path: Path, **settings: Any) -> list[Task]:
    return Mbpp(path=str(path), **settings).tasks(NOWHERE)


def test_the_published_prompt(file: Path) -> None:
    """Three shots, tasks 2, 3 and 4, in the words of Austin et al. (2021)."""
    task = tasks_of(file)[0]
    start = "You are an expert Python programmer, and here is your task: Write a function to add"
    shots = [
        f"{start} {n}. Your code should pass these tests:\n\nassert add(1) == {n + 1}\nassert add(-{n}) == 0\n"
        f"assert add(0.5) > 0\n[BEGIN]\ndef add(x):\n  return x + {n} \n\n[DONE]\n\n"
        for n in (2, 3, 4)
    ]
    asked = (
        f"{start} 11. Your code should pass these tests:\n\nassert add(1) == 12\nassert add(-11) == 0\n"
        "assert add(0.5) > 0\n[BEGIN]\n"
    )
    assert task.prompt == "".join(shots) + asked
    assert (task.id, task.kind, task.stop, task.budget, task.group) == (
        "mbpp/11",
        "program",
        ["[DONE]"],
        512,
        "mbpp/11",
    )


def test_the_test_split_is_11_to_510(file: Path) -> None:
    assert [task.id for task in tasks_of(file)] == ["mbpp/11", "mbpp/12", "mbpp/510"]


def test_fewer_tasks_than_were_published_are_told_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks_of(file)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"eval.mbpp.split=test: {file} has only 3 of the 500 published tasks" in record.getMessage()
    Mbpp(path=str(file)).tasks(dataclasses.replace(NOWHERE, limit=3))
    assert len(caplog.records) == 1, "no more than three were wanted"
    whole = write_jsonl(file.with_name("whole.jsonl"), [entry(number) for number in range(1, 975)])
    assert (len(tasks_of(whole)), len(tasks_of(whole, split="all")), len(caplog.records)) == (500, 974, 1)


def test_all_tasks_are_never_shown_to_themselves(file: Path) -> None:
    tasks = tasks_of(file, split="all")
    assert [task.id for task in tasks] == [f"mbpp/{number}" for number in (*range(1, 13), 510, 511, 512)]

    def shown(task: Task) -> list[int]:
        return [n for n in (*range(1, 13), 510, 511, 512) if f"return x + {n} \n" in task.prompt]

    assert [shown(task) for task in tasks[:5]] == [[2, 3, 4], [3, 4, 5], [2, 4, 5], [2, 3, 5], [2, 3, 4]]
    assert all(task.reference not in task.prompt for task in tasks)


@pytest.mark.parametrize("shots", [0, 1, 9])
def test_shots(file: Path, shots: int) -> None:
    task = tasks_of(file, shots=shots)[0]
    assert task.prompt.count("[DONE]") == shots
    assert task.prompt.count("[BEGIN]") == shots + 1


def test_windows_line_ends_become_line_feeds(file: Path) -> None:
    for task in tasks_of(file, split="all"):
        assert "\r" not in task.prompt + task.reference + task.after


def test_canonical_solutions_pass_and_others_fail(file: Path) -> None:
    tasks = tasks_of(file, split="all")
    assert all(passes([program_of(task, task.reference) for task in tasks]))
    wrong = [task.reference.replace("+", "-") for task in tasks]
    assert not any(passes([program_of(task, text) for task, text in zip(tasks, wrong, strict=True)]))
    assert not any(passes([program_of(task, "") for task in tasks[:3]]))


def test_setup_code_comes_between_solution_and_tests(tmp_path: Path) -> None:
    node = entry(
        11,
        code="class Node:\r\n  def __init__(self, x):\r\n    self.x = x\r\n",
        test_setup_code="root = Node(4)\r\nother = root",
        test_list=["assert other.x == 4"],
    )
    task = tasks_of(write_jsonl(tmp_path / "setup.jsonl", [node]), shots=0)[0]
    assert task.after == "\nroot = Node(4)\nother = root\nassert other.x == 4\n"
    assert passes([program_of(task, task.reference)]) == [True]


@pytest.mark.parametrize("as_lines", [True, False])
def test_sanitized(tmp_path: Path, as_lines: bool) -> None:
    entries = [sanitized(number) for number in (2, 3, 4, 11)]
    path = tmp_path / "sanitized-mbpp.json"
    if as_lines:
        write_jsonl(path, entries)
    else:
        path.write_text(json.dumps(entries, indent=2))
    (task,) = tasks_of(path, sanitized=True)
    assert "your task: Write a function to get the root of x plus 11. Your code" in task.prompt
    assert task.after.startswith("\nimport math\nfrom math import isclose\nassert isclose(")
    assert passes([program_of(task, task.reference), program_of(task, "def root(x): return x")]) == [True, False]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"task_id": ', r"line 2: is no JSON"),
        ("[1]", r"line 2: must be a JSON object, not list"),
        (json.dumps(entry(11, task_id="11")), r"line 2: task_id must be a whole number\.$"),
        (json.dumps(entry(11, task_id=True)), r"line 2: task_id must be a whole number"),
        (json.dumps(entry(11, code=None)), r"line 2: code must be a text"),
        (json.dumps(entry(11, test_list="assert f()")), r"line 2: test_list must be a list of texts"),
        (json.dumps(entry(11, test_list=[1])), r"line 2: test_list must be a list of texts"),
        (json.dumps(entry(11, test_list=[])), r"line 2: a task needs a test"),
        (json.dumps(entry(11, code=" \n")), r"line 2: a task needs .* code"),
        (json.dumps(entry(2)), r"line 2: task_id 2 is taken already, by .*, line 1"),
        (json.dumps(sanitized(11)), r"line 2: text must be a text\. With eval\.mbpp\.sanitized=false it needs task_id"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, bad: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(entry(2)) + "\n" + bad + "\n")
    with pytest.raises(EvaluationError, match=message) as caught:
        tasks_of(path)
    assert "bad.jsonl" in str(caught.value)


def test_a_sanitized_list_that_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('[\n{"task_id": 1},\n')
    with pytest.raises(EvaluationError, match=r"list\.json, line 3: is no JSON"):
        tasks_of(path, sanitized=True)
    path.write_text(json.dumps([sanitized(2), {"task_id": 3}]))
    with pytest.raises(EvaluationError, match=r"list\.json, entry 2: prompt must be a text"):
        tasks_of(path, sanitized=True)


def test_examples_that_are_missing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "few.jsonl", [entry(number) for number in (2, 3, 11)])
    with pytest.raises(EvaluationError, match=r"eval\.mbpp\.shots=3: .*few\.jsonl holds only 2 of the tasks 1 to 10"):
        tasks_of(path)
    assert [task.id for task in tasks_of(path, shots=2)] == ["mbpp/11"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for suite in (Mbpp(path=str(tmp_path / "none.jsonl")), Mbpp(path=str(tmp_path))):
        with pytest.raises(EvaluationError, match=r"eval\.mbpp\.path=.*cannot be read"):
            suite.tasks(NOWHERE)
        with pytest.raises(EvaluationError, match=r"eval\.mbpp\.path="):
            suite.identity()
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe4"}')
    with pytest.raises(EvaluationError, match="no text in UTF-8"):
        tasks_of(tmp_path / "latin.jsonl")


def test_identity_is_of_the_content(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    assert Mbpp(path=str(file)).identity() == Mbpp(path=str(copy)).identity()
    copy.write_bytes(file.read_bytes() + b"\n")
    assert Mbpp(path=str(file)).identity() != Mbpp(path=str(copy)).identity()


def test_the_hub_is_asked_for_all_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(path: str, name: str, revision: str | None) -> dict[str, list[dict[str, Any]]]:
        asked.append((path, name, revision))
        return {"test": [entry(11)], "prompt": [entry(number) for number in (2, 3, 4)]}

    monkeypatch.setattr("datasets.load_dataset", load)
    assert [task.id for task in Mbpp(split="all", shots=2, revision="abc").tasks(NOWHERE)] == [
        *("mbpp/2", "mbpp/3", "mbpp/4", "mbpp/11")
    ]
    assert asked == [("google-research-datasets/mbpp", "full", "abc")]


def test_without_the_network_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(EvaluationError, match=r"no route to the hub Without the network, .*eval\.mbpp\.path="):
        Mbpp().tasks(NOWHERE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "train"}, r"eval\.mbpp\.split='train': must be test or all"),
        ({"shots": 10}, r"eval\.mbpp\.shots=10"),
        ({"budget": 0}, r"eval\.mbpp\.budget=0"),
    ],
)
def test_keys_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mbpp(**settings)
