"""A program in a process of its own, with the packages of a folder: those that this environment does not have."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT


def run(program: str, module: str, key: str, job: object, folder: Path) -> Any:
    """What a program writes about a job; skips where ``module`` cannot be imported.

    Args:
        program: its text. It gets the names of two JSON files, of the job and of what it is to write.
        key: the environment variable that names the folder.
        folder: where both files are, and where it runs.
    """
    place = os.environ.get(key)
    environment = os.environ | ({"PYTHONPATH": f"{place}:{ROOT}"} if place else {}) | {"HF_HUB_OFFLINE": "1"}
    probe = subprocess.run(
        [sys.executable, "-c", f"import {module}"], env=environment, cwd=folder, capture_output=True, text=True
    )
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["it ends at once"])[-1]
        pytest.skip(f"{module} is neither installed nor in the folder {key}={place}: {reason}")
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-c", program, str(folder / "job.json"), str(folder / "out.json")]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text())
