"""Which steps a run has: the function of each, what it reads, and what of the configuration it sees."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kldistill import interpret
from kldistill.corpus import stage as corpus_stage
from kldistill.evaluation import answer
from kldistill.evaluation.config import EvaluateConfig, GenerateConfig, TasksConfig
from kldistill.evaluation.score import evaluate_original, evaluate_student
from kldistill.evaluation.suites import stage as tasks_stage
from kldistill.export import stage as export_stage
from kldistill.model import stage as model_stage
from kldistill.pipeline.compose import Config, resolved
from kldistill.rows import stage as rows_stage
from kldistill.runtime.artifacts import fingerprint
from kldistill.runtime.job import Job
from kldistill.tokens import stage as tokens_stage
from kldistill.tokens.config import TokensConfig
from kldistill.training import distill, finetune, teacher
from kldistill.training.config import TeacherConfig


@dataclass(frozen=True)
class Step:
    """One step of the pipeline: a stage, or one of several that a stage is made of.

    Attributes:
        run: the stage's function: (its config slice, folders of its inputs, its output folder, job).
        config: cuts the stage's slice out of the whole configuration; a stage never sees more.
        inputs: what the stage calls each input, and which step makes it.
        group: the name that ``stages=[...]`` and ``force=[...]`` use; empty where it is the step's own.
        optional: steps whose artifacts it reads too if they are part of the run anyway.
        version: raise it when the stage would write something else for the same slice and inputs.
        identity: what the slice's source holds right now, where the slice alone only names it.
        resumable: the function goes on from what an interrupted run left in its output folder.
        together: where a run has several processes, all of them run the function; otherwise the main process alone.
    """

    run: Callable[[Any, Mapping[str, Path], Path, Job], None]
    config: Callable[[Config], Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    optional: Sequence[str] = ()
    version: int = 1
    identity: Callable[[Any], Mapping[str, Any]] | None = None
    resumable: bool = False
    together: bool = False

    def sources(self, present: Mapping[str, Any]) -> dict[str, str]:
        """What the stage reads in a run that has the steps ``present``."""
        return {**self.inputs, **{name: name for name in self.optional if name in present}}


Steps = Mapping[str, Step]


def steps_of(cfg: Config) -> dict[str, Step]:
    """The steps of this configuration, in the order in which they run."""
    suites = list(dict.fromkeys(cfg.eval.suites))
    found = {
        "model": Step(model_stage.build, lambda cfg: cfg.model, identity=model_stage.identity),
        "corpus": Step(corpus_stage.build, lambda cfg: cfg.corpus, identity=corpus_stage.identity),
        "tokens": Step(tokens_stage.build, lambda cfg: cfg.tokens, _same("model", "corpus"), identity=_terms),
        "init": Step(rows_stage.build, lambda cfg: cfg.init, _same("model", "tokens")),
    }
    for suite in suites:
        found[f"tasks_{suite}"] = Step(
            tasks_stage.build, _tasks(suite), _same("corpus", "tokens"), group="evaluate", identity=tasks_stage.identity
        )
    found["evaluate_original"] = Step(
        evaluate_original, _evaluate("original"), _same("model", "corpus"), group="evaluate"
    )
    found |= _generation("original", suites, _same("model"))
    found |= _evaluation("init", "init", [])
    covers = cfg.distill.draw == "cover"  # then the text depends on the new tokens
    found["teacher"] = Step(
        teacher.build, _teacher, _same("model", "corpus", *(["tokens"] if covers else [])), version=2
    )
    sources = _same("model", "tokens", "init", "teacher")
    found["distill"] = Step(distill.build, lambda cfg: cfg.distill, sources, resumable=True, together=True)
    found |= _evaluation("distilled", "distill", suites)
    last = "distill"
    if cfg.finetune.method != "none":
        last = "finetune"
        sources = {**_same("model", "tokens", "corpus", "teacher"), "rows": "distill"}
        found[last] = Step(finetune.build, lambda cfg: cfg.finetune, sources, version=2, resumable=True, together=True)
        found |= _evaluation("finetuned", last, suites)
    sources = {**_same("model", "tokens", "corpus", "init"), "rows": last}
    found["interpret"] = Step(interpret.build, lambda cfg: cfg.interpret, sources)
    measured = [name for name, step in found.items() if step.group == "evaluate" and not name.startswith("tasks_")]
    sources = {**_same("model", "tokens"), "rows": last}
    # The model card tells how the rows came about, and what was measured.
    told = [*(name for name in ("init", "distill") if name != last), *measured]
    found["export"] = Step(export_stage.build, lambda cfg: cfg.export, sources, optional=told, version=2)
    return found


def plan(steps: Steps, wanted: Sequence[str]) -> list[str]:
    """Names of the steps to run, in order: those of the wanted stages, and all that these read."""
    needed: set[str] = set()

    def need(name: str) -> None:
        needed.add(name)
        for source in steps[name].inputs.values():
            need(source)

    for name, step in steps.items():
        if name in wanted or step.group in wanted:
            need(name)
    return [name for name in steps if name in needed]


def rebuilt(steps: Steps, planned: Sequence[str], force: Sequence[str]) -> set[str]:
    """Names of the steps to build anew: those of the forced stages, and what follows from them."""
    found: set[str] = set()
    present = dict.fromkeys(planned)
    for name in planned:
        step = steps[name]
        follows = any(source in found for source in step.sources(present).values())
        if name in force or step.group in force or follows:
            found.add(name)
    return found


def identify(
    name: str, step: Step, cfg: Config, prints: Mapping[str, str], known: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """All that decides what a step writes, and its fingerprint.

    Args:
        prints: fingerprints of the steps before it.
        known: identities found before, and where to keep the one found here; None looks at the sources again.
    """
    slice_ = step.config(cfg)
    content: dict[str, Any] = {"config": resolved(slice_)}
    if step.identity is not None:
        key = json.dumps([name, content["config"]], sort_keys=True)
        known = {} if known is None else known
        if key not in known:
            known[key] = dict(step.identity(slice_))
        content["identity"] = known[key]
    inputs = {key: prints[source] for key, source in step.sources(prints).items()}
    return {"version": step.version, **content, "inputs": inputs}, fingerprint(name, step.version, content, inputs)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _evaluation(of: str, rows: str, suites: Sequence[str]) -> dict[str, Step]:
    """The steps that measure the extended model with the rows of one stage."""
    inputs = {**_same("model", "tokens"), "rows": rows}
    sources = {**inputs, **_same("evaluate_original")}
    score = Step(evaluate_student, _evaluate(of), sources, group="evaluate")
    return {f"evaluate_{of}": score, **_generation(of, suites, inputs)}


def _generation(of: str, suites: Sequence[str], inputs: Mapping[str, str]) -> dict[str, Step]:
    """The steps in which one model answers the tasks of every suite."""
    found = {}
    for suite in suites:
        sources = {**inputs, "tasks": f"tasks_{suite}"}
        if of != "original":
            sources["original"] = f"generate_original_{suite}"
        found[f"generate_{of}_{suite}"] = Step(
            answer.build, _generate(of, suite), sources, group="evaluate", resumable=True, version=2
        )
    return found


def _terms(cfg: TokensConfig) -> dict[str, str]:
    """Content of the user's list of terms: the slice only names the file."""
    return {} if cfg.terms is None else {"terms": hashlib.sha256(Path(cfg.terms).read_bytes()).hexdigest()}


def _teacher(cfg: Config) -> TeacherConfig:
    d = cfg.distill
    n_snippets = d.snippets or d.steps * d.batch_size
    return TeacherConfig(
        d.snippet_bytes, n_snippets, d.validation_bytes, d.teacher == "self", draw=d.draw, seed=d.text_seed
    )


def _evaluate(of: str) -> Callable[[Config], EvaluateConfig]:
    return lambda cfg: EvaluateConfig(of, cfg.eval.scoring())


def _tasks(suite: str) -> Callable[[Config], TasksConfig]:
    def cut(cfg: Config) -> TasksConfig:
        every = cfg.eval.all_suites()
        uses = {name: every[name] for name in every[suite].get("of", []) if name in every}
        return TasksConfig(suite, every[suite], uses, cfg.eval.limit, cfg.eval.limits, cfg.eval.allow_unsandboxed)

    return cut


def _generate(of: str, suite: str) -> Callable[[Config], GenerateConfig]:
    def cut(cfg: Config) -> GenerateConfig:
        names = {item.name for item in fields(GenerateConfig)} - {"of", "suite"}
        return GenerateConfig(of, suite, **{name: getattr(cfg.eval, name) for name in names})

    return cut
