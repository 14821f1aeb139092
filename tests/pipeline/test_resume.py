"""Kill the pipeline with SIGKILL anywhere, run the same command again: the result is the same, bit for bit."""

import json
import os
import re
import signal
import subprocess
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kldistill.pipeline import compose
from kldistill.pipeline.steps import steps_of
from tests.helpers.interpreter import python
from tests.helpers.paths import HELPERS, ROOT
from tests.helpers.patience import PATIENCE
from tests.helpers.runs import SMALL, config, read_run, write_corpus

OVERRIDES = ["distill.steps=6", "runtime.checkpoint_every=2", "runtime.workers=1"]
# Parts of stages that are written like the rest of them, and take as long as all other stages.
OVERRIDES += ["tokens.curve=0", "interpret.completions=0"]
DIFFERENT = ("time", "tokens_per_second", "seconds", "peak_memory_bytes")  # between any two runs


@cache
def stages() -> list[str]:
    """All steps of a small run, in order."""
    return list(steps_of(compose.typed(config([*SMALL, "corpus.path=."]))))


def kill(pattern: str, n: int = 1, event: str = "open", torn: bool = False) -> dict[str, Any]:
    """A moment to be killed at (see resume_driver.py)."""
    return {"event": event, "pattern": pattern, "n": n, "torn": torn}


def last_moment(index: int, stage: str) -> dict[str, Any]:
    """In turn: some files are there, all files but no seal, sealed but not renamed."""
    if stage in SEALED:
        return kill(rf"/{stage}/\w+$", event="os.rename")
    # The export writes neither.
    last = r"\.artifact" if index % 2 or stage == "export" else "(summary|rows)"
    return kill(rf"/{stage}/\w+\.partial/{last}\.json$")


SEALED = ("corpus", "distill", "evaluate_distilled")
LINES = r"/distill/\w+\.partial/metrics\.jsonl$"  # validation at step 0, then a line a step, and validation at 2, 4, 6
CHECKPOINT = r"/checkpoint\.safetensors$"
# Each list is one run: killed at every moment in turn, by the same command again, until it finishes.
PLANS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "uninterrupted": lambda: [],
    "at the first file and at the end of each stage": lambda: [
        moment
        for index, stage in enumerate(stages())
        for moment in (kill(rf"/{stage}/\w+\.partial/"), last_moment(index, stage))
    ],
    "in training": lambda: [
        kill(LINES, 1),
        kill(LINES, 3),
        kill(LINES, 5, torn=True),
        kill(LINES, 1, torn=True),
        kill(LINES, 2),
        kill(LINES, 3),
    ],
    "between the stage's line and the run's": lambda: [
        kill(r"/runs/run/metrics\.jsonl$", 9, torn=True),
        kill(r"/runs/run/\.metrics\.jsonl\.[\d-]+\.tmp$", 1),
        kill(r"/runs/run/\.metrics\.jsonl\.[\d-]+\.tmp$", 2),
    ],
    "around checkpoints": lambda: [
        kill(CHECKPOINT, 1, event="os.rename"),
        kill(CHECKPOINT, 2, event="os.rename"),
        kill(CHECKPOINT, 2, event="os.rename"),
        kill(r"/distill/\w+\.partial/rows\.json$"),
        kill(CHECKPOINT, event="os.remove"),
    ],
    # The second attempt writes it once a step; the third, only for steps that the file does not name yet.
    "while run.json is written": lambda: [kill(r"/\.run\.json\.[\d-]+\.tmp$", n) for n in (1, 9, 3)],
}


# These begin with what the uninterrupted run has built before its training; the others build it themselves.
BEGUN = ("in training", "around checkpoints", "while run.json is written")


