"""Lines of held-out files: which are chosen, where the prompt ends, and that text alone decides."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kldistill.corpus.documents import Document
from kldistill.evaluation.judge import judge_text
from kldistill.evaluation.suites.completion import Completion, places_of, terms_of
from kldistill.evaluation.suites.task import Sources, Task
from kldistill.runtime.errors import ConfigError
from kldistill.tokens.artifact import NewToken, write_tables

CODE = '''\
"""A docstring with attention_mask."""

import attention_mask
from package import (
    attention_mask,
    other,
)

# A comment on attention_mask.
def forward(x, attention_mask=None):
    """Another docstring:

    attention_mask is said here.
    """
    if attention_mask is None:
        attention_mask = make_mask(x)
    attention_masks = no_term_of_its_own
    return self.config.attend(x, attention_mask)
'''
TERMS = [" attention_mask", "self.config", "mask", " ", "\n\n", "(", "ä", "to tal", "\ufffd_x"]


def sources(folder: Path, documents: dict[str, str], terms: list[str] | None = None, train: str = "x = 1") -> Sources:
    """A corpus artifact and a tokens artifact with these test documents, new tokens and one text to train on."""
    (folder / "train.jsonl").write_text(json.dumps({"id": "train", "text": train}) + "\n")
    with (folder / "test.jsonl").open("w") as file:
        for name, text in documents.items():
            file.write(json.dumps({"id": name, "text": text}) + "\n")
    names = enumerate(TERMS if terms is None else terms)
    write_tables(folder, [NewToken(number, term, term, [], 1) for number, term in names], 0, None)
    return Sources(folder, folder, None)


def many(n: int = 40) -> dict[str, str]:
    """Documents whose lines differ, each line with one term."""
    return {
        f"d{d}.py": "".join(f"x{line} = call_{d}_{line}({line}, self.config, {d})\n" for line in range(30))
        for d in range(n)
    }


@pytest.fixture
def some(tmp_path: Path) -> Sources:
    return sources(tmp_path, many())


def line_of(task: Task, documents: dict[str, str]) -> str:
    name, _, number = task.id.rpartition(":")
    return documents[name].split("\n")[int(number) - 1]


def test_terms_are_words_of_one_piece() -> None:
    assert terms_of(TERMS) == ["attention_mask", "mask", "self.config"]
    assert terms_of(["::", "12", "_", "a", "ab", " ab", "_a"]) == ["_a", "ab"]


def test_lines_with_a_term_that_say_something() -> None:
    places = list(places_of(Document("a.py", CODE), terms_of(TERMS)))
    assert [place.line.strip() for place in places] == [
        "def forward(x, attention_mask=None):",
        "if attention_mask is None:",
        "attention_mask = make_mask(x)",
        "return self.config.attend(x, attention_mask)",
    ]
    # Where the terms begin: an underscore ends a word, so "mask" is a term in "attention_mask" and "make_mask".
    assert [place.terms for place in places] == [[15, 25], [7, 17], [8, 18, 30], [11, 33, 43]]
    for place in places:
        assert CODE[place.start :].startswith(place.line + "\n")
        assert CODE.split("\n")[place.number - 1] == place.line


def test_other_languages_and_broken_python_go_by_how_a_line_begins() -> None:
    text = "// self.config\n * self.config\nuse self.config;\n'''self.config\nx = (self.config\n"
    assert [place.line for place in places_of(Document("a.js", text), ["self.config"])] == ["x = (self.config"]
    assert [place.line for place in places_of(Document("a.py", text), ["self.config"])] == ["x = (self.config"]


def test_no_part_of_a_word_is_a_term() -> None:
    found = places_of(Document("a", "remask\nmasks\nmask2\na_mask_b\nmask.x\n"), ["mask"])
    assert [place.line for place in found] == ["a_mask_b", "mask.x"]


def test_whole_lines(some: Sources) -> None:
    tasks = Completion(n=50, where="line").tasks(some)
    assert len(tasks) == 50
    for task in tasks:
        assert task.reference == line_of(task, many())
        assert task.prompt.endswith("\n")
        assert (task.kind, task.stop, task.budget, task.group) == ("text", ["\n"], 160, task.id.split(":")[0])
        assert judge_text(task, task.reference) == (True, 1.0)
        assert many()[task.group].split(task.reference)[0].endswith(task.prompt)


def test_from_the_middle_on(some: Sources) -> None:
    """The prompt ends before the term and the blank in front of it, where no tokenizer has a token that spans it."""
    tasks = Completion(n=50, where="middle").tasks(some)
    assert len(tasks) == 50
    for task in tasks:
        head = task.prompt.rpartition("\n")[2]
        assert task.reference.startswith(" self.config")
        assert head.endswith(",") and head + task.reference == line_of(task, many())


def test_a_term_at_the_beginning_has_no_middle(tmp_path: Path) -> None:
    made = sources(tmp_path, {"a": "x = 1\nself.config = 1\n    self.config = 2\ny = self.config\n"})
    assert [task.reference for task in Completion(where="middle").tasks(made)] == [" self.config"]
    assert sorted(task.reference for task in Completion(where="line").tasks(made)) == [
        "    self.config = 2",
        "self.config = 1",
        "y = self.config",
    ]


def test_no_identifier_is_cut_in_two(tmp_path: Path) -> None:
    made = sources(tmp_path, {"a": "\nx = a_mask\ny = b.mask + c_mask\nz = d(mask)\n"})
    assert sorted(task.reference for task in Completion(where="middle").tasks(made)) == ["mask + c_mask", "mask)"]


def test_mixed_is_about_half_and_half(some: Sources) -> None:
    tasks = Completion(n=1000).tasks(some)
    assert 400 < sum(task.prompt.endswith("\n") for task in tasks) < 600


def test_the_seed_decides_and_not_the_order(tmp_path: Path, some: Sources) -> None:
    ids = [task.id for task in Completion(n=30).tasks(some)]
    (tmp_path / "other").mkdir()
    turned = sources(tmp_path / "other", dict(reversed(many().items())), list(reversed(TERMS)))
    assert ids == [task.id for task in Completion(n=30).tasks(turned)]
    assert ids != [task.id for task in Completion(n=30, seed=1).tasks(some)]
    # More lines keep what fewer lines had.
    assert ids == [task.id for task in Completion(n=60).tasks(some)][:30]


def test_prompts_are_whole_lines_within_the_budget(some: Sources) -> None:
    longest = 0
    for task in Completion(n=300, where="line", prompt_bytes=100).tasks(some):
        text = many()[task.group]
        assert len(task.prompt.encode()) <= 100
        at = text.index(task.reference) - len(task.prompt)
        assert at == 0 or text[at - 1] == "\n"
        longest = max(longest, len(task.prompt.encode()))
    assert longest > 60


def test_a_window_that_begins_with_a_line_keeps_it(tmp_path: Path) -> None:
    line = "x" * 31 + "\n"
    made = sources(tmp_path, {"a": "first\n" + line + "y = self.config\n"})
    (task,) = Completion(where="line", prompt_bytes=32).tasks(made)
    assert task.prompt == line


def test_a_long_last_line_is_cut_at_a_character(tmp_path: Path) -> None:
    made = sources(tmp_path, {"a": "x = '" + "é" * 50 + "'\ny = self.config\nz = '" + "é" * 50 + "', self.config\n"})
    whole = {task.id: task for task in Completion(where="line", prompt_bytes=32).tasks(made)}
    assert whole["a:2"].prompt == "é" * 15 + "'\n"
    middle = {task.id: task for task in Completion(where="middle", prompt_bytes=33).tasks(made)}
    assert middle["a:3"].prompt == "é" * 15 + "',"


def test_repeated_lines_count_once(tmp_path: Path) -> None:
    made = sources(tmp_path, {name: "def f():\n    return self.config\n" for name in "abc"})
    assert len(Completion(where="line").tasks(made)) == 1


def test_lines_without_a_prompt_and_long_lines_are_left_out(tmp_path: Path) -> None:
    made = sources(tmp_path, {"a": "self.config\n" + "x = self.config + " + "1" * 50 + "\n", "b": "\n\nself.config\n"})
    assert Completion(where="line", budget=40).tasks(made) == []
    assert [task.id for task in Completion(where="line", budget=160).tasks(made)] == ["a:2"]


def test_fewer_lines_than_wanted_are_all_taken_and_said(some: Sources, caplog: pytest.LogCaptureFixture) -> None:
    tasks = Completion(n=5000, where="line").tasks(some)
    assert len(tasks) == 40 * 29  # all but the first line of each document, which has no prompt
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "eval.completion.n=5000: the test documents have only 1160 unseen lines" in record.getMessage()
    for suite, limit in ((Completion(n=1160, where="line"), None), (Completion(n=5000, where="line"), 1000)):
        assert len(suite.tasks(dataclasses.replace(some, limit=limit))) == 1160
    assert len(caplog.records) == 1, "no word where as many are asked as are wanted"


def test_lines_that_stand_in_train_or_in_the_prompt_come_last_and_say_so(tmp_path: Path) -> None:
    text = "a = 1\nb = self.config\nc = 3\n    b = self.config\nd = self.config\ne = f(self.config)\n"
    made = sources(tmp_path, {"a": text}, train="def f():\n        d = self.config   \n")
    found = {task.id: task.seen for task in Completion(where="line").tasks(made)}
    assert found == {"a:2": [], "a:6": [], "a:4": ["prompt"], "a:5": ["train"]}
    assert set(list(found)[:2]) == {"a:2", "a:6"}, "a limit takes unseen lines first"
    assert [len(Completion(where="line", n=1, n_seen=n).tasks(made)) for n in (0, 1, 2, 9)] == [1, 2, 3, 3]
    middle = {task.id: task.seen for task in Completion(where="middle").tasks(made)}
    assert middle == found, "the line counts, not the part of it that is asked"


def test_a_domain_of_lines_that_train_has_gives_no_task(tmp_path: Path) -> None:
    text = "a = 1\nb = self.config\n"
    assert Completion().tasks(sources(tmp_path, {"a": text}, train=text)) == []


def test_no_tokenizer_has_a_part_in_it(tmp_path: Path, some: Sources) -> None:
    """New tokens that mean the same terms give the same tasks, whatever their ids, pieces and blanks."""
    (tmp_path / "other").mkdir()
    other = sources(
        tmp_path / "other", many(), ["self.config", "self.config ", " self.config", "attention_mask", "mask"]
    )
    assert Completion(n=30).tasks(other) == Completion(n=30).tasks(some)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"where": "end"}, r"eval\.completion\.where='end'"),
        ({"n_seen": -1}, r"eval\.completion\.n_seen=-1"),
        ({"n": 0}, r"eval\.completion\.n=0"),
        ({"budget": 0}, r"eval\.completion\.budget=0"),
        ({"prompt_bytes": 8}, r"eval\.completion\.prompt_bytes=8"),
    ],
)
def test_keys_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Completion(**settings)
