"""What an answer to a task is worth: the program to run, the comparison with the reference line, the choice.

Pure functions of text and numbers; programs are run elsewhere (``kldistill.evaluation.sandbox``).
"""

import ast
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz.distance import Indel

from kldistill.evaluation.suites.task import Task


class TextScore(NamedTuple):
    """How near a completion is to the reference.

    Attributes:
        exact_match: whether both are the same words between white space, however much of it.
        edit_similarity: 0 (nothing in common) to 1 (equal); CodeXGLUE prints it times 100.
    """

    exact_match: bool
    edit_similarity: float


def program_of(task: Task, completion: str, ended: str = "stop") -> str:
    """The program that passes if, and only if, the completion solves the task.

    Args:
        task: a task of kind ``program``.
        completion: what the model wrote.
        ended: why it ended there; with ``budget`` it broke off anywhere, and goes back to its last whole statement.
    """
    assert task.kind == "program", f"{task.id} is no task of kind program"
    if ended == "budget":
        completion = whole_statements(task.before, completion)
    return task.before + completion + task.after


def whole_statements(before: str, completion: str) -> str:
    """A completion without what it began and could not finish: the most lines of it that parse behind ``before``.

    All of it where no number of lines parses, or where it holds no line at all.
    """
    lines = completion.splitlines(keepends=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        for number in range(len(lines), 0, -1):
            kept = "".join(lines[:number])
            try:
                ast.parse(before + kept)
            except (SyntaxError, ValueError, MemoryError, RecursionError):
                continue
            return kept
    return completion


def judge_text(task: Task, completion: str) -> TextScore:
    """Compare a completion with the task's reference as the evaluator of CodeXGLUE's line completion does.

    Exact match compares the words between white space, so that ``x  =  1`` matches ``x = 1`` and ``x=1`` does not; edit
    similarity the texts without white space at their ends (Lu et al., 2021; RepoBench does the same, Liu et al., 2023).
    """
    assert task.kind == "text", f"{task.id} is no task of kind text"
    return TextScore(
        exact_match=completion.split() == task.reference.split(),
        edit_similarity=edit_similarity(completion.strip(), task.reference.strip()),
    )


def judge_choice(log_probabilities: Sequence[float]) -> bool:
    """Whether the first option is strictly the most probable one. A tie is wrong, and so is what is no number.

    Args:
        log_probabilities: total log-probability of each option after the prompt, in nats; the canonical option first.
    """
    assert len(log_probabilities) >= 2, "a choice needs at least two options"
    first, *others = log_probabilities
    return all(first > other for other in others)


def edit_similarity(left: str, right: str) -> float:
    """1 - d / (sum of both lengths), where d counts insertions and deletions; 1 for two empty texts.

    This is ``Levenshtein.ratio``, which ``fuzzywuzzy.fuzz.ratio`` (CodeXGLUE, RepoBench) rounds to whole percents;
    nothing is rounded here. It is twice the length of the longest common subsequence over both lengths.
    """
    return Indel.normalized_similarity(left, right)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples passes: 1 - C(n-c, k) / C(n, k) (Chen et al., 2021).

    Written as a product of c factors between 0 and 1, which never overflows.

    Args:
        n: samples of the task.
        c: how many of them pass.
        k: samples that may be drawn, at most n.
    """
    assert 0 <= c <= n and 1 <= k <= n, f"no pass@{k} of {c} passes in {n} samples"
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / total for total in range(n - c + 1, n + 1))
