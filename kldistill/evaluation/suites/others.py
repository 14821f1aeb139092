"""The tasks of other suites, for suites that are made of them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from kldistill.evaluation.suites.mbpp import Mbpp
from kldistill.evaluation.suites.task import Sources, Suite, Task
from kldistill.runtime.errors import EvaluationError


def tasks_of(
    names: Sequence[str], sources: Sources, key: str, fit: Callable[[Task], bool], otherwise: str
) -> Iterator[Task]:
    """The tasks of all these suites in turn.

    Args:
        names: of the suites.
        sources: what they are made from.
        key: of the configuration that names them, for errors.
        fit: whether a task can be used.
        otherwise: what the tasks of a suite are or have where one does not fit, for the error.

    Raises:
        EvaluationError: there is no such suite, or one of its tasks does not fit.
    """
    for name in names:
        suite = sources.suites.get(name)
        if suite is None:
            known = ", ".join(sources.suites) or "none"
            raise EvaluationError(f"{key}={list(names)}: there is no suite {name!r} (there are: {known}).")
        for task in without_shots(suite).tasks(sources):
            if not fit(task):
                raise EvaluationError(f"{key}={list(names)}: the tasks of {name} {otherwise}.")
            yield task


def programs_of(names: Sequence[str], sources: Sources, key: str) -> Iterator[Task]:
    """All their tasks, however many are asked for in the end, each of which must be a program: see ``tasks_of``."""
    everything = dataclasses.replace(sources, limit=None)
    return tasks_of(names, everything, key, lambda task: task.kind == "program", "are no programs")


def without_shots(suite: Suite) -> Suite:
    """MBPP without its solved examples, which cost four times the text and tell nothing about the solutions."""
    return dataclasses.replace(suite, shots=0) if isinstance(suite, Mbpp) else suite
