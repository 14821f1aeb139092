"""The pipeline: one run through its steps (see ``kldistill.pipeline.steps``)."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kldistill.evaluation.table import SUITES_COLUMNS, final_table, suite_rows, suites_title, title_of
from kldistill.pipeline.about import about, program
from kldistill.pipeline.checks import check, check_surroundings
from kldistill.pipeline.compose import Config, defaults
from kldistill.pipeline.run_record import PAGE, RUN, RunRecord, earlier_artifacts, is_whole, run_record
from kldistill.pipeline.step import Step, Steps, identify, plan, rebuilt
from kldistill.pipeline.steps import REPORT, steps_of
from kldistill.report import render_run
from kldistill.report.run import pictures
from kldistill.report.run.answer import answer
from kldistill.runtime import memory
from kldistill.runtime.artifacts import MANIFEST, Store
from kldistill.runtime.config import resolved
from kldistill.runtime.errors import KldistillError
from kldistill.runtime.faults import held, naming, storage_fault
from kldistill.runtime.job import Job
from kldistill.runtime.processes import Processes, join
from kldistill.runtime.secrets import redact
from kldistill.runtime.tracking.labels import run_name
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
    check_surroundings(cfg)
    processes = join(cfg.runtime)
    steps = steps_of(cfg)
    planned = plan(steps, cfg.stages)
    if not processes.main:
        _walk(cfg, folder, steps, planned, processes)
        return {}
    with naming("the run's folder"), held(folder):
        return _report_on(cfg, folder, steps, planned, processes)


def job_type(planned: Sequence[str]) -> str | None:
    """What dashboards call a run of these steps: ``train``, or the last of them where none trains.

    All that trains comes with the distillation.
    """
    return "train" if "distill" in planned else planned[-1] if planned else None


def _report_on(
    cfg: Config, folder: Path, steps: Steps, planned: Sequence[str], processes: Processes
) -> dict[str, float]:
    """The walk of the main process, with all that it writes into the run's folder."""
    config = {**resolved(cfg), "stages": list(cfg.stages)}
    # A run's folder lies in its experiment's, so a sweep is a group.
    named = {"name": run_name(folder, config), "group": folder.parent.name, "job_type": job_type(planned)}
    shown = {**config, "kldistill": program()}
    with Tracker(folder, cfg.logger, resolved=shown, **named) as tracker:
        record = RunRecord(folder, steps, config, defaults(), about(cfg))
        try:
            with naming("the run's folder"):
                folders = _walk(cfg, folder, steps, planned, processes, tracker, record)
                metrics = record.metrics
                _show(metrics, folder, tracker)
                if told := answer(metrics):
                    tracker.say(told, wrap=True)
                for name in planned:
                    if steps[name].result:
                        tracker.say(f"{steps[name].result}: {folders[name]}")
                        tracker.model(folders[name])
                tracker.say(f"All figures of this run: {folder / RUN}")
                tracker.summary(metrics)
                record.write("finished")
        except BaseException as error:
            try:
                record.failed(error)
            except OSError as fault:
                tracker.say(f"run.json cannot say that this run has failed: {storage_fault(fault) or fault}")
            raise
        # Last, as the page is of what stands in the folder; where it fails, the run is whole all the same. A page that
        # is there already would tell of another day.
        if REPORT in cfg.stages or (folder / PAGE).is_file():
            page = render_run(folder)
            tracker.image("report", page)
            tracker.say(f"The report: {page}")
    return metrics


def _show(metrics: Mapping[str, float], folder: Path, tracker: Tracker) -> None:
    """The tables at the end of a run, and its pictures."""
    columns, rows = final_table(metrics)
    if rows:
        tracker.say(title_of(columns, rows), wrap=True)
        tracker.table("result", columns, rows)
    if rows := suite_rows(metrics):
        tracker.say(suites_title(rows), wrap=True)
        tracker.table("suites", SUITES_COLUMNS, rows)
    for picture in (pictures.learning(folder), pictures.standing(metrics, folder)):
        if picture is not None:
            tracker.image(f"pictures/{picture.stem}", picture)


