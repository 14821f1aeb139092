"""The command line, as a user sees it: what it prints, and its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.interpreter import kldistill
from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE


def started(*arguments: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command in a new process, with all its imports."""
    return subprocess.run(
        [sys.executable, "-m", "kldistill", *arguments],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_cfg_job_shows_the_whole_configuration_and_runs_nothing(tmp_path: Path) -> None:
    done = kldistill("experiment=quickstart", "loss=ce", "distill.steps=20", "--cfg", "job", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = yaml.safe_load(done.stdout)
    assert shown["distill"]["steps"] == 20
    assert list(shown["loss"]["terms"]) == ["ce"]
    assert shown["model"]["_target_"] == "kldistill.model.smollm2.smollm2_135m"
    assert shown["corpus"]["max_bytes"] == 5_000_000
    assert not list(tmp_path.iterdir())


def test_help_names_choices_and_examples_without_loading_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is slow to load')\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = started("--help", folder=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    for text in ("GROUP=NAME picks a preset", "hf, smollm2_135m*, tiny", "experiment=quickstart", "slurm_local"):
        assert text in done.stdout
    done = started("--help", "tokens", folder=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 0 and "tokens.n_new=512" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["distill.stepz=1"], "distill.stepz: there is no such key. Did you mean distill.steps?"),
        (["distill.steps=many"], "Value 'many' of type 'str' could not be converted to Integer"),
        (["loss=klx"], "Could not find 'loss/klx'"),
        (["loss=klx", "--plan"], "Could not find 'loss/klx'"),
    ],
)
def test_what_hydra_refuses_ends_with_its_message(arguments: list[str], names: str, tmp_path: Path) -> None:
    done = kldistill(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert names in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["tokens.boundary=letter"],
            "tokens.boundary='letter': must be auto, word, identifier, dotted, qualified or line.",
        ),
        (["model=hf"], "model.path: Structured config of type `HfModelConfig` has missing mandatory value: path."),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_1(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = kldistill(*arguments, "logger=none", folder=tmp_path)
    assert done.returncode == 1
    said = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
    assert len(said) == 1 and message in said[0], done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir()), "no run folder is left behind"


def test_a_refused_value_does_not_wait_for_torch(tmp_path: Path) -> None:
    for name in ("torch", "transformers", "matplotlib", "peft"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is slow to load')\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = started("distill.lr=-1", folder=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 1
    assert done.stderr == "[kldistill][ERROR] - distill.lr=-1.0: must be above 0.\n"


def test_a_stages_refusal_is_one_line_too_and_the_named_run_folder_says_failed(tmp_path: Path) -> None:
    arguments = ["seed=3", "model=tiny", "model.vocab_size=90000", "stages=[model]", "logger=none", "runtime.workers=1"]
    done = kldistill(*arguments, folder=tmp_path)
    assert done.returncode == 1
    said = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
    assert len(said) == 1 and "model.vocab_size: training gave" in said[0]
    assert "Traceback" not in done.stdout + done.stderr
    folder = tmp_path / "outputs/runs/default/model.vocab_size=90000,model=tiny,seed=3"
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "failed" and run["error"].startswith("ModelError: model.vocab_size")
    assert yaml.safe_load((folder / ".hydra/overrides.yaml").read_text()) == arguments


Ended = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", params=[False, True], ids=["run", "sweep"])
def with_secrets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Where a run, or a sweep of two, was started with a token in an address and a value of the environment."""
    arguments = [
        "model=tiny",
        "model.vocab_size=300",
        "stages=[model]",
        "logger.mode=offline",
        "runtime.workers=1",
        'logger.tags=["https://me:t0ken-abcdef@host.org/x"]',
        "logger.group=k-0123456789",
        'export.license="https://me:t0ken-abcdef@host.org/y"',
    ]
    folder = tmp_path_factory.mktemp("secrets")
    words = ["-m", "seed=1,2", *arguments] if request.param else arguments
    done = kldistill(*words, folder=folder, env={"MY_API_KEY": "k-0123456789"})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_no_file_of_a_run_holds_what_is_secret(with_secrets: Ended) -> None:
    folder, done = with_secrets
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"run.json", "kldistill.log", "overrides.yaml", "config.yaml", "hydra.yaml"} <= names
    assert any(path.suffix == ".wandb" for path in files)
    assert ("multirun.yaml" in names) == (len(list(folder.rglob("run.json"))) == 2)
    for word in ("t0ken-abcdef", "k-0123456789"):
        assert word not in done.stdout + done.stderr
        for path in files:
            assert word not in str(path) and word.encode() not in path.read_bytes(), path


def test_the_log_holds_what_the_console_shows_also_in_a_sweep(with_secrets: Ended) -> None:
    folder, done = with_secrets
    logs = [path.read_text() for path in sorted(folder.rglob("kldistill.log"))]
    shown = [line for line in done.stdout.splitlines() if line.startswith(("model: ", "All figures of this run"))]
    assert len(shown) == 2 * len(logs) > 0
    for line in shown:
        assert sum(f"] {line}\n" in log for log in logs) == 1, line


@pytest.mark.parametrize("more", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
def test_outputs_that_cannot_be_written_are_one_line(more: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    done = kldistill(*more, f"outputs={tmp_path}/file/x", "logger=none", folder=tmp_path)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line == f"outputs: {tmp_path}/file/x/runs: a file is where a folder should be: move it away"
