"""A task, and what every suite is: plain data on disk, the same for every model and every tokenizer."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from kldistill.runtime.errors import ArtifactError

Kind = Literal["program", "text", "choice", "solution"]


@dataclass(frozen=True)
class Task:
    """One task. Everything is text: no tokenizer had a part in it.

    Attributes:
        id: unique in its suite, and stable.
        kind: how an answer is judged. ``program``: ``before + completion + after`` is a Python program, which passes
            if it runs to its end. ``text``: the completion is compared with ``reference``. ``choice``: nothing is
            written; ``options[0]`` is right if it has the highest total log-probability after ``prompt``. ``solution``:
            nothing is written; what counts is how many bits a byte the ``reference`` takes after ``prompt``.
        prompt: what the model goes on from.
        budget: bytes of text that may be written, at most.
        stop: the completion ends before the first of these that turns up in it.
        before, after: what stands around the completion in the program.
        reference: the canonical completion.
        options: continuations to choose from, the canonical one first.
        seen: where the line to write stands verbatim already: ``train`` (the corpus' training split), ``prompt``; empty
            for a line that the model cannot have memorised here.
        group: tasks of one group are no independent evidence (lines of one document): intervals resample groups.
    """

    id: str
    kind: Kind
    prompt: str
    budget: int = 0
    stop: list[str] = field(default_factory=list)
    before: str = ""
    after: str = ""
    reference: str = ""
    options: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    group: str = ""


class Suite(Protocol):
    """A source of tasks: a frozen dataclass whose fields are the keys of its YAML file, checked in __post_init__.

    Attributes:
        runs_code: whether programs are run for it, so that a sandbox is needed. It belongs to the class, and is no key.
    """

    runs_code: ClassVar[bool]

    def tasks(self, sources: "Sources") -> list[Task]:
        """All tasks, in a fixed order (a limit takes the first ones). Raises ``ValueError`` subclasses."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What the tasks depend on beside the fields and the sources: a file's digest, a package's version."""
        ...


@dataclass(frozen=True)
class Sources:
    """What a suite may draw on.

    Attributes:
        corpus: folder of the ``corpus`` artifact (``kldistill.corpus.documents.read_documents(corpus, "test")``).
        tokens: folder of the ``tokens`` artifact (``new_tokens.jsonl``).
        passes: ``passes(programs)`` runs programs in the sandbox and says of each whether it passed.
        suites: the other suites of the configuration by name, for a suite that is made of their tasks.
        limit: tasks wanted at most, so that nothing expensive is done for tasks that are not.
    """

    corpus: Path
    tokens: Path
    passes: Any  # Callable[[Sequence[str]], list[bool]]
    suites: Mapping[str, Suite] = field(default_factory=dict)
    limit: int | None = None


def stripped_lines(text: str) -> Iterator[str]:
    """The lines of a text without white space at their ends, blank ones left out: what makes two lines the same."""
    return (line for line in map(str.strip, text.split("\n")) if line)


TASKS = "tasks.jsonl"  # of the artifact


def write(path: Path, tasks: Iterable[Task]) -> None:
    """Write tasks, one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for task in tasks:
            file.write(json.dumps(asdict(task)) + "\n")


def read(path: Path) -> list[Task]:
    """Tasks as ``write`` wrote them. Raises ``ArtifactError``."""
    try:
        with path.open(encoding="utf-8") as file:
            return [Task(**json.loads(line)) for line in file]
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: the tasks cannot be read: {error}") from error
