"""A run's ``run.json``: what was asked, which artifacts it used, and all final figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kldistill.runtime.files import redact, write_text


def run_record(folder: Path) -> dict[str, Any]:
    """A run's ``run.json``; empty where there is none, or none that can be read."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_run_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace a run's ``run.json``."""
    write_text(folder / "run.json", json.dumps(redact(content), indent=2, default=str) + "\n")


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a ``run.json`` says that its run is finished, and that nothing was wrong with it since."""
    return record.get("status") == "finished" and "error" not in record
