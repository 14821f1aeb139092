"""Several processes of one run: who builds, what the others get, and what they learn when one of them fails."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.processes import Processes, join, launched
from tests.helpers.interpreter import python
from tests.helpers.launched import environment, taken_port, together
from tests.helpers.paths import HELPERS
from tests.helpers.patience import PATIENCE
from tests.helpers.runs import overrides_of, read_run, run, write_corpus

# Of two runs that are the same but for the number of processes. Gradients are added up in another order.
CLOSE = {"rel": 2e-5, "abs": 1e-6}


# ---- building


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What became of every case in each of two processes, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    driver = [python(), HELPERS / "processes_driver.py", folder / "artifacts"]
    ends = together(driver, *([folder / f"told{rank}.json"] for rank in range(2)))
    assert [code for _, code in ends] == [0, 3], ends
    return [{end["case"]: end for end in json.loads((folder / f"told{rank}.json").read_text())} for rank in range(2)]


def test_the_main_process_builds_alone_and_the_other_gets_it_when_it_is_whole(told: list[dict[str, Any]]) -> None:
    assert [of["slow"]["ran"] for of in told] == [True, False]
    assert [of["slow"]["files"] for of in told] == [["artifact.json", "made_by_0"]] * 2


def test_what_is_there_is_built_by_nobody(told: list[dict[str, Any]]) -> None:
    assert [of["found"]["ran"] for of in told] == [False, False]
    assert [of["found"]["files"] for of in told] == [["artifact.json", "made_by_0"]] * 2


def test_all_run_a_common_stage_on_one_folder_and_can_exchange_tensors(told: list[dict[str, Any]]) -> None:
    assert [of["together"]["ran"] for of in told] == [True, True]
    files = ["artifact.json", "made_by_0", "made_by_1", "sum_in_0_is_3", "sum_in_1_is_3"]
    assert [of["together"]["files"] for of in told] == [files] * 2, "sealed after the last of them has finished"


def test_a_failure_of_the_main_process_reaches_the_other(told: list[dict[str, Any]]) -> None:
    assert told[0]["main fails"]["error"] == "OSError: the disk is full"
    assert told[1]["main fails"]["error"].startswith("ProcessError: The main process has failed at stage;")
    assert told[1]["main fails"]["ran"] is False
    assert [of["all is well again"]["files"] for of in told] == [["artifact.json", "made_by_0"]] * 2


def test_processes_that_see_different_inputs_are_refused(told: list[dict[str, Any]]) -> None:
    for of in told:
        assert of["different inputs"]["error"].startswith("ConfigError: The processes of this run would each build")
        assert of["different inputs"]["ran"] is False


def test_a_process_that_dies_does_not_leave_the_main_process_waiting(told: list[dict[str, Any]]) -> None:
    assert told[0]["the other dies"]["ran"] is True
    assert "error" in told[0]["the other dies"]
    assert "the other dies" not in told[1], "it told nothing more"


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == 1
    assert join(RuntimeConfig()) == Processes(rank=0, world=1)
    assert Processes().main


BINDS = """
import errno, os, pathlib, socket, sys
with socket.socket() as ours:
    try:
        ours.bind((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        said = "free"
    except OSError as error:
        said = errno.errorcode[error.errno]
pathlib.Path(sys.argv[1]).write_text(said)
"""


def test_no_other_process_can_take_the_port_where_processes_of_a_test_meet(tmp_path: Path) -> None:
    ends = together([python(), "-c", BINDS], *([tmp_path / str(rank)] for rank in range(2)))
    assert [code for _, code in ends] == [0, 0], ends
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["EADDRINUSE"] * 2


# ---- training


@pytest.fixture
def port() -> Iterator[int]:
    """For ``accelerate launch``, which lets torch choose another one."""
    with taken_port() as port:
        yield port


def launched_command(overrides: list[str], port: int) -> list[str]:
    """The command with two processes of ``accelerate launch``."""
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", str(port)]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [python(), "-m", "accelerate.commands.launch", *launch, "-m", "kldistill", *overrides]


def test_two_processes_train_like_one(tmp_path: Path, port: int) -> None:
    """Same global batch, halves of different numbers of positions: the same losses, but for the order of additions."""
    corpus = write_corpus(tmp_path / "corpus")
    how = [
        "distill=lora",
        "distill.general=0",
        "distill.solve.iterations=2",
        "loss=kl_ce_light",
    ]  # the default, but for size
    more = ["stages=[distill]", *how, "distill.batch_size=3", "distill.steps=5", "seed=1"]
    one = run(corpus, tmp_path / "one", *more)
    for name, path in one["artifacts"].items():
        if name != "distill":
            source = (tmp_path / "one/runs/run" / path).resolve()
            shutil.copytree(source, tmp_path / "two/artifacts" / name / source.name)
    overrides = [*overrides_of(corpus, tmp_path / "two", *more), f"hydra.run.dir={tmp_path / 'two/runs/run'}"]
    done = subprocess.run(
        launched_command(overrides, port),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    two = read_run(tmp_path / "two/runs/run")
    assert two["status"] == "finished" and two["artifacts"] == one["artifacts"], "the same fingerprints"
    assert done.stdout.count("distill: building") == 1, "only the main process speaks"
    lines = [losses(tmp_path / name / "runs/run") for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 5
    for single, several in zip(*lines, strict=True):
        assert several == pytest.approx(single, **CLOSE)
    keys = [key for key in one["metrics"] if key.startswith("distill/validation_")]
    assert keys
    for key in keys:
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], **CLOSE), key


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_ends_all_and_the_same_command_goes_on(rank: str, tmp_path: Path, port: int) -> None:
    """SIGKILL in the middle of training, for the main process and for the other one."""
    corpus = write_corpus(tmp_path / "corpus")
    folder = tmp_path / "outputs/runs/run"
    more = ["stages=[distill]", "distill.batch_size=2", "distill.steps=30", "runtime.checkpoint_every=1"]
    command = launched_command([*overrides_of(corpus, tmp_path / "outputs", *more), f"hydra.run.dir={folder}"], port)
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log, end = folder / "metrics.jsonl", time.monotonic() + 1200
    while not (log.is_file() and log.read_text().count('"distill/loss"') > 3):
        assert running.poll() is None and time.monotonic() < end, running.communicate()[0]
        time.sleep(0.05)
    family = psutil.Process(running.pid).children(recursive=True)
    (victim,) = (process for process in family if process.environ().get("RANK") == rank)
    victim.kill()
    said, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode != 0, said
    assert not psutil.wait_procs(family, timeout=PATIENCE)[1], "nobody is left waiting"
    assert read_run(folder)["status"] == ("failed" if rank == "1" else "running"), "the dead cannot tell"
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert read_run(folder)["status"] == "finished"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"distill/loss"' in line]
    assert steps == list(range(1, 31)), "every step once"


def losses(folder: Path) -> list[dict[str, float]]:
    """Loss, its terms and the gradient's norm of every step; each step must be there once."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "distill/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [{key: line[f"distill/{key}"] for key in ("loss", "kl", "ce", "lr", "gradient_norm")} for line in lines]
