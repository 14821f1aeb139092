"""Cloze: canonical solutions of other suites' tasks with one blank to fill, among words of the same kind.

For models too weak to write a solution. Nothing is generated and nothing is run; every tokenizer ranks the same whole
texts, so what follows the blank counts too. It is the idea of CodeBERT's cloze test (Feng et al., 2020), with the
candidates of each blank from its own solution.
"""

import hashlib
import io
import keyword
import logging
import random
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from kldistill.evaluation.suites.others import programs_of
from kldistill.evaluation.suites.replacements import COMPARISONS, OPERATORS
from kldistill.evaluation.suites.task import Sources, Task
from kldistill.runtime.components import component
from kldistill.runtime.config import require

log = logging.getLogger(__name__)

KINDS = ("name", "number", "operator", "comparison")
_SYMBOLS = {
    "operator": sorted({symbol for symbol, _ in OPERATORS.values()}),
    "comparison": ["!=", "<", "<=", "==", ">", ">="],
}
assert set(_SYMBOLS["comparison"]) <= {symbol for symbol, _ in COMPARISONS.values()}


class Blank(NamedTuple):
    """A place in a text, what stands there, and what else might."""

    start: int
    end: int
    kind: str
    others: tuple[str, ...]


@component("suite")
@dataclass(frozen=True)
class Cloze:
    """The tasks of other suites, each as a choice of what stands in one blank of its canonical solution.

    A task whose solution has no place with enough candidates is left out.

    Attributes:
        suites: names of the suites; their tasks must have a canonical completion in Python. MBPP's are asked without
            solved examples in front.
        options: candidates for the blank, the right one among them. Chance is 1 / options.
        seed: draws the blanks and the candidates.
    """

    runs_code: ClassVar[bool] = False

    suites: list[str] = field(default_factory=lambda: ["mbpp"])
    options: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.suites), "eval.cloze.suites", self.suites, "name at least one other suite")
        require(self.options >= 2, "eval.cloze.options", self.options, "must be at least 2")

    def tasks(self, sources: Sources) -> list[Task]:
        """The tasks of all suites in turn. Raises ``EvaluationError``."""
        tasks: list[Task] = []
        left_out = 0
        for task in programs_of(self.suites, sources, "eval.cloze.suites"):
            options = self._options(task)
            if not options:
                left_out += 1
                continue
            tasks.append(Task(task.id, "choice", task.prompt, reference=options[0], options=options, group=task.group))
        if left_out:
            log.info(
                "cloze: %d of %d tasks left out, as no place in their solution has eval.cloze.options=%d candidates",
                left_out,
                left_out + len(tasks),
                self.options,
            )
        return tasks

    def identity(self) -> Mapping[str, Any]:
        """Nothing beside the fields and the sources."""
        return {}

    def _options(self, task: Task) -> list[str]:
        """The solution, and the same with other words in one place; none where no place has enough of them.

        The kind of the blank is drawn first, so that names, which are most, do not make up nearly all.
        """
        chance = random.Random(hashlib.sha256(f"{self.seed}\0{task.id}".encode()).hexdigest())
        found = [blank for blank in blanks(task.before, task.reference) if len(blank.others) >= self.options - 1]
        kinds = [kind for kind in KINDS if any(blank.kind == kind for blank in found)]
        if not kinds:
            return []
        kind = chance.choice(kinds)
        blank = chance.choice([blank for blank in found if blank.kind == kind])
        text = task.reference
        others = chance.sample(blank.others, self.options - 1)
        return [text, *(text[: blank.start] + other + text[blank.end :] for other in others)]


def blanks(before: str, text: str) -> Iterator[Blank]:
    """The places of ``text`` that may be left blank.

    Candidates for a name are the other names that the program has used up to there (no attributes, keywords or names
    that are just defined), for a number the program's other whole numbers and its neighbours, for an operator the
    others of its kind.

    Args:
        before: the program up to the text. None of its places is left blank, but its names and numbers are candidates.
    """
    program = before + text
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(program).readline))
    except (tokenize.TokenError, SyntaxError):
        return
    begins = [0]
    for line in program.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    numbers = {one.string for one in tokens if one.type == tokenize.NUMBER and one.string.isdecimal()}
    names: dict[str, None] = {}
    for index, token in enumerate(tokens):
        start, end = begins[token.start[0] - 1] + token.start[1], begins[token.end[0] - 1] + token.end[1]
        kind, others = "", list[str]()
        if token.type == tokenize.NAME and _is_name(tokens, index):
            kind, others = "name", [name for name in names if name != token.string]
            known = token.string in names
            names[token.string] = None
            if not known:
                continue  # where a name comes first, nothing before it tells
        elif token.type == tokenize.NUMBER and token.string.isdecimal():
            value = int(token.string)
            near = {str(max(0, value + step)) for step in (-1, 1, 2)}
            kind, others = "number", sorted((numbers | near | {"0", "1"}) - {token.string})
        elif token.type == tokenize.OP:
            kind = next((kind for kind, symbols in _SYMBOLS.items() if token.string in symbols), "")
            others = [symbol for symbol in _SYMBOLS.get(kind, []) if symbol != token.string]
            if kind == "operator" and not _is_binary(tokens, index):
                continue
        if kind and start >= len(before):
            yield Blank(start - len(before), end - len(before), kind, tuple(others))


def _is_name(tokens: Sequence[tokenize.TokenInfo], index: int) -> bool:
    """Whether a word stands for a value: no keyword, attribute, argument's name, or name of a definition."""
    word, before, after = tokens[index].string, tokens[index - 1].string if index else "", tokens[index + 1].string
    if keyword.iskeyword(word) or before in (".", "def", "class", "import", "from", "as"):
        return False
    inside = after == "=" and before in ("(", ",")
    return not inside


def _is_binary(tokens: Sequence[tokenize.TokenInfo], index: int) -> bool:
    """Whether an operator stands between two values: no sign, no starred argument."""
    before = tokens[index - 1]
    if before.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
        return not keyword.iskeyword(before.string)
    return before.string in (")", "]", "}")
