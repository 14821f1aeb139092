"""One run in Trackio: a dashboard in the browser, on this machine, without an account. See docs/wandb.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kldistill.runtime.config import LoggerConfig
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.secrets import redact
from kldistill.runtime.tracking.labels import flatten, labels, run_id
from kldistill.runtime.tracking.outbox import Outbox, figures, media


class TrackioRun:
    """A live Trackio run of a run folder. Starting it again in the same folder continues the same run.

    Args:
        resolved: the whole resolved configuration; nested keys are joined by dots, and ``labels`` of it added.
        name: the run's name, of which Trackio's name of the run is made.
        job_type: the kind of run, kept among its settings.
        group: the run's group, unless ``config`` names one.

    Raises:
        ConfigError: if Trackio cannot be imported or started.
    """

    def __init__(
        self,
        folder: Path,
        config: LoggerConfig,
        resolved: Mapping[str, Any],
        name: str | None = None,
        job_type: str | None = None,
        group: str | None = None,
    ) -> None:
        try:
            import trackio
        except ImportError as error:
            raise ConfigError(
                f"logger.name=trackio: the package trackio cannot be imported ({error}). Install it with "
                '`pip install "kldistill[trackio]"`, or choose logger=none.'
            ) from error
        self._trackio = trackio
        home = folder / "trackio"
        self._outbox = Outbox(home / "sent.jsonl")
        group = redact(config.group or group)
        project = redact(config.project or "kldistill")
        settings = {**flatten(resolved), **labels(resolved), "job_type": job_type, "tags": ",".join(config.tags)}
        # Trackio knows a run by its name alone, so equal paths of two places must not have the same.
        full = "/".join(part for part in (group, name) if part) or folder.name
        try:
            self._run = trackio.init(
                project=project,
                name=f"{full}-{run_id(home / 'run_id')[:6]}",
                group=group,
                config=redact(settings),
                resume="allow",
                embed=False,
            )
        except ValueError as error:
            raise ConfigError(f"logger.project={project}: trackio does not start ({error}).") from error
        self.where = f"trackio: `trackio show --project {project}` shows it in the browser"

    def send(self, line: str) -> None:
        """Send one line of a ``metrics.jsonl`` or ``tables.jsonl``, unless it was sent before."""
        content = self._outbox.take(line)
        if content is None:
            return
        if "table" in content:
            table = self._trackio.Table(columns=content["columns"], data=content["rows"])
            self._run.log({content["table"]: table})
        else:
            self._run.log(figures(content))

    def image(self, name: str, path: Path) -> None:
        """Send a picture or a page, whatever was sent of this name before."""
        self._run.log({name: media(self._trackio, path)})

    def summary(self, final: Mapping[str, Any]) -> None:
        """Log final figures; Trackio has no summary of its own."""
        self._run.log(redact({key: value for key, value in final.items() if value is not None}))

    def finish(self, failed: bool) -> None:
        """Close the run. Trackio does not tell failed runs from others, so one that failed says so in a figure."""
        if failed:
            self._run.log({"failed": 1})
        self._run.finish()
        self._outbox.confirm()
