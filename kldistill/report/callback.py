"""Collects a sweep's results when its last job has ended. Named under ``hydra.callbacks`` in conf/config.yaml."""

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

log = logging.getLogger("kldistill")


class Collect(Callback):
    """Writes the sweep's table and page into its folder, or into those of its experiments.

    Hydra calls this only where no job failed; ``python scripts/report.py FOLDER`` does the same at any time.
    """

    def on_multirun_end(self, config: DictConfig, **_kwargs: Any) -> None:
        """Collect everything below the sweep's folder. A failure is logged: it loses nothing, and can be repeated."""
        from kldistill.report import collect
        from kldistill.sweeps import folders

        for folder in folders() or [Path(config.hydra.sweep.dir)]:
            try:
                collect(folder)
            except Exception:
                log.exception("The sweep's report failed; `python scripts/report.py %s` tries again.", folder)
            else:
                log.info("The sweep's table and page: %s", folder / "report.html")
