"""A run's ``run.json``: what was asked, which artifacts stand behind it, and all final figures."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kldistill.evaluation.table import final_names
from kldistill.pipeline.about import now, of_artifacts
from kldistill.pipeline.changes import changes
from kldistill.pipeline.step import Steps, rebuilt
from kldistill.pipeline.steps import REPORT, STAGES
from kldistill.runtime.errors import Stopped
from kldistill.runtime.faults import give_room
from kldistill.runtime.files import read_summary, write_text
from kldistill.runtime.secrets import redact

RUN = "run.json"
PAGE = "report.html"


def run_record(folder: Path) -> dict[str, Any]:
    """A run's ``run.json``; empty where there is none, or none that can be read."""
    try:
        return json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_run_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace a run's ``run.json``."""
    write_text(folder / RUN, json.dumps(redact(content), indent=2, default=str) + "\n")


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a ``run.json`` says that its run is finished, and that nothing was wrong with it since."""
    return record.get("status") == "finished" and "error" not in record


class RunRecord:
    """The ``run.json`` of a run that goes on, rewritten as its steps are done.

    It begins with what the folder holds already: a run of fewer stages, or one that is interrupted, takes nothing from
    an earlier one of the same configuration. What an earlier run has made of something else (of a text that has
    changed since) goes as soon as that is known.

    Args:
        folder: the run's own folder.
        steps: of the run's configuration, all of them.
        config: the resolved configuration; its ``stages`` are those that this run was asked for.
        defaults: the resolved configuration of a run without any override.
        about: what the run is run with (see ``kldistill.pipeline.about``).
    """

    def __init__(
        self,
        folder: Path,
        steps: Steps,
        config: Mapping[str, Any],
        defaults: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        self._folder, self._steps, self._config, self._defaults = folder, steps, config, defaults
        self._about = dict(about)
        self._earlier = run_record(folder)
        self._artifacts = earlier_artifacts(folder, steps)
        seconds = self._earlier.get("about", {}).get("seconds", {})
        self._seconds: dict[str, float] = {name: seconds[name] for name in self._artifacts if name in seconds}
        self._changes: tuple[list[str], list[dict[str, Any]]] | None = None
        self._written: dict[str, str] = {}  # the artifacts that the file names
        self.write("running")

    def done(self, name: str, artifact: Path, seconds: float | None = None) -> None:
        """A step has its artifact.

        Args:
            seconds: of building it, by the clock on the wall; None if it stood there already.
        """
        where = os.path.relpath(artifact, self._folder)
        if self._artifacts.get(name, where) != where:
            for stale in rebuilt(self._steps, list(self._artifacts), [name]):
                self.dropped(stale)
        self._artifacts[name] = where
        if seconds is not None:
            self._seconds[name] = round(seconds, 3)
        if seconds is not None or self._artifacts != self._written:
            self.write("running")

    def dropped(self, name: str) -> None:
        """An earlier run's artifact is not of this configuration, or is gone."""
        self._artifacts.pop(name, None)
        self._seconds.pop(name, None)

    @property
    def metrics(self) -> dict[str, float]:
        """The final figures of all steps that are done."""
        figures: dict[str, float] = {}
        for name, step in self._steps.items():
            if name in self._artifacts and step.figures is not None:
                with suppress(ValueError):  # a damaged one: whoever uses the artifact refuses it, with a way out
                    own = read_summary(self._folder / self._artifacts[name])
                    figures |= (
                        {f"{step.figures}/{key.partition('/')[2]}": own[key] for key in own} if step.figures else own
                    )
        return figures | final_names(figures)

    def write(self, status: str, error: str | None = None) -> None:
        """Rewrite the file."""
        config = {**self._config, "stages": self._stages()}
        content = {
            "status": status,
            **({} if error is None else {"error": error}),
            "config": config,
            "changes": self._changed(config),
            "about": self._whole_about(status),
            "artifacts": {name: self._artifacts[name] for name in self._steps if name in self._artifacts},
            "metrics": self.metrics,
        }
        write_run_record(self._folder, content)
        self._written = dict(self._artifacts)

    def _changed(self, config: dict[str, Any]) -> list[dict[str, Any]]:
        """How the configuration differs from the defaults; ``stages`` is all of it that changes while a run goes on."""
        if self._changes is None or self._changes[0] != config["stages"]:
            self._changes = config["stages"], [change._asdict() for change in changes(config, self._defaults)]
        return self._changes[1]

    def failed(self, error: BaseException) -> None:
        """The run ends here. This is written also where the disk is full: into room that was kept for it."""
        give_room(self._folder)
        self.write("failed", f"{type(error).__name__}: {error.args[0] if isinstance(error, Stopped) else error}")

    def _whole_about(self, status: str) -> dict[str, Any]:
        """What the run is run with, with what its artifacts tell, its end, and the seconds of every step it built."""
        artifacts = {name: self._folder / where for name, where in self._artifacts.items()}
        return {
            **self._about,
            **of_artifacts(artifacts),
            "ended": None if status == "running" else now(),
            "seconds": {name: self._seconds[name] for name in self._steps if name in self._seconds},
        }

    def _stages(self) -> list[str]:
        """The stages asked for, and those of an earlier run whose results still stand here."""
        asked = list(self._config["stages"])
        earlier = self._earlier.get("config", {}).get("stages", [])
        standing = {self._steps[name].stage(name) for name in self._artifacts}
        if (self._folder / PAGE).is_file():
            standing.add(REPORT)
        own = [name for name in asked if name not in STAGES]  # single steps
        return [name for name in STAGES if name in asked or (name in earlier and name in standing)] + own


def earlier_artifacts(folder: Path, steps: Steps) -> dict[str, str]:
    """The artifacts that the ``run.json`` of a folder names, by step: paths relative to the folder."""
    artifacts = run_record(folder).get("artifacts", {})
    return {name: artifacts[name] for name in steps if name in artifacts}
