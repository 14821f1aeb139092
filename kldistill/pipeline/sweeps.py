"""Sweeps: which runs a multirun has, and what has become of each of them.

Hydra tells a sweep's end only if no run failed, and nothing of a run whose process was killed. So the runs are listed
before the first one starts, and at the end their ``run.json`` files are read.
"""

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from kldistill.pipeline import compose
from kldistill.pipeline.run_record import is_whole, run_record, write_run_record
from kldistill.runtime.config import resolved
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.faults import storage_fault
from kldistill.runtime.files import write_text
from kldistill.runtime.secrets import redact, shown

log = logging.getLogger("kldistill")

_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its overrides, its folder, and its log file."""

    overrides: tuple[str, ...]
    folder: Path
    log: Path

    @property
    def record(self) -> dict[str, Any]:
        """Its run.json; empty where there is none that can be read."""
        return run_record(self.folder)

    @property
    def whole(self) -> bool:
        """Whether it is finished, and nothing was wrong with it since."""
        return is_whole(self.record)


_launched: list[Member] = []  # by this process


class Sweep(Callback):
    """Hydra's callback that lists the runs of a multirun before the first one starts."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before it makes the folder of a single run. It ends here if nothing can be written there."""
        _try(Path(str(config.outputs)) / "runs")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra in the process that launches the runs. It ends here if two of them would share a folder, or
        if nothing can be written there.
        """
        _try(Path(str(config.outputs)) / "runs")
        every_member = members(config)
        for folder, n in Counter(member.folder for member in every_member).items():
            if n > 1:  # Hydra would go on after any other exception
                sys.exit(
                    f"{n} runs of this sweep would share the folder {folder}: they differ only in what says how to run "
                    "(stages, force, logger, runtime, outputs, hydra), which is no part of its name. Run them one by "
                    "one, or name a folder for each: hydra.sweep.subdir='${hydra.job.num}'."
                )
        _launched[:] = every_member

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before every run: the sweep's own record was written just before the first one."""
        _redact_record(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra at the end of a sweep."""
        _redact_record(config)


def _try(folder: Path) -> None:
    """End the program with one line if a folder cannot be written to."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        sys.exit(shown(f"outputs: {storage_fault(error) or error}", keep=""))


def _redact_record(config: DictConfig) -> None:
    """Take what is secret out of the ``multirun.yaml`` that Hydra's own sweeper writes."""
    path = Path(str(config.hydra.sweep.dir)) / "multirun.yaml"
    if path.is_file() and (text := path.read_text(encoding="utf-8")) != redact(text):
        write_text(path, redact(text))


def members(config: DictConfig) -> list[Member]:
    """The runs that Hydra's own sweeper makes of a multirun's configuration; none for another sweeper, which decides
    as it goes.
    """
    if config.hydra.sweeper._target_ != _BASIC:
        return []
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*params, *config.hydra.overrides.task])
    config = deepcopy(config)  # once: all runs have the same keys, so each overwrites what the one before has set
    outer = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)  # takes a copy of its own, for what says ${hydra:...}
        return [_member(config, lists) for lists in BasicSweeper.split_arguments(overrides, None)[0]]
    finally:
        HydraConfig.instance().cfg = outer


def _member(config: DictConfig, overrides: Sequence[str]) -> Member:
    """Where a run with these overrides will be: Hydra's own interpolations, with this run's values put in place."""
    chosen = dict(text.split("=", 1) for text in overrides)
    nodes: tuple[Any, ...] = (config.hydra, HydraConfig.get())
    for node in nodes:
        OmegaConf.set_readonly(node, False)
        with open_dict(node):
            node.overrides.task = list(overrides)
            node.runtime.choices.update({k: v for k, v in chosen.items() if k in node.runtime.choices})
    with open_dict(config):
        config.outputs = chosen.get("outputs", config.outputs)
    folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
    return Member(tuple(overrides), folder, folder / f"{config.hydra.job.name}.log")


