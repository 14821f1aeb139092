"""The report: one self-contained page per run and per sweep, and the table of a sweep.

The two functions import late, so that Hydra can name the callback of this package without loading matplotlib.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

__all__ = ["collect", "render_run"]


def render_run(folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into a run's folder. See ``kldistill.report.run.page.render_run``."""
    from kldistill.report.run import page

    return page.render_run(folder)


def collect(folder: Path, *, factor: str = "loss", baseline: str = "ce", like: Collection[Path] = ()) -> dict[str, Any]:
    """Gather all runs below a folder into ``results.csv``, ``.md``, ``.json`` and ``report.html`` there.

    See ``kldistill.report.sweep.collect.collect``.
    """
    from kldistill.report.sweep import collect

    return collect.collect(folder, factor=factor, baseline=baseline, like=like)
