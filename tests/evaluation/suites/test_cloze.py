"""Cloze: one blank in a canonical solution, on tasks made up here."""

import ast
import json
from pathlib import Path

import pytest

from kldistill.evaluation.suites.cloze import KINDS, Blank, Cloze, blanks
from kldistill.evaluation.suites.humaneval import HumanEval
from kldistill.evaluation.suites.mbpp import Mbpp
from kldistill.evaluation.suites.task import Sources, Suite
from kldistill.runtime.errors import ConfigError, EvaluationError

SOLUTION = (
    "def total(items, start):\n  value = start\n  for item in items:\n    value = value + item * 2\n  return value"
)
CODE = SOLUTION.replace("\n", "\r\n")  # as published


@pytest.fixture
def mbpp(tmp_path: Path) -> Mbpp:
    entries = [
        {"task_id": 11, "text": "Add up.", "code": CODE, "test_list": ["assert total([1], 0) == 2"]},
        {
            "task_id": 12,
            "text": "Nothing.",
            "code": "def nothing():\n  pass",
            "test_list": ["assert nothing() is None"],
        },
    ]
    file = tmp_path / "mbpp.jsonl"
    file.write_text("".join(json.dumps(one | {"test_setup_code": ""}) + "\n" for one in entries))
    return Mbpp(path=str(file), split="all", shots=0)


def sources(**suites: Suite) -> Sources:
    return Sources(Path("corpus"), Path("tokens"), None, suites)


def of(text: str, before: str = "") -> list[tuple[str, Blank]]:
    return [(text[blank.start : blank.end], blank) for blank in blanks(before, text)]


def test_the_places_of_a_solution() -> None:
    found = of(SOLUTION)
    assert [(word, blank.kind) for word, blank in found] == [
        ("start", "name"), ("items", "name"), ("value", "name"), ("value", "name"), ("+", "operator"), ("item", "name"),
        ("*", "operator"), ("2", "number"), ("value", "name"),
    ]  # fmt: skip
    by_word = {word: blank.others for word, blank in found}
    assert by_word["start"] == ("items", "value"), "names up to there; not the function that is just defined"
    assert by_word["2"] == ("0", "1", "3", "4")
    assert by_word["*"] == ("%", "&", "**", "+", "-", "/", "//", "<<", ">>", "^", "|")


def test_what_is_no_place() -> None:
    assert [word for word, _ in of("f(x)\nf(key=x, *x)\nx.f(-x)\nf = x")] == ["f", "x", "x", "x", "x", "f", "x"]
    assert of("def f(:\n  'never ends") == []
    assert of("é = 1\né + é")[-1][0] == "é", "places are counted in characters"


def test_what_stands_before_gives_candidates_and_no_blanks() -> None:
    found = of("  return b < a\n", before="def f(a, b, c):\n")
    assert [(word, blank.others) for word, blank in found] == [
        ("b", ("a", "c")), ("<", ("!=", "<=", "==", ">", ">=")), ("a", ("b", "c")),
    ]  # fmt: skip


def test_tasks_that_are_left_out_are_counted(mbpp: Mbpp, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="kldistill")
    assert len(Cloze().tasks(sources(mbpp=mbpp))) == 1
    assert "cloze: 1 of 2 tasks left out, as no place in their solution has eval.cloze.options=4" in caplog.text


def test_every_option_differs_in_the_one_blank(mbpp: Mbpp) -> None:
    kinds = set()
    for seed in range(12):
        (task,) = Cloze(seed=seed).tasks(sources(mbpp=mbpp))  # the other has no blank
        assert (task.id, task.kind, task.group) == ("mbpp/11", "choice", "mbpp/11")
        assert task.options[0] == task.reference == SOLUTION and len(set(task.options)) == 4
        assert "Add up." in task.prompt and SOLUTION not in task.prompt
        places = []
        for option in task.options[1:]:
            ast.parse(option)
            places += [
                blank
                for _, blank in of(SOLUTION)
                for other in blank.others
                if SOLUTION[: blank.start] + other + SOLUTION[blank.end :] == option
            ]
        assert len(set(places)) == 1 and len(places) == 3
        kinds.add(places[0].kind)
    assert kinds == set(KINDS) - {"comparison"}
    assert Cloze(seed=3).tasks(sources(mbpp=mbpp)) == Cloze(seed=3).tasks(sources(mbpp=mbpp))


def test_solutions_that_complete_their_prompt() -> None:
    tasks = Cloze(["humaneval"]).tasks(sources(humaneval=HumanEval()))
    originals = {task.id: task for task in HumanEval().tasks(sources())}
    assert len(tasks) > 150
    for task in tasks:
        assert task.options[0] == originals[task.id].reference and task.prompt == originals[task.id].prompt
        ast.parse(originals[task.id].before + task.options[1])


def test_what_is_no_suite_of_programs_is_refused(mbpp: Mbpp) -> None:
    with pytest.raises(EvaluationError, match=r"there is no suite 'other' \(there are: mbpp\)"):
        Cloze(["other"]).tasks(sources(mbpp=mbpp))
    with pytest.raises(ConfigError, match=r"^eval\.cloze\.options=1: must be at least 2"):
        Cloze(options=1)
    with pytest.raises(ConfigError, match="name at least one other suite"):
        Cloze([])
