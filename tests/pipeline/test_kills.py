"""At least a hundred SIGKILLs at random moments of every step: the same command ends with the same figures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import HELPERS, ROOT
from tests.helpers.patience import PATIENCE
from tests.helpers.runs import overrides_of, read_run, write_corpus
from tests.pipeline.test_resume import DIFFERENT

KILLS = 100
OVERRIDES = [
    "distill=solved",
    "distill.steps=12",
    "finetune=lora",
    "finetune.control=true",
    "finetune.steps=6",
    "finetune.validate_every=2",
    "finetune.lora.r=4",
    "eval.suites=[humaneval,completion]",
    "eval.limit=4",
    "runtime.checkpoint_every=2",
    "runtime.workers=1",
]
# Bytes of other kinds hold times, or the names of folders.
EXACT = (".safetensors", ".npy", "tokenizer.json", "new_tokens.jsonl", "train.jsonl", "test.jsonl")


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of all chains of attempts, and how every attempt ended."""
    folder = Path(os.environ.get("KLDISTILL_KILLS") or tmp_path_factory.mktemp("kills"))
    folder.mkdir(exist_ok=True)
    corpus = folder / "corpus"
    if not corpus.is_dir():
        write_corpus(corpus)
    work = {"folder": str(folder), "corpus": str(corpus), "overrides": OVERRIDES, "kills": KILLS}
    (folder / "work.json").write_text(json.dumps(work))
    done = subprocess.run(
        [sys.executable, HELPERS / "kills_driver.py", folder / "work.json", folder / "ends.jsonl"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in (folder / "ends.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_hundred_kills_fell_into_every_step(chains: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, ends = chains
    steps = list(read_run(folder / "chain0/outputs/runs/run")["artifacts"])
    fell = Counter(end["in"] for end in ends if end["killed"])
    print(f"{sum(fell.values())} kills in {len(fell)} steps: {dict(fell)}")
    assert sum(fell.values()) >= KILLS
    assert set(fell) >= set(steps) and len(steps) > 20
    assert not [end for end in ends if end["left"]], "what a killed run had started ends with it"


@pytest.mark.slow
def test_every_chain_ends_with_the_same_figures_and_the_same_bytes(chains: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = chains
    whole, *others = sorted(folder.glob("chain*"), key=lambda path: int(path.name.removeprefix("chain")))
    wanted = read_run(whole / "outputs/runs/run")
    assert len(others) >= 3
    for chain in others:
        found = read_run(chain / "outputs/runs/run")
        assert found["status"] == "finished" and found["artifacts"] == wanted["artifacts"]
        assert set(found["metrics"]) == set(wanted["metrics"])
        for name, value in wanted["metrics"].items():
            assert name.endswith((*DIFFERENT, "seconds_per_task")) or found["metrics"][name] == value, (
                chain.name,
                name,
            )
        for path in (whole / "outputs/artifacts").rglob("*"):
            if path.is_file() and path.name.endswith(EXACT):
                other = chain / path.relative_to(whole)
                assert other.read_bytes() == path.read_bytes(), other
        left = [path for path in (chain / "outputs").rglob("*") if path.name.endswith((".partial", ".tmp", ".old"))]
        assert not left


@pytest.mark.slow
def test_commands_at_once_share_their_work_and_one_of_them_may_die(tmp_path: Path) -> None:
    """Four runs of one configuration in folders of their own and a fifth in the folder of the first, all at once."""
    corpus = write_corpus(tmp_path / "corpus")
    outputs = tmp_path / "outputs"

    def start(name: str) -> "subprocess.Popen[str]":
        words = [*overrides_of(corpus, outputs, "runtime.workers=1"), f"hydra.run.dir={outputs}/runs/{name}"]
        return subprocess.Popen(
            [sys.executable, "-m", "kldistill", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a stopped process in a group whose leader is gone would end them all (SIGHUP)
        )

    def wait_for(pattern: str) -> None:
        end = time.monotonic() + 1800
        while not list(outputs.glob(pattern)):
            assert time.monotonic() < end, pattern
            time.sleep(0.02)

    running = {name: start(name) for name in "abcd"}
    wait_for("runs/a/.holder.json")
    running["a"].send_signal(signal.SIGSTOP)  # it stands still while the fifth starts, maybe in the others' way
    again = start("a")
    told, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 1 and "is in use by process" in told, told
    running["a"].send_signal(signal.SIGCONT)
    wait_for("artifacts/init/*")
    running.pop("b").kill()
    said = {name: process.communicate(timeout=PATIENCE)[0] for name, process in running.items()}
    assert [process.returncode for process in running.values()] == [0, 0, 0], said
    records = [read_run(outputs / "runs" / name) for name in "acd"]
    assert all(record["artifacts"] == records[0]["artifacts"] for record in records)
    assert all(record["metrics"] == records[0]["metrics"] for record in records)
    for stage in records[0]["artifacts"]:
        built = sum(text.count(f"{stage}: building") for text in said.values())
        assert built <= 1, "by one of them alone (or by the dead one)"
