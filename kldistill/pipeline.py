"""The pipeline: which stages there are, what each reads, and one run through them."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kldistill import corpus, distill, evaluate, export, figures, init, models, teacher, tokens
from kldistill.artifacts import Store, fingerprint
from kldistill.checks import check
from kldistill.compose import Config, resolved
from kldistill.config import TokensConfig
from kldistill.job import Job
from kldistill.processes import Processes, join
from kldistill.records import redact
from kldistill.table import COLUMNS, TITLE, final_rows
from kldistill.tracking import Tracker


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        run: the stage's function: (its config slice, folders of its inputs, its output folder, job).
        config: cuts the stage's slice out of the whole configuration; a stage never sees more.
        inputs: what the stage calls each input, and which step makes it.
        group: the name that ``stages=[...]`` and ``force=[...]`` use.
        version: raise it when the stage would write something else for the same slice and inputs.
        identity: what the slice's source holds right now, where the slice alone only names it.
        resumable: the function goes on from what an interrupted run left in its output folder.
        together: where a run has several processes, all of them run the function; otherwise the main process alone.
    """

    run: Callable[[Any, Mapping[str, Path], Path, Job], None]
    config: Callable[[Config], Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    version: int = 1
    identity: Callable[[Any], Mapping[str, Any]] | None = None
    resumable: bool = False
    together: bool = False


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _terms(cfg: TokensConfig) -> dict[str, str]:
    """Content of the user's list of terms: the slice only names the file."""
    return {} if cfg.terms is None else {"terms": hashlib.sha256(Path(cfg.terms).read_bytes()).hexdigest()}


def _teacher(cfg: Config) -> teacher.TeacherConfig:
    d = cfg.distill
    n_snippets = d.snippets or d.steps * d.batch_size
    return teacher.TeacherConfig(d.snippet_bytes, n_snippets, d.validation_bytes, states=d.teacher == "self")


def _evaluate(of: str) -> Callable[[Config], evaluate.EvaluateConfig]:
    return lambda cfg: evaluate.EvaluateConfig(of, cfg.eval)


# In the order in which they run.
STEPS: dict[str, Stage] = {
    "model": Stage(models.build, lambda cfg: cfg.model, identity=models.identity),
    "corpus": Stage(corpus.build, lambda cfg: cfg.corpus, identity=corpus.identity),
    "tokens": Stage(tokens.build, lambda cfg: cfg.tokens, _same("model", "corpus"), identity=_terms),
    "init": Stage(init.build, lambda cfg: cfg.init, _same("model", "tokens")),
    "evaluate_original": Stage(
        evaluate.evaluate_original, _evaluate("original"), _same("model", "corpus"), group="evaluate"
    ),
    "evaluate_init": Stage(
        evaluate.evaluate_student,
        _evaluate("init"),
        {**_same("model", "tokens", "evaluate_original"), "rows": "init"},
        group="evaluate",
    ),
    "teacher": Stage(teacher.build, _teacher, _same("model", "corpus")),
    "distill": Stage(
        distill.build,
        lambda cfg: cfg.distill,
        _same("model", "tokens", "init", "teacher"),
        resumable=True,
        together=True,
    ),
    "evaluate_distilled": Stage(
        evaluate.evaluate_student,
        _evaluate("distilled"),
        {**_same("model", "tokens", "evaluate_original"), "rows": "distill"},
        group="evaluate",
    ),
    "export": Stage(export.build, lambda cfg: cfg.export, _same("model", "tokens", "distill")),
}


def plan(wanted: list[str]) -> list[str]:
    """Steps to run, in order: those of the wanted stages, and all that these read."""
    needed: set[str] = set()

    def need(name: str) -> None:
        needed.add(name)
        for source in STEPS[name].inputs.values():
            need(source)

    for name, stage in STEPS.items():
        if name in wanted or stage.group in wanted:
            need(name)
    return [name for name in STEPS if name in needed]


def rebuilt(steps: list[str], force: list[str]) -> set[str]:
    """Steps to build anew: the forced stages, and what follows from them."""
    found: set[str] = set()
    for name in steps:
        stage = STEPS[name]
        if name in force or stage.group in force or any(source in found for source in stage.inputs.values()):
            found.add(name)
    return found


def run(cfg: Config, folder: Path) -> dict[str, float]:
    """Walk the stages of one run; finished artifacts are used again, whoever made them.

    Args:
        cfg: the whole configuration.
        folder: the run's own folder; gets ``run.json``, ``metrics.jsonl`` and the logger's files.

    Returns:
        The flat map of all final metrics, as in ``run.json`` (see docs/metrics.md).

    Raises:
        ConfigError: before anything expensive, for a configuration that cannot work.
    """
    check(cfg)
    processes = join(cfg.runtime)
    steps = plan(cfg.stages)
    again = rebuilt(steps, cfg.force)
    names = {
        "config": {**resolved(cfg), "stages": list(cfg.stages)},
        "artifacts": {},
        "metrics": {},
    }
    prints: dict[str, str] = {}
    folders: dict[str, Path] = {}
    if not processes.main:
        store = Store(Path(cfg.outputs) / "artifacts")
        for name in steps:
            folders[name] = _walk(name, cfg, store, processes, None, prints, folders, name in again)
        return {}
    with Tracker(folder, cfg.logger, resolved=names["config"], name=folder.name) as tracker:
        store = Store(Path(cfg.outputs) / "artifacts", say=tracker.say)
        write_json(folder / "run.json", {"status": "running", **names})
        try:
            for name in steps:
                folders[name] = _walk(name, cfg, store, processes, tracker, prints, folders, name in again)
                names["artifacts"][name] = os.path.relpath(folders[name], folder)
                names["metrics"] |= summary(folders[name])
                write_json(folder / "run.json", {"status": "running", **names})
        except BaseException as error:
            failure = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            write_json(folder / "run.json", {**failure, **names})
            raise
        rows = final_rows(names["metrics"])
        if rows:
            tracker.say(TITLE)
            tracker.table("result", COLUMNS, rows)
        if "export" in folders:
            tracker.say(f"The extended model: {folders['export']}")
        figures.learning(folder)
        figures.standing(names["metrics"], folder)
        tracker.say(f"All figures of this run: {folder / 'run.json'}")
        tracker.summary(names["metrics"])
        write_json(folder / "run.json", {"status": "finished", **names})
    return names["metrics"]


def _walk(
    name: str,
    cfg: Config,
    store: Store,
    processes: Processes,
    tracker: Tracker | None,
    prints: dict[str, str],
    folders: Mapping[str, Path],
    force: bool,
) -> Path:
    """Find or build one step's artifact. The main process has a tracker; the others have none."""
    stage = STEPS[name]
    slice_ = stage.config(cfg)
    meta, prints[name] = identify(name, cfg, prints)
    built = False

    def build(out: Path) -> None:
        nonlocal built
        built = True
        job = Job(cfg.runtime)
        if tracker is not None:
            tracker.say(f"{name}: building {prints[name]}")
            job = tracker.job(name, cfg.runtime, out)
        stage.run(slice_, {key: folders[source] for key, source in stage.inputs.items()}, out, job)

    path = processes.build(
        store,
        name,
        prints[name],
        build,
        together=stage.together,
        meta=redact(meta),
        resumable=stage.resumable,
        force=force,
    )
    if tracker is not None and not built:
        tracker.say(f"{name}: found {prints[name]}")
        tracker.replay(name, path)
    return path


def identify(name: str, cfg: Config, prints: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """All that decides what a step writes, and its fingerprint. ``prints`` are those of the steps that it reads."""
    stage = STEPS[name]
    slice_ = stage.config(cfg)
    content: dict[str, Any] = {"config": resolved(slice_)}
    if stage.identity is not None:
        content["identity"] = dict(stage.identity(slice_))
    inputs = {key: prints[source] for key, source in stage.inputs.items()}
    return {"version": stage.version, **content, "inputs": inputs}, fingerprint(name, stage.version, content, inputs)


def summary(artifact: Path) -> dict[str, float]:
    """Final figures of a stage; none where it writes none."""
    path = artifact / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step: readers see the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(redact(content), indent=2, default=str) + "\n")
    os.replace(temporary, path)
