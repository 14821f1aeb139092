"""Kill fine-tuning with SIGKILL, run it again: the result is the same, bit for bit, whatever dropout drew."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.interpreter import python
from tests.helpers.paths import HELPERS, ROOT
from tests.helpers.patience import PATIENCE
from tests.helpers.setting import make_inputs

CHECKPOINT = r"/checkpoint\.safetensors$"
# A checkpoint every 2 of 6 steps. Each list is one run, killed at every moment in turn until it finishes.
KILLS: dict[str, list[tuple[str, str, int]]] = {
    "uninterrupted": [],
    "around checkpoints": [("os.rename", CHECKPOINT, 1), ("os.rename", CHECKPOINT, 2), ("os.rename", CHECKPOINT, 2)],
    "after the last step": [("open", r"/rows\.json$", 1), ("os.remove", CHECKPOINT, 1)],
}
METHODS = {
    "lora": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
    "full": ("body.safetensors",),
}
SETTINGS = {
    "steps": 6,
    "batch_size": 2,
    "lr": 1e-2,
    "rows_lr": 3e-2,
    "lr_unit": "one",
    "validate_every": 3,
    "snippet_bytes": 300,
}


@pytest.fixture(scope="module")
def outcomes(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[int]]]:
    """Where the results are (METHOD/PLAN), and the exit codes of all attempts; all in one driver process."""
    root = tmp_path_factory.mktemp("finetune_resume")
    source = tiny_model("gpt2", tied=False, hidden_size=32)  # a family with dropout in its own body
    folders = make_inputs(source, fake_tokens(source), root, tied=False, learnt=False)
    jobs: list[dict[str, Any]] = []
    for method in METHODS:
        for name, moments in KILLS.items():
            out = root / method / name
            out.mkdir(parents=True)
            settings = {**SETTINGS, "method": method, "gradient_checkpointing": method == "full"}
            for moment in [*moments, None]:
                kill = None if moment is None else dict(zip(("event", "pattern", "n"), moment, strict=True))
                jobs.append(
                    {"out": str(out), "settings": settings, "kill": None if kill is None else {**kill, "torn": False}}
                )
    work = {"folders": {name: str(path) for name, path in {**folders, "rows": folders["init"]}.items()}, "jobs": jobs}
    (root / "jobs.json").write_text(json.dumps(work))
    done = subprocess.run(
        [python(), HELPERS / "finetune_driver.py", root / "jobs.json", root / "codes.json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    codes = iter(json.loads((root / "codes.json").read_text()))
    return root, {
        f"{method}/{name}": [next(codes) for _ in range(len(KILLS[name]) + 1)] for method in METHODS for name in KILLS
    }


@pytest.mark.parametrize("plan", KILLS)
@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_that_of_an_uninterrupted_run_bit_for_bit(
    method: str, plan: str, outcomes: tuple[Path, dict[str, list[int]]]
) -> None:
    root, codes = outcomes
    assert codes[f"{method}/{plan}"] == [-signal.SIGKILL] * len(KILLS[plan]) + [0]
    whole, mine = root / method / "uninterrupted", root / method / plan
    for file in ("rows.safetensors", *METHODS[method]):
        assert (mine / file).read_bytes() == (whole / file).read_bytes(), file
    assert (mine / "rows.safetensors").read_bytes() != (root / "init" / "rows.safetensors").read_bytes()
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (whole, mine))
    for name in ("finetune/validation_bits_per_byte", "finetune/validation_kl_to_teacher"):
        assert first[name] == second[name]
    assert {path.name for path in mine.iterdir()} == {path.name for path in whole.iterdir()}
    assert not (mine / "checkpoint.safetensors").exists()
