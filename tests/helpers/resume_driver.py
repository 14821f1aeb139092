"""Runs the pipeline again and again in processes that are killed at chosen moments. Called by test_resume.py.

A script of its own: it loads torch once and forks an attempt from there, which is only sound in a process that has
never trained anything. Reads a list of attempts (JSON) from the first file it is given, writes to the second when each
began and how it ended.

An attempt is killed (SIGKILL) just before the ``n``-th time that it opens, renames or removes a file whose path matches
a regular expression: no moment is out of reach, and no code of the package knows of it.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kldistill.pipeline import compose
from kldistill.pipeline.run import run_pipeline
from tests.helpers.forks import ended, forked, warm
from tests.helpers.runs import config, overrides_of, undrawn

WATCHED = {"open": 0, "os.rename": 1, "os.remove": 0}  # audit events, and which argument is the path


def kill_at(event: str, pattern: str, n: int, torn: bool) -> None:
    """Arrange the kill; with ``torn``, half a line is in the file by then."""
    left, ready = n, True

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left, ready
        if name != event or not ready or not isinstance(arguments[WATCHED[name]], str | os.PathLike):
            return
        if name == "open" and not set(str(arguments[1])) & set("wax+"):
            return
        path = os.fspath(arguments[WATCHED[name]])
        if not re.search(pattern, path):
            return
        left -= 1
        if left:
            return
        ready = False
        if torn:
            with open(path, "ab") as file:
                file.write(b'{"stage": "distill", "st')
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(cfg: compose.Config, job: dict[str, Any]) -> dict[str, float]:
    """Run once in a child process; when it began, and its exit code, or minus the signal that killed it."""

    if "begun" in job and not Path(job["outputs"]).exists():
        for step in ("model", "corpus", "tokens", "init", "evaluate_original", "evaluate_init", "teacher"):
            shutil.copytree(Path(job["begun"]) / "artifacts" / step, Path(job["outputs"]) / "artifacts" / step)

    def work() -> None:
        if job["kill"] is not None:
            kill_at(**job["kill"])
        with undrawn():
            run_pipeline(dataclasses.replace(cfg, outputs=job["outputs"]), Path(job["outputs"]) / "runs/run")

    started = time.time()
    return {"started": started, "code": ended(forked(work, Path(job["log"])))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm()
    work = json.loads(Path(sys.argv[1]).read_text())
    first = work["jobs"][0]
    cfg = compose.typed(config(overrides_of(Path(first["corpus"]), Path(first["outputs"]), *work["overrides"])))
    # What is slow the first time is done before the forks, but for training.
    with TemporaryDirectory() as folder, undrawn():
        before = dataclasses.replace(cfg, outputs=folder, stages=["evaluate_init", "teacher"])
        run_pipeline(before, Path(folder) / "run")
    ends = [attempt(cfg, job) for job in work["jobs"]]
    Path(sys.argv[2]).write_text(json.dumps(ends))
