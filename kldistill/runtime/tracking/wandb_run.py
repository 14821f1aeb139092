"""One run in Weights & Biases, isolated from every other run of the process; offline unless asked otherwise."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kldistill.runtime.config import LoggerConfig
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.secrets import redact
from kldistill.runtime.tracking.labels import labels, run_id
from kldistill.runtime.tracking.outbox import Outbox, axis, figures, media

HIDDEN = ("eval/", "interpret/")
MODES = ("offline", "online", "shared", "disabled")


class WandbRun:
    """A live wandb run of a run folder. Starting it again in the same folder continues the same run.

    ``wandb/sent.jsonl`` in the folder remembers the lines that were sent, since wandb's history can only grow.

    Args:
        mode: ``offline``, ``online`` or ``shared``.
        resolved: the whole resolved configuration; it stays nested, with ``labels`` of it added.
        name: what wandb calls the run; ``WANDB_NAME`` comes first.
        job_type: the kind of run that wandb shows beside the name.
        group: the run's group, unless ``config`` or ``WANDB_RUN_GROUP`` names one.

    Raises:
        ConfigError: if wandb cannot be imported or started.
    """

    def __init__(
        self,
        folder: Path,
        config: LoggerConfig,
        mode: str,
        resolved: Mapping[str, Any],
        name: str | None = None,
        job_type: str | None = None,
        group: str | None = None,
    ) -> None:
        try:
            import wandb
        except Exception as error:  # a broken installation raises anything, not only ImportError
            raise ConfigError(
                f"logger.name=wandb: the package wandb cannot be imported ({error}). Install it with "
                "`pip install wandb`, or choose logger=none."
            ) from error
        home = folder / "wandb"
        self._outbox = Outbox(home / "sent.jsonl")
        self._axes: set[str] = set()
        chosen = labels(resolved)
        arguments = sys.argv
        sys.argv = redact(list(arguments))  # wandb records the command line
        try:
            self._run = wandb.init(
                project=redact(project_of(config)),
                entity=redact(config.entity),
                group=redact(config.group or os.environ.get("WANDB_RUN_GROUP") or group),
                tags=redact([*(config.tags or _tags()), *(f"{key}={value}"[:64] for key, value in chosen.items())])
                or None,
                name=redact(os.environ.get("WANDB_NAME") or name),
                job_type=job_type,
                config=redact({**resolved, "labels": chosen}),
                allow_val_change=True,
                mode=mode,  # type: ignore[arg-type]
                dir=str(folder),
                id=run_id(home / "run_id"),
                resume="allow",
                reinit="create_new",  # a run of its own, never the process's global one
                settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"logger.mode={mode}: wandb does not start ({error}). Try logger.mode=offline, or logger=none."
            ) from error
        finally:
            sys.argv = arguments
        # A run that was interrupted and goes on is several folders, which wandb joins by the run's id.
        parts = sorted(home.glob(f"offline-run-*-{self._run.id}")) or [Path(self._run.dir).parent]
        named = " ".join(shlex.quote(str(part)) for part in parts)
        self.where = (
            f"wandb: offline, `wandb sync {named}` uploads it" if mode == "offline" else f"wandb: {self._run.url}"
        )

    def send(self, line: str) -> None:
        """Send one line of a ``metrics.jsonl`` or ``tables.jsonl``, unless it was sent before."""
        content = self._outbox.take(line)
        if content is None:
            return
        if "table" in content:
            from wandb import Table

            rows = Table(columns=content["columns"], data=content["rows"], allow_mixed_types=True)
            self._run.log({content["table"]: rows})
        else:
            stage, logged = content["stage"], figures(content)
            self._define(axis(stage))
            for name in [f"{stage}/*", *(key for key in logged if not key.startswith(f"{stage}/"))]:
                self._define(name, axis(stage))
            self._run.log(logged)

    def image(self, name: str, path: Path) -> None:
        """Send a picture or a page, whatever was sent of this name before."""
        import wandb

        self._run.log({name: media(wandb, path)})

    def model(self, folder: Path) -> None:
        """Name an exported model as an artifact of this run: where it lies, not its content."""
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model", description="The extended model")
        artifact.add_reference(folder.resolve().as_uri(), checksum=False)
        self._run.log_artifact(artifact)

    def summary(self, final: Mapping[str, Any]) -> None:
        """Set final figures."""
        self._run.summary.update(redact(final))

    def finish(self, failed: bool) -> None:
        """Close the run, as crashed if ``failed``."""
        self._run.finish(exit_code=1 if failed else 0)
        self._outbox.confirm()

    def _define(self, name: str, over: str | None = None) -> None:
        # Each stage has its own x-axis: with wandb's global step, whose order is fixed, nothing could be sent later.
        if name not in self._axes:
            self._axes.add(name)
            # Single points would each be given a panel of their own: they belong to the tables and the summary.
            hidden = True if name.startswith(HIDDEN) else None
            self._run.define_metric(name, step_metric=over, hidden=hidden)


def project_of(config: LoggerConfig) -> str:
    """``logger.project``, else the environment's ``WANDB_PROJECT``, else ``kldistill``."""
    return config.project or os.environ.get("WANDB_PROJECT") or "kldistill"


def _tags() -> list[str]:
    """The tags in ``WANDB_TAGS``, where they are separated by commas."""
    return [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]


def chosen_mode(config: LoggerConfig) -> str:
    """``logger.mode``, else the environment's ``WANDB_MODE``, else ``offline``; ``disabled`` for another logger.

    Raises:
        ConfigError: if ``WANDB_MODE`` is none of wandb's modes.
    """
    if config.name != "wandb":
        return "disabled"
    if config.mode is not None:
        return config.mode
    mode = os.environ.get("WANDB_MODE") or "offline"
    if mode not in MODES:
        raise ConfigError(f"WANDB_MODE={mode!r}: must be one of {', '.join(MODES)}.")
    return mode