def folders() -> list[Path]:
    """Those that hold the runs which this process launched: one for each experiment."""
    return list(dict.fromkeys(member.folder.parent for member in _launched))


def conclude() -> bool:
    """Print what has become of the runs that this process launched. True unless one of them is not finished."""
    if _launched:
        print(shown(account(_launched)), flush=True)
    return all(member.whole for member in _launched)


def account(runs: Sequence[Member]) -> str:
    """What has become of the runs: how many are finished, and each of the others with its reason and its log."""
    left = [member for member in runs if not member.whole]
    common = set.intersection(*(set(member.overrides) for member in runs)) if len(runs) > 1 else set()
    text = f"Sweep: {len(runs) - len(left)} of {len(runs)} runs finished."
    for member in left:
        own = " ".join(text for text in member.overrides if text not in common)
        text += f"\n  {own}: {_reason(member.record)}\n    see {member.log}"
    if left:
        text += "\nThe same command again goes on with these, and leaves those that are finished alone."
    return text


def _reason(record: Mapping[str, Any]) -> str:
    if not record:
        return "has not started"
    if "error" in record:
        earlier = "its earlier result stands, but now: " if record["status"] == "finished" else ""
        return earlier + str(record["error"]).split("\n")[0]
    return "was killed, or is still running"


def mark_failed(folder: Path, cfg: DictConfig, error: BaseException) -> None:
    """Make run.json say that the run has failed, also where the run itself never came to write one.

    A finished result of the same configuration stays, with the error beside it: what was refused now, or could not be
    drawn at the end, takes nothing from its figures.
    """
    record = run_record(folder)
    status = "failed"
    if record.get("status") == "finished" and _what(record.get("config")) == _what(_plain(cfg)):
        status = "finished"
    elif record.get("status") in (None, "finished"):  # of another attempt, before this one was refused
        record = {"config": OmegaConf.to_container(cfg), "artifacts": {}, "metrics": {}}
    failure = {"status": status, "error": f"{type(error).__name__}: {error}"}
    record = {**failure, **{key: value for key, value in record.items() if key not in failure}}
    write_run_record(folder, record)


def _what(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a configuration asks for, without how, where and how much of it is run."""
    how = ("stages", "force", "objective", "outputs", "runtime", "logger")
    return {key: value for key, value in (config or {}).items() if key not in how}


def _plain(cfg: DictConfig) -> dict[str, Any] | None:
    """A configuration as run.json has it; None where it is none that could run."""
    try:
        return json.loads(json.dumps(redact(resolved(compose.typed(cfg))), default=str))
    except ConfigError:
        return None


class Collect(Callback):
    """Writes the sweep's table and page into its folder, or into those of its experiments.

    An experiment that is a sweep has a folder of its own, and the page is of all that lies there. Other runs share one,
    whatever they are of (that without an experiment, quickstart's): then the page is of the sweep's own runs and of
    those that differ from them in nothing but the seed and what the sweep varies.

    Hydra calls this only where no job failed; ``python -m kldistill.report FOLDER`` does the same at any time.
    """

    def on_multirun_end(self, config: DictConfig, **_kwargs: Any) -> None:
        """Collect everything below the sweep's folder. A failure is logged: it loses nothing, and can be repeated."""
        from kldistill.report import collect

        planned = bool(OmegaConf.select(config, "hydra.sweeper.params"))
        like = [] if planned else [member.folder for member in _launched]
        for folder in folders() or [Path(config.hydra.sweep.dir)]:
            try:
                table = collect(folder, like=like)
            except Exception:
                log.exception("The sweep's report failed; `python -m kldistill.report %s` tries again.", folder)
            else:
                n = sum(run["run"] is not None for run in table["runs"])
                log.info("The sweep's table and page, of %d runs: %s", n, folder / "report.html")
                if like:
                    log.info("`python -m kldistill.report %s` makes those of all runs that lie there.", folder)
