"""Kills runs (SIGKILL) at random moments of every step, again and again. Called by test_kills.py.

Like ``resume_driver.py`` a script of its own that forks each attempt. Reads what to do (JSON) from the first file it is
given. Appends a line for every attempt to the second, so that it can be looked at, and goes on from there when it is
started again: a chain that was cut short is begun anew in the same folder.

A chain is one run in one folder, killed once in every step by turns and then let through to its end. The killer is
another process, so a kill can fall between any two instructions, also inside Rust and C.
"""

import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from kldistill.pipeline import compose
from kldistill.pipeline.run import run_pipeline
from kldistill.pipeline.steps import steps_of
from tests.helpers.forks import forked, warm
from tests.helpers.runs import config, overrides_of, read_run

PATIENCE = 20.0  # seconds for what a killed process has started to end


def start(cfg: compose.Config, outputs: Path, log: Path) -> int:
    """One attempt in a child process, everything it says appended to ``log``; gives its pid."""
    return forked(lambda: run_pipeline(dataclasses.replace(cfg, outputs=str(outputs)), outputs / "runs/run"), log)


def building(log: Path, offset: int) -> str | None:
    """The step that is being built, by what was said since ``offset``."""
    said = log.read_text(errors="replace")[offset:] if log.is_file() else ""
    names = [line.partition(": building ")[0].split()[-1] for line in said.splitlines() if ": building " in line]
    return names[-1] if names else None


def attempt(cfg: compose.Config, folder: Path, step: str | None, after: float) -> dict[str, Any]:
    """One attempt, killed so many seconds after it began to build ``step`` (never for None), and how it ended."""
    log = folder / "log"
    offset = len(log.read_text(errors="replace")) if log.is_file() else 0
    pid = start(cfg, folder / "outputs", log)
    due: float | None = None
    while step is not None:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        if due is None and building(log, offset) == step:
            due = time.monotonic() + after
        if due is not None and time.monotonic() >= due:
            break
        time.sleep(0.002)
    # A child that has ended is a zombie until it is waited for, so this is still the same process.
    started = psutil.Process(pid).children(recursive=True) if step is not None else []
    if step is not None:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _, left = psutil.wait_procs(started, timeout=PATIENCE)
    return {"killed": code == -signal.SIGKILL, "code": code, "in": building(log, offset), "left": len(left)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm()
    work, ends = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    root = Path(work["folder"])
    cfg = compose.typed(config(overrides_of(Path(work["corpus"]), root / "outputs", *work["overrides"])))

    def note(chain: int, **end: Any) -> None:
        with ends.open("a") as file:
            file.write(json.dumps({"chain": chain, **end}) + "\n")

    done = [json.loads(line) for line in ends.read_text().splitlines()] if ends.is_file() else []
    finished = {end["chain"] for end in done if end["code"] == 0}
    kills = sum(end["killed"] for end in done)
    steps = list(steps_of(cfg))
    chain = 0
    while chain == 0 or kills < work["kills"]:
        folder = root / f"chain{chain}"
        folder.mkdir(exist_ok=True)
        if chain not in finished:
            if chain:  # the first is not interrupted: what all others must come to
                seconds = read_run(root / "chain0/outputs/runs/run")["about"]["seconds"]
                chance = random.Random(chain)
                for step in steps:
                    end = attempt(cfg, folder, step, chance.uniform(0, 1.1) * seconds[step])
                    kills += end["killed"]
                    note(chain, step=step, **end)
            end = attempt(cfg, folder, None, 0)
            note(chain, step=None, **end)
            if end["code"]:
                sys.exit(f"chain {chain} did not end: {folder / 'log'}")
        chain += 1