def _walk(
    cfg: Config,
    folder: Path,
    steps: Steps,
    planned: Sequence[str],
    processes: Processes,
    tracker: Tracker | None = None,
    record: RunRecord | None = None,
) -> dict[str, Path]:
    """Find or build the artifact of every planned step. Every process of a run walks through all of them.

    What an earlier run in the same folder has beyond them stays a part of it, where it is of this configuration.

    Args:
        tracker, record: of the main process; the others have none, and report nothing.

    Returns:
        The artifacts' folders.
    """
    store = Store(Path(cfg.outputs) / "artifacts", **({} if tracker is None else {"say": tracker.say}))
    again = rebuilt(steps, planned, cfg.force)
    earlier = earlier_artifacts(folder, steps)
    prints: dict[str, str] = {}
    folders: dict[str, Path] = {}
    for name, step in steps.items():
        if name in planned:
            with naming(name), memory.told(name, cfg.runtime):
                folders[name], seconds = _artifact(
                    name, step, cfg, store, processes, tracker, prints, folders, name in again
                )
                for later in planned if processes.main else ():
                    if name in steps[later].early:
                        steps[later].early[name](steps[later].config(cfg), folders[name])
        elif name in earlier:
            if not _stands(name, step, cfg, folder / earlier[name], prints):
                if record is not None:
                    record.dropped(name)
                continue
            folders[name], seconds = folder / earlier[name], None
        else:
            continue
        if record is not None:
            record.done(name, folders[name], seconds)
    return folders


def _stands(
    name: str,
    step: Step,
    cfg: Config,
    artifact: Path,
    prints: dict[str, str],
    known: dict[str, Any] | None = None,
) -> bool:
    """Whether ``artifact`` is what this step would make now; if so, its fingerprint joins ``prints``."""
    if any(source not in prints for source in step.inputs.values()):
        return False
    try:
        _, fingerprint_now = identify(name, step, cfg, prints, known)
    except (KldistillError, OSError):  # a source that is gone
        return False
    if artifact.name != fingerprint_now or not (artifact / MANIFEST).is_file():
        return False
    prints[name] = fingerprint_now
    return True


def _artifact(
    name: str,
    step: Step,
    cfg: Config,
    store: Store,
    processes: Processes,
    tracker: Tracker | None,
    prints: dict[str, str],
    folders: Mapping[str, Path],
    force: bool,
) -> tuple[Path, float | None]:
    """Find or build one step's artifact; also gives the seconds of building it, None if it was found."""
    meta, prints[name] = identify(name, step, cfg, prints)
    seconds: float | None = None

    def build(out: Path) -> None:
        nonlocal seconds
        started = time.monotonic()
        job = Job(cfg.runtime)
        if tracker is not None:
            tracker.say(f"{name}: building {prints[name]}")
            job = tracker.job(name, cfg.runtime, out)
        inputs = {key: folders[source] for key, source in step.sources(folders).items()}
        step.run(step.config(cfg), inputs, out, job)
        seconds = time.monotonic() - started

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
    if tracker is not None and seconds is None:
        tracker.say(f"{name}: found {prints[name]}")
        tracker.replay(name, path)
    return path, seconds


def is_finished(cfg: Config, folder: Path) -> bool:
    """Whether ``folder`` holds the result of this configuration, so that running it again would build nothing.

    Cheap enough to be asked for every run of a sweep: the artifacts' files are not checked, and their sources (the
    corpus) are looked at once per process.
    """
    record = run_record(folder)
    if cfg.force or not is_whole(record):
        return False
    if REPORT in cfg.stages and not (folder / PAGE).is_file():
        return False
    check(cfg)
    steps = steps_of(cfg)
    planned = plan(steps, cfg.stages)
    earlier = earlier_artifacts(folder, steps)
    prints: dict[str, str] = {}
    stands = {name: _stands(name, steps[name], cfg, folder / earlier[name], prints, _identities) for name in earlier}
    return all(stands.get(name, False) for name in planned)
