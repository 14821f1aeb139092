"""The pipeline: one run through its steps (see ``kldistill.pipeline.steps``)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kldistill.evaluation.table import COLUMNS, SUITES_COLUMNS, SUITES_TITLE, TITLE, final_names, final_rows, suite_rows
from kldistill.export import gguf_file
from kldistill.pipeline.changes import changes
from kldistill.pipeline.checks import check
from kldistill.pipeline.compose import Config, defaults, resolved
from kldistill.pipeline.run_record import is_whole, run_record, write_run_record
from kldistill.pipeline.steps import Step, identify, plan, rebuilt, steps_of
from kldistill.report import render_run
from kldistill.report.run import pictures
from kldistill.runtime.artifacts import MANIFEST, Store
from kldistill.runtime.files import redact
from kldistill.runtime.job import Job
from kldistill.runtime.processes import Processes, join
from kldistill.runtime.tracking.tracker import Tracker

_identities: dict[str, Any] = {}  # of the sources that this process has looked at


def run_pipeline(cfg: Config, folder: Path) -> dict[str, float]:
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
    steps = steps_of(cfg)
    planned = plan(steps, cfg.stages)
    again = rebuilt(steps, planned, cfg.force)
    config = {**resolved(cfg), "stages": list(cfg.stages)}
    names = {
        "config": config,
        "changes": [change._asdict() for change in changes(config, defaults())],
        "artifacts": {},
        "metrics": {},
    }
    prints: dict[str, str] = {}
    folders: dict[str, Path] = {}
    if not processes.main:
        store = Store(Path(cfg.outputs) / "artifacts")
        for name in planned:
            folders[name] = _walk(name, steps[name], cfg, store, processes, None, prints, folders, name in again)
        return {}
    kind = "train" if "distill" in planned else planned[-1] if planned else None
    # A run's folder lies in its experiment's, so a sweep is a group.
    named = {"name": folder.name, "group": folder.parent.name, "job_type": kind}
    with Tracker(folder, cfg.logger, resolved=names["config"], **named) as tracker:
        store = Store(Path(cfg.outputs) / "artifacts", say=tracker.say)
        write_run_record(folder, {"status": "running", **names})
        try:
            for name in planned:
                folders[name] = _walk(name, steps[name], cfg, store, processes, tracker, prints, folders, name in again)
                if name == "model" and cfg.export.gguf and "export" in planned:
                    gguf_file.check_model(folders[name])  # before hours of training
                names["artifacts"][name] = os.path.relpath(folders[name], folder)
                names["metrics"] |= summary(folders[name])
                write_run_record(folder, {"status": "running", **names})
        except BaseException as error:
            failure = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            write_run_record(folder, {**failure, **names})
            raise
        names["metrics"] |= final_names(names["metrics"])
        _show(names["metrics"], folder, tracker)
        if "export" in folders:
            tracker.say(f"The extended model: {folders['export']}")
        tracker.say(f"All figures of this run: {folder / 'run.json'}")
        tracker.summary(names["metrics"])
        write_run_record(folder, {"status": "finished", **names})
        # Last, as the page is of what stands in the folder; where it fails, the run is whole all the same.
        if "report" in cfg.stages:
            page = render_run(folder)
            tracker.image("report", page)
            tracker.say(f"The report: {page}")
    return names["metrics"]


def _show(metrics: Mapping[str, float], folder: Path, tracker: Tracker) -> None:
    """The tables at the end of a run, and its pictures."""
    if rows := final_rows(metrics):
        tracker.say(TITLE)
        tracker.table("result", COLUMNS, rows)
    if rows := suite_rows(metrics):
        tracker.say(SUITES_TITLE)
        tracker.table("suites", SUITES_COLUMNS, rows)
    for picture in (pictures.learning(folder), pictures.standing(metrics, folder)):
        if picture is not None:
            tracker.image(f"pictures/{picture.stem}", picture)


def _walk(
    name: str,
    step: Step,
    cfg: Config,
    store: Store,
    processes: Processes,
    tracker: Tracker | None,
    prints: dict[str, str],
    folders: Mapping[str, Path],
    force: bool,
) -> Path:
    """Find or build one step's artifact. The main process has a tracker; the others have none."""
    meta, prints[name] = identify(name, step, cfg, prints)
    built = False

    def build(out: Path) -> None:
        nonlocal built
        built = True
        job = Job(cfg.runtime)
        if tracker is not None:
            tracker.say(f"{name}: building {prints[name]}")
            job = tracker.job(name, cfg.runtime, out)
        inputs = {key: folders[source] for key, source in step.sources(folders).items()}
        step.run(step.config(cfg), inputs, out, job)

    path = processes.build(
        store,
        name,
        prints[name],
        build,
        together=step.together,
        meta=redact(meta),
        resumable=step.resumable,
        force=force,
    )
    if tracker is not None and not built:
        tracker.say(f"{name}: found {prints[name]}")
        tracker.replay(name, path)
    return path


def summary(artifact: Path) -> dict[str, float]:
    """Final figures of a stage; none where it writes none."""
    path = artifact / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def is_finished(cfg: Config, folder: Path) -> bool:
    """Whether ``folder`` holds the result of this configuration, so that running it again would build nothing.

    Cheap enough to be asked for every run of a sweep: the artifacts' files are not checked, and their sources (the
    corpus) are looked at once per process.
    """
    record = run_record(folder)
    if cfg.force or not is_whole(record):
        return False
    if "report" in cfg.stages and not (folder / "report.html").is_file():
        return False
    check(cfg)
    steps = steps_of(cfg)
    prints: dict[str, str] = {}
    for name in plan(steps, cfg.stages):
        _, prints[name] = identify(name, steps[name], cfg, prints, _identities)
        artifact = folder / record["artifacts"].get(name, "")
        if artifact.name != prints[name] or not (artifact / MANIFEST).is_file():
            return False
    return list(prints) == list(record["artifacts"])
