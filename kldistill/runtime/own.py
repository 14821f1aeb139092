"""Which folders hold what kldistill itself has written, wherever ``outputs`` is: no user's data, nor their model."""

from collections.abc import Iterable
from pathlib import Path

from kldistill.runtime.artifacts import MANIFEST

_UNFINISHED = ".partial"  # an artifact that is being built, or whose build was killed


def is_own(folder: Path) -> bool:
    """Whether a folder is an artifact, that of all artifacts, a run's, or that of all runs."""
    return (
        folder.suffix == _UNFINISHED
        or (folder / MANIFEST).is_file()
        or (folder.name == "artifacts" and any(folder.glob("*/*.lock")))
        or ((folder / "run.json").is_file() and (folder / ".hydra").is_dir())
        or (folder.name == "runs" and any(folder.glob("*/*/.hydra")))
    )


def own_among(files: Iterable[Path], root: Path) -> list[Path]:
    """Those of some files that lie in such a folder below ``root``; the root itself may be one."""
    known: dict[Path, bool] = {root: False}

    def inside(folder: Path) -> bool:
        if folder not in known:
            known[folder] = folder != folder.parent and (is_own(folder) or inside(folder.parent))
        return known[folder]

    return [file for file in files if file.is_relative_to(root) and inside(file.parent)]
