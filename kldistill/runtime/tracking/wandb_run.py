"""One run in Weights & Biases, isolated from every other run of the process; offline unless asked otherwise."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kldistill.runtime.config import LoggerConfig
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.files import redact
from kldistill.runtime.tracking.labels import flatten, labels, run_id
from kldistill.runtime.tracking.outbox import Outbox, axis, figures, media

MODES = ("offline", "online", "shared", "disabled")


class WandbRun:
    """A live wandb run of a run folder. Starting it again in the same folder continues the same run.

    ``wandb/sent.jsonl`` in the folder remembers the lines that were sent, since wandb's history can only grow.

    Args:
        mode: ``offline``, ``online`` or ``shared``.
        resolved: the whole resolved configuration; nested keys are joined by dots, and ``labels`` of it added.
        name, job_type: of the run.
        group: of the run, unless the configuration names one.

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
                project=config.project,
                entity=config.entity,
                group=config.group or group,
                tags=redact([*config.tags, *(f"{key}={value}"[:64] for key, value in chosen.items())]) or None,
                name=name,
                job_type=job_type,
                config=redact({**flatten(resolved), **chosen}),
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
        files = Path(self._run.dir).parent
        self.where = (
            f"wandb: offline, `wandb sync {files}` uploads it" if mode == "offline" else f"wandb: {self._run.url}"
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
            stage, found = content["stage"], figures(content)
            self._define(axis(stage))
            for name in [f"{stage}/*", *(key for key in found if not key.startswith(f"{stage}/"))]:
                self._define(name, axis(stage))
            self._run.log(found)

    def image(self, name: str, path: Path) -> None:
        """Send a picture or a page, whatever was sent of this name before."""
        import wandb

        self._run.log({name: media(wandb, path)})

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
            self._run.define_metric(name, step_metric=over)


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