@dataclass
class Outcome:
    """What the attempts of one plan came to."""

    folder: Path
    codes: list[int] = field(default_factory=list)
    started: list[float] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def artifact(self, stage: str) -> Path:
        folder = self.folder / "outputs/runs/run"
        return folder / read_run(folder)["artifacts"][stage]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All plans, carried out by one driver process."""
    folder = tmp_path_factory.mktemp("resume")
    corpus = write_corpus(folder / "corpus")
    found = {name: Outcome(folder / f"plan{index}") for index, name in enumerate(PLANS)}
    jobs = []
    for name, plan in PLANS.items():
        found[name].folder.mkdir()
        places = {"log": found[name].folder / "log", "outputs": found[name].folder / "outputs", "corpus": corpus}
        if name in BEGUN:
            places["begun"] = found["uninterrupted"].folder / "outputs"
        jobs += [{**{key: str(path) for key, path in places.items()}, "kill": moment} for moment in [*plan(), None]]
    (folder / "jobs.json").write_text(json.dumps({"overrides": OVERRIDES, "jobs": jobs}))
    subprocess.run(
        [python(), HELPERS / "resume_driver.py", folder / "jobs.json", folder / "ends.json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=PATIENCE,
    )
    ends = iter(json.loads((folder / "ends.json").read_text()))
    for name, plan in PLANS.items():
        for _ in range(len(plan()) + 1):
            end = next(ends)
            found[name].codes.append(end["code"])
            found[name].started.append(end["started"])
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_every_kill_hit_and_the_last_attempt_finished(plan: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[plan]
    assert outcome.codes == [-signal.SIGKILL] * len(PLANS[plan]()) + [0], outcome.log
    assert read_run(outcome.folder / "outputs/runs/run")["status"] == "finished"


@pytest.mark.parametrize("plan", list(PLANS)[1:])
def test_the_rows_are_those_of_an_uninterrupted_run_bit_for_bit(plan: str, outcomes: dict[str, Outcome]) -> None:
    whole, mine = outcomes["uninterrupted"], outcomes[plan]
    for stage, file in (
        ("distill", "rows.safetensors"),
        ("init", "rows.safetensors"),
        ("teacher", "train.npy"),
        ("export", "model.safetensors"),
        ("tokens", "tokenizer/tokenizer.json"),
    ):
        assert (mine.artifact(stage) / file).read_bytes() == (whole.artifact(stage) / file).read_bytes(), stage
    first, second = (read_run(outcome.folder / "outputs/runs/run") for outcome in (whole, mine))
    assert first["artifacts"] == second["artifacts"]
    for name, value in first["metrics"].items():
        assert name.endswith(DIFFERENT) or second["metrics"][name] == value, name
    rows = (mine.artifact("distill") / "rows.safetensors").read_bytes()
    assert rows != (mine.artifact("init") / "rows.safetensors").read_bytes(), "something was trained at all"


def figures(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file without what differs between any two runs, by stage."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if not key.endswith(DIFFERENT)} for line in lines]
    return sorted(kept, key=lambda line: stages().index(line["stage"]))


@pytest.mark.parametrize("plan", PLANS)
def test_metrics_have_every_line_of_every_stage_once(plan: str, outcomes: dict[str, Outcome]) -> None:
    folder = outcomes[plan].folder / "outputs/runs/run"
    found = figures(folder / "metrics.jsonl")
    assert [x["step"] for x in found if "distill/loss" in x] == [1, 2, 3, 4, 5, 6]
    assert [x["step"] for x in found if "distill/validation_bits_per_byte" in x] == [0, 2, 4, 6]
    assert found == figures(outcomes["uninterrupted"].folder / "outputs/runs/run/metrics.jsonl")
    mine = figures(outcomes[plan].artifact("distill") / "metrics.jsonl")
    assert mine == [line for line in found if line["stage"] == "distill"]


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_is_left_lying_about(plan: str, outcomes: dict[str, Outcome]) -> None:
    outputs = outcomes[plan].folder / "outputs"
    for stage in stages():
        names = [path.name for path in (outputs / "artifacts" / stage).iterdir() if path.suffix != ".lock"]
        assert names == [outcomes[plan].artifact(stage).name]
    names = {path.name for path in (outputs / "runs/run").iterdir()}
    assert names == {path.name for path in (outcomes["uninterrupted"].folder / "outputs/runs/run").iterdir()}
    assert {"run.json", "metrics.jsonl"} <= names
    assert {name for name in names if name.startswith(".")} == {".lock"}, "who holds the folder is told by the lock"


def test_what_was_whole_or_sealed_is_built_once(outcomes: dict[str, Outcome]) -> None:
    log = outcomes["at the first file and at the end of each stage"].log
    counts = {stage: len(re.findall(rf"^{stage}: building", log, re.MULTILINE)) for stage in stages()}
    wanted = {stage: 2 if stage in SEALED else 3 for stage in stages()}
    assert counts == wanted, "until each of the kills, and after the second one, which some are sealed at"


def test_training_goes_on_from_the_last_checkpoint(outcomes: dict[str, Outcome]) -> None:
    """Attempt 0 has none; those after it leave checkpoints at steps 2, 4 and 6; the last two train no step."""
    outcome = outcomes["around checkpoints"]
    lines = map(json.loads, (outcome.artifact("distill") / "metrics.jsonl").read_text().splitlines())
    times = {line["step"]: line["time"] for line in lines if "distill/loss" in line}
    assert [bisect(outcome.started, times[step]) - 1 for step in range(1, 7)] == [1, 1, 2, 2, 3, 3]
