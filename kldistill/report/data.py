"""Reads what runs left on disk: ``run.json``, the curves, the overrides, and the artifacts that a run names.

Whatever is not there (a stage that did not run, an artifact that was deleted) is None or empty here; the pages say so.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kldistill.evaluation.metrics import MODELS, OLD_CUT, parse
from kldistill.runtime.errors import KldistillError
from kldistill.runtime.files import read_lines, read_summary
from kldistill.runtime.secrets import redact, redact_lines
from kldistill.runtime.tracking.labels import flatten

RUN = "run.json"
FINISHED, RUNNING, FAILED, ABSENT = "finished", "running", "failed", "absent"


class ReportError(KldistillError):
    """A folder that no report can be made of."""


def last_model(metrics: Mapping[str, float]) -> str | None:
    """The last extended model that these figures are of: ``finetuned``, ``distilled``, ``init``; None without one."""
    scored = {name.model for name in map(parse, metrics) if name is not None}
    extended = [model for model in MODELS if model in scored and model not in (*OLD_CUT, "carried")]
    return extended[-1] if extended else None


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it, with nothing secret in it.

    Attributes:
        folder: the run's own folder.
        status: ``finished``, ``running``, ``failed`` (its ``error`` says why), or ``absent``: it left no ``run.json``.
        config: the resolved configuration, nested.
        changes: every key that was not at its default: ``key``, ``value``, ``default`` (null: not there), as text.
        artifacts: folder of every finished step.
        metrics: the flat map of final figures.
        overrides: what the command line said, as Hydra recorded it; None where Hydra had no part in it.
        choices: which preset of every group was taken, as Hydra recorded it.
        about: what it was run with: model, program, packages, machine, times (see docs/report.md).
    """

    folder: Path
    status: str
    config: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Mapping[str, str | None]] = ()
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    overrides: list[str] | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration with nested keys joined by dots."""
        return flatten(self.config)

    def below(self, folder: Path) -> str:
        """The run's folder as seen from another: its name in the table of a sweep."""
        return os.path.relpath(self.folder, folder)

    @property
    def time(self) -> float:
        """When the run's ``run.json`` was written last, in seconds since 1970; 0 where there is none."""
        path = self.folder / RUN
        return path.stat().st_mtime if path.is_file() else 0.0

    @cached_property
    def last(self) -> str | None:
        """See ``last_model``."""
        return last_model(self.metrics)

    def final(self) -> dict[str, float]:
        """Final metrics, with those of the last model under ``eval/...``, without the model's name.

        So runs that end with different stages can be compared. Metrics of the run's other models are left out.
        """
        start = f"eval/{self.last}/"
        own = {key: value for key, value in self.metrics.items() if parse(key) is None}
        of_last = {key: value for key, value in self.metrics.items() if key.startswith(start)}
        return own | {f"eval/{key.removeprefix(start)}": value for key, value in of_last.items()}

    def file(self, step: str, name: str) -> Path | None:
        """A file of the artifact of a step, if both are there."""
        path = self.artifacts[step] / name if step in self.artifacts else None
        return path if path is not None and path.exists() else None

    def summaries(self) -> Iterator[tuple[str, Path, Mapping[str, float]]]:
        """(step, artifact, figures) of every artifact with a ``summary.json``."""
        for step, folder in self.artifacts.items():
            if figures := read_summary(folder):
                yield step, folder, figures


def read_run(folder: Path) -> Run:
    """Read a run's folder. Without a ``run.json`` the run is ``absent``; with one that is no run's it is ``failed``."""
    overrides, choices = _of_hydra(folder / ".hydra")
    path = folder / RUN
    if not path.is_file():
        return Run(folder, ABSENT, overrides=overrides, choices=choices)
    try:
        content = redact(json.loads(path.read_text(encoding="utf-8")))
        artifacts = {step: folder / where for step, where in content["artifacts"].items()}
        return Run(
            folder,
            str(content["status"]),
            content["config"],
            content.get("changes", []),  # a refused run has none
            artifacts,
            {key: value for key, value in content["metrics"].items() if isinstance(value, int | float)},
            str(content.get("error", "")),
            overrides,
            choices,
            content.get("about", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{RUN} cannot be read: {type(error).__name__}: {error}"
        return Run(folder, FAILED, error=reason, overrides=overrides, choices=choices)


def find_runs(folder: Path) -> list[Run]:
    """Every run below ``folder``, also those that failed before they wrote anything, sorted by folder.

    Raises:
        ReportError: there is none.
    """
    folders = {path.parent for path in folder.rglob(RUN)}
    folders |= {path.parents[1] for path in folder.rglob(".hydra/overrides.yaml")}
    if not folders:
        raise ReportError(f"{folder}: no run.json below it. Name the folder of a run, or of a sweep's runs.")
    return [read_run(path) for path in sorted(folders)]


def lines(path: Path | None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, redacted; none where there is no file."""
    return [] if path is None else redact_lines(read_lines(path))


def curves(run: Run, stage: str) -> dict[str, list[tuple[float, float]]]:
    """``{figure: [(step, value), ...]}`` of everything that a stage logged by step, in order of steps."""
    by_name: dict[str, dict[float, float]] = {}
    for line in lines(run.folder / "metrics.jsonl"):
        if line["stage"] != stage or line["step"] is None:
            continue
        for name, value in line.items():
            if name.startswith(f"{stage}/") and isinstance(value, int | float):
                by_name.setdefault(name.removeprefix(f"{stage}/"), {})[line["step"]] = value
    return {name: sorted(points.items()) for name, points in by_name.items()}


def _of_hydra(folder: Path) -> tuple[list[str] | None, dict[str, str]]:
    """The overrides and the choices that Hydra recorded."""
    overrides, choices = None, {}
    if (path := folder / "overrides.yaml").is_file():
        overrides = [str(entry) for entry in redact(OmegaConf.to_container(OmegaConf.load(path)) or [])]
    if (path := folder / "hydra.yaml").is_file():
        node = OmegaConf.load(path)
        assert isinstance(node, DictConfig)
        chosen = OmegaConf.select(node, "hydra.runtime.choices")
        if isinstance(chosen, DictConfig):
            raw = OmegaConf.to_container(chosen, resolve=False)
            choices = {str(key): redact(str(value)) for key, value in dict(raw).items() if value is not None}  # type: ignore[arg-type]
    return overrides, choices
