"""scripts/dashboard.py builds its workspace without a network, of names that runs really have."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from kldistill.runtime.tracking.labels import labels
from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What --dry-run prints."""
    pytest.importorskip("wandb_workspaces", reason='needs pip install "kldistill[dashboard]"')
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/dashboard.py", "me", "mine", "--group", "kl_vs_ce", "--dry-run"],
        env={**os.environ, "HOME": str(home), "WANDB_BASE_URL": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def panels(built: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in built["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def test_the_panels_are_there(built: dict[str, Any]) -> None:
    assert (built["entity"], built["project"]) == ("me", "mine")
    kinds = [panel["viewType"] for panel in panels(built)]
    assert kinds[:2] == ["Parallel Coordinates Plot", "Scatter Plot"]
    assert kinds.count("Bar Chart") == 6 and kinds.count("Run History Line Plot") == 3
    assert kinds.count("Media Browser") == 1
    assert json.dumps(built).count("kl_vs_ce") >= 1, "only the runs of the sweep"


def test_parallel_coordinates_go_over_init_and_loss_to_documented_figures(built: dict[str, Any]) -> None:
    accessors = [column["accessor"] for column in panels(built)[0]["config"]["columns"]]
    side = {"_target_": "kldistill.rows.inits.mean"}
    given = labels({"init": {"input": side, "output": side}, "loss": {"name": "kl"}})
    assert accessors[:3] == [*(f"config:labels.value.{key}" for key in given), "config:seed.value"]
    figures = [name.removeprefix("summary:") for name in accessors[3:]]
    assert len(figures) == 4
    documented = (ROOT / "docs/metrics.md").read_text()
    for name in figures:
        of, text, figure = re.fullmatch(r"eval/(\w+)/(\w+)/(\w+)", name).groups()  # type: ignore[union-attr]
        assert of == "distilled" and text in ("domain", "general")
        assert f"`eval/<model>/<text>/{figure}`" in documented, figure


def test_every_other_figure_is_documented_too(built: dict[str, Any]) -> None:
    documented = (ROOT / "docs/metrics.md").read_text()
    shown = set(re.findall(r"\b(?:distill|tokens)/(?!step)\w+", json.dumps(panels(built))))
    assert {"distill/seconds", "tokens/saved", "distill/loss"} <= shown
    for name in shown:
        known = name.replace("distill/validation_", "distill/validation_<figure> ").split()[0]
        assert f"`{known}`" in documented, name
