"""Disks that are full or cannot be written, through a whole small run; and signals that end a run."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kldistill.runtime.errors import StorageError
from tests.helpers.disks import ROOT_ON_LINUX, Disk, small_disk
from tests.helpers.interpreter import python
from tests.helpers.launched import environment
from tests.helpers.patience import PATIENCE
from tests.helpers.runs import overrides_of, read_run, run, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "files")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as made:
        yield made


@ROOT_ON_LINUX
@pytest.mark.slow
def test_a_disk_that_is_full_again_and_again_ends_in_the_same_figures(corpus: Path, disk: Disk, tmp_path: Path) -> None:
    """The disk grows by a little whenever it is full, so that it is full in many places of many stages."""
    outputs, failed = disk.folder / "outputs", []
    while True:
        try:
            found = run(corpus, outputs, draw=True)
            break
        except StorageError as error:
            assert "no space is left there: free some" in str(error)
            failed.append(str(error).partition(":")[0])
            path = outputs / "runs/run/run.json"
            if path.is_file():
                record = json.loads(path.read_text())
                if record["status"] == "finished":  # then the page alone is missing
                    assert "export" in record["artifacts"] and not (path.parent / "report.html").is_file()
                else:
                    assert record["status"] == "failed" and "no space is left" in record["error"], record.get("error")
        assert len(failed) < 400
        disk.grow(48)
    print(f"full {len(failed)} times, in {dict.fromkeys(failed)}")
    assert len(set(failed)) >= 6, "in many stages"
    whole = run(corpus, tmp_path / "whole", draw=True)
    timed = ("seconds", "per_second", "memory")
    for name, value in whole["metrics"].items():
        assert any(word in name for word in timed) or found["metrics"][name] == value, name
    assert not list(outputs.rglob("*.tmp"))


@ROOT_ON_LINUX
@pytest.mark.slow
def test_a_disk_that_cannot_be_written_is_told_before_anything_is_built(corpus: Path, disk: Disk) -> None:
    disk.grow(64 * 1024)
    outputs = disk.folder / "outputs"
    wanted = run(corpus, outputs, "stages=[tokens]")
    disk.read_only(True)
    for stages in ("[tokens]", "[init]"):
        with pytest.raises(StorageError, match="the file system is read-only: name another place with outputs=FOLDER"):
            run(corpus, outputs, f"stages={stages}")
    done = command(corpus, outputs, "stages=[init]")
    said, _ = done.communicate(timeout=PATIENCE)
    assert done.returncode == 1 and "Traceback" not in said
    assert "the file system is read-only" in said
    disk.read_only(False)
    assert run(corpus, outputs, "stages=[tokens]")["artifacts"] == wanted["artifacts"]


def command(corpus: Path, outputs: Path, *more: str) -> "subprocess.Popen[str]":
    """The command line, with both of its outputs in one."""
    return subprocess.Popen(
        [python(), "-m", "kldistill", *overrides_of(corpus, outputs, *more), f"hydra.run.dir={outputs}/runs/run"],
        cwd=outputs.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_with_one_clear_line_and_it_goes_on_later(
    number: signal.Signals, corpus: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    log = outputs / "runs/run/metrics.jsonl"
    arguments = ["stages=[distill]", "distill.steps=5000", "distill.snippets=20", "runtime.checkpoint_every=1"]
    running = command(corpus, outputs, *arguments)
    end = time.monotonic() + 1200
    while not (log.is_file() and log.read_text().count('"distill/loss"') > 3):  # the first checkpoint is there
        assert running.poll() is None and time.monotonic() < end, running.communicate()[0]
        time.sleep(0.1)
    running.send_signal(number)
    said, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 128 + number, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "Stopped" in line]
    assert f"Stopped by {number.name}. The same command goes on with what is finished." in line
    record: dict[str, Any] = read_run(outputs / "runs/run")
    assert record["status"] == "failed" and record["error"].startswith(f"Stopped: by {number.name}")
    assert list(record["artifacts"]) == ["model", "corpus", "tokens", "init", "teacher"]
    assert not (outputs / "runs/run/.holder.json").exists(), "the folder is free"
    assert list(outputs.glob("artifacts/distill/*.partial/checkpoint.safetensors")), "kept for the next time"
    assert line in (outputs / "runs/run/kldistill.log").read_text()
