"""Stage ``tasks``: the tasks of one suite, made once and the same for every model of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kldistill.evaluation.config import TasksConfig
from kldistill.evaluation.sandbox import Sandbox, Verdict
from kldistill.evaluation.suites.task import TASKS, Sources, Suite, write
from kldistill.runtime.components import find
from kldistill.runtime.errors import EvaluationError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job


def build(cfg: TasksConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Write the suite's tasks.

    Args:
        inputs: ``corpus`` and ``tokens``.
        out: gets ``tasks.jsonl`` and ``summary.json``.

    Raises:
        EvaluationError: the suite has no task here.
        ValueError: what else the suite refuses.
    """

    def passes(programs: Sequence[str]) -> list[bool]:
        description = f"Checking programs of {cfg.name}"
        with Sandbox(cfg.limits, allow_unsandboxed=cfg.allow_unsandboxed) as sandbox:
            outcomes = sandbox.run(programs, description=description)
        return [outcome.verdict is Verdict.PASSED for outcome in outcomes]

    uses = {name: suite_of(node, name) for name, node in cfg.uses.items()}
    sources = Sources(inputs["corpus"], inputs["tokens"], passes, uses, cfg.limit)
    tasks = suite_of(cfg.suite, cfg.name).tasks(sources)[: cfg.limit]
    if not tasks:
        raise EvaluationError(
            f"eval.suites: {cfg.name} has no task here. Leave it out, or change eval.{cfg.name} (or the corpus)."
        )
    assert len({task.id for task in tasks}) == len(tasks), f"two tasks of {cfg.name} have one id"
    write(out / TASKS, tasks)
    figures = {f"tasks/{cfg.name}": len(tasks)}
    write_summary(out, figures)
    job.log(figures)


def suite_of(node: Mapping[str, Any], name: str) -> Suite:
    """The suite ``eval.NAME`` that a node describes; runs its own checks of its keys. Raises ``ConfigError``."""
    return find(node, "suite", f"eval.{name}")()


def identity(cfg: TasksConfig) -> dict[str, Any]:
    """What the tasks depend on beside configuration and corpus: files and packages of the suites."""
    nodes = {cfg.name: cfg.suite, **cfg.uses}
    return {name: dict(suite_of(node, name).identity()) for name, node in nodes.items()}
