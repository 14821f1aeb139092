"""MBPP: 974 tasks of basic Python with three assertions each (Austin et al., 2021), few-shot as published."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from kldistill.corpus.documents import line_feeds
from kldistill.evaluation.suites.task import Sources, Task
from kldistill.runtime.components import component
from kldistill.runtime.config import require
from kldistill.runtime.errors import EvaluationError

log = logging.getLogger(__name__)

STOP = ["[DONE]"]
TEST = range(11, 511)
PUBLISHED = {(False, "test"): 500, (False, "all"): 974, (True, "test"): 257, (True, "all"): 427}  # by sanitized, split
# Tasks 1 to 10 are there to be shown; the published protocol shows these three. The others step in where one of the
# three is itself asked.
SHOWN = (2, 3, 4, 5, 6, 7, 8, 9, 10, 1)


class Problem(NamedTuple):
    """One task as its authors give it, with line feeds for line ends (the published code has Windows' line ends)."""

    number: int
    text: str
    code: str
    tests: list[str]
    setup: list[str]


@component("suite")
@dataclass(frozen=True)
class Mbpp:
    """The tasks of a local file, or of the hub.

    Attributes:
        path: the file of the original authors, ``mbpp.jsonl`` (or ``sanitized-mbpp.json`` with ``sanitized``); null
            loads ``dataset`` from the hub.
        dataset: its name on the hub.
        revision: branch, tag or commit on the hub; null for the newest.
        split: ``test`` is tasks 11 to 510, as published; ``all`` is all of them. Tasks 2, 3 and 4 are then asked too:
            each is shown tasks 5, ... in its own place, never itself.
        sanitized: the 427 tasks that were verified by hand, with clearer texts.
        shots: solved tasks in front of the one that is asked: 2, 3 and 4 as published.
        budget: bytes of a completion, at most. 99 % of the canonical solutions have less than 642.
    """

    runs_code: ClassVar[bool] = True

    path: str | None = None
    dataset: str = "google-research-datasets/mbpp"
    revision: str | None = None
    split: str = "test"
    sanitized: bool = False
    shots: int = 3
    budget: int = 512

    def __post_init__(self) -> None:
        require(self.split in ("test", "all"), "eval.mbpp.split", self.split, "must be test or all")
        require(0 <= self.shots <= 9, "eval.mbpp.shots", self.shots, "must be 0 to 9 (3 as published)")
        require(self.budget >= 1, "eval.mbpp.budget", self.budget, "must be at least 1 byte")

    def tasks(self, sources: Sources) -> list[Task]:
        """The tasks in the order of their numbers.

        Raises:
            EvaluationError: the file or the dataset cannot be read, or lacks what the protocol needs.
        """
        problems = {problem.number: problem for problem in self._problems()}
        asked = [number for number in sorted(problems) if self.split == "all" or number in TEST]
        published = PUBLISHED[self.sanitized, self.split]
        if len(asked) < (published if sources.limit is None else min(published, sources.limit)):
            log.warning(
                "eval.mbpp.split=%s: %s has only %d of the %d published tasks, so figures are not those of others.",
                self.split,
                self.path or self.dataset,
                len(asked),
                published,
            )
        return [self._task(problems[number], self._shown(problems, number)) for number in asked]

    def identity(self) -> Mapping[str, Any]:
        """Digest of the local file. Raises ``EvaluationError`` if it cannot be read."""
        return {"sha256": hashlib.sha256(self._bytes(self.path)).hexdigest()} if self.path else {}

    def _task(self, problem: Problem, shown: Iterable[Problem]) -> Task:
        shots = "".join(f"{question(shot)}{shot.code}\n[DONE]\n\n" for shot in shown)
        name = f"mbpp/{problem.number}"
        return Task(
            id=name,
            kind="program",
            prompt=shots + question(problem),
            budget=self.budget,
            stop=list(STOP),
            after="\n" + "\n".join([*problem.setup, *problem.tests]) + "\n",
            reference=problem.code,
            group=name,
        )

    def _shown(self, problems: Mapping[int, Problem], number: int) -> list[Problem]:
        """The solved tasks in front of one."""
        here = [other for other in SHOWN if other in problems and other != number]
        if len(here) < self.shots:
            raise EvaluationError(
                f"eval.mbpp.shots={self.shots}: {self.path or self.dataset} holds only {len(here)} of the tasks 1 to "
                "10, which are shown as examples. Give the whole file, or fewer shots."
            )
        return [problems[other] for other in here[: self.shots]]

    def _problems(self) -> Iterator[Problem]:
        known: dict[int, str] = {}
        for where, entry in self._local(self.path) if self.path else self._hub():
            problem = self._problem(where, entry)
            if problem.number in known:
                raise EvaluationError(
                    f"{where}: task_id {problem.number} is taken already, by {known[problem.number]}."
                )
            known[problem.number] = where
            yield problem

    def _problem(self, where: str, entry: Any) -> Problem:
        """An entry of the file, checked."""
        text = "prompt" if self.sanitized else "text"
        kinds: dict[str, type] = {"task_id": int, text: str, "code": str, "test_list": list}
        kinds |= {"test_imports": list} if self.sanitized else {"test_setup_code": str}
        if not isinstance(entry, dict):
            raise EvaluationError(f"{where}: must be a JSON object, not {type(entry).__name__}.")
        for key, kind in kinds.items():
            value = entry.get(key)
            if type(value) is not kind or (
                isinstance(value, list) and not all(isinstance(item, str) for item in value)
            ):
                hint = f" With eval.mbpp.sanitized={str(self.sanitized).lower()} it needs {', '.join(kinds)}."
                raise EvaluationError(f"{where}: {key} must be {_KINDS[kind]}.{hint if key not in entry else ''}")
        if not entry["test_list"] or not entry["code"].strip():
            raise EvaluationError(f"{where}: a task needs a test in test_list, and code.")
        setup = entry["test_imports"] if self.sanitized else [entry["test_setup_code"]]
        return Problem(
            number=entry["task_id"],
            text=line_feeds(entry[text]),
            code=line_feeds(entry["code"]),
            tests=[line_feeds(test) for test in entry["test_list"]],
            setup=[line_feeds(line) for line in setup if line.strip()],
        )

    def _local(self, path: str) -> Iterator[tuple[str, Any]]:
        """Entries of a local file and where they stand: one JSON object a line, or one JSON list of them."""
        try:
            text = self._bytes(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise EvaluationError(f"eval.mbpp.path={path!r}: is no text in UTF-8 ({error.reason}).") from error
        if text.lstrip().startswith("["):
            try:
                entries = json.loads(text)
            except json.JSONDecodeError as error:
                raise EvaluationError(f"{path}, line {error.lineno}: is no JSON ({error.msg}).") from error
            yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1))
            return
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise EvaluationError(f"{path}, line {number}: is no JSON ({error.msg}).") from error

    def _hub(self) -> Iterator[tuple[str, Any]]:
        """Rows of the dataset, of all its splits."""
        from datasets import load_dataset  # Takes seconds to import; only who uses it pays.

        try:
            splits: Any = load_dataset(self.dataset, "sanitized" if self.sanitized else "full", revision=self.revision)
            for split, rows in splits.items():
                yield from ((f"{self.dataset}, {split}, row {number}", dict(row)) for number, row in enumerate(rows))
        except (OSError, ValueError, RuntimeError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EvaluationError(
                f"eval.mbpp.dataset={self.dataset!r} cannot be loaded: {told} Without the network, give the original "
                "file: eval.mbpp.path=mbpp.jsonl."
            ) from error

    def _bytes(self, path: str) -> bytes:
        try:
            return Path(path).expanduser().read_bytes()
        except OSError as error:
            raise EvaluationError(
                f"eval.mbpp.path={path!r}: cannot be read ({error.strerror}). Give the original authors' mbpp.jsonl, "
                "or null to load it from the hub."
            ) from error


_KINDS = {int: "a whole number", str: "a text", list: "a list of texts"}


def question(problem: Problem) -> str:
    """A task as it is put to the model (Austin et al., 2021, section 3): what to write, and the tests."""
    tests = "\n".join(problem.tests)
    return (
        f"You are an expert Python programmer, and here is your task: {problem.text} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )
