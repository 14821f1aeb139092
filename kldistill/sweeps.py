"""Sweeps: which runs a multirun has, and what has become of each of them.

Hydra tells a sweep's end only if no run failed, and nothing of a run whose process was killed. So the runs are listed
before the first one starts, and at the end their ``run.json`` files are read.
"""

import json
import os
from collections.abc import Mapping, Sequence
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

from kldistill.records import redact

_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its overrides, its folder, and its log file."""

    overrides: tuple[str, ...]
    folder: Path
    log: Path

    @property
    def record(self) -> dict[str, Any]:
        """Its run.json; empty where there is none."""
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}


_launched: list[Member] = []  # by this process


class Sweep(Callback):
    """Hydra's callback that lists the runs of a multirun before the first one starts."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra in the process that launches the runs."""
        _launched[:] = members(config)


def members(config: DictConfig) -> list[Member]:
    """The runs that Hydra's own sweeper makes of a multirun's configuration; none for another sweeper, which decides
    as it goes.
    """
    if config.hydra.sweeper._target_ != _BASIC:
        return []
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*params, *config.hydra.overrides.task])
    return [_member(config, lists) for lists in BasicSweeper.split_arguments(overrides, None)[0]]


def _member(config: DictConfig, overrides: Sequence[str]) -> Member:
    """Where a run with these overrides will be: Hydra's own interpolations, with this run's values in place."""
    config = deepcopy(config)
    chosen = dict(text.split("=", 1) for text in overrides)
    with open_dict(config):
        config.hydra.overrides.task = list(overrides)
        config.hydra.runtime.choices.update({k: v for k, v in chosen.items() if k in config.hydra.runtime.choices})
        config.outputs = chosen.get("outputs", config.outputs)
    outer = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)
        folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
    finally:
        HydraConfig.instance().cfg = outer
    return Member(tuple(overrides), folder, folder / f"{config.hydra.job.name}.log")


def conclude() -> bool:
    """Print what has become of the runs that this process launched. True unless one of them is not finished."""
    if _launched:
        print(account(_launched), flush=True)
    return all(member.record.get("status") == "finished" for member in _launched)


def account(runs: Sequence[Member]) -> str:
    """What has become of the runs: how many are finished, and each of the others with its reason and its log."""
    left = [member for member in runs if member.record.get("status") != "finished"]
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
    if record["status"] == "failed":
        return str(record["error"]).split("\n")[0]
    return "was killed, or is still running"


def mark_failed(folder: Path, cfg: DictConfig, error: BaseException) -> None:
    """Make run.json say that the run has failed, also where the run itself never came to write one."""
    path = folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if record.get("status") in (None, "finished"):  # of another attempt, before this one was refused
        record = {"config": OmegaConf.to_container(cfg), "artifacts": {}, "metrics": {}}
    failure = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    record = {**failure, **{key: value for key, value in record.items() if key not in failure}}
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(redact(record), indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)
