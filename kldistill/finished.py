"""Whether a run's folder holds its result already: what a sweep that is started again leaves alone."""

from pathlib import Path
from typing import Any

from kldistill.artifacts import MANIFEST
from kldistill.checks import check
from kldistill.compose import Config
from kldistill.records import is_whole, run_record
from kldistill.steps import identify, plan, steps_of

_identities: dict[str, Any] = {}  # of the sources that this process has looked at


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
