"""Trackio gets what wandb gets. In processes of their own, as it reads its folder's name when it is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kldistill.runtime.config import LoggerConfig
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.tracking.tracker import Tracker
from tests.helpers.patience import PATIENCE

LOG = """
import sys
from pathlib import Path
from kldistill.runtime.config import LoggerConfig, RuntimeConfig
from kldistill.runtime.tracking.tracker import Tracker

run, out, again = Path(sys.argv[1]), Path(sys.argv[2]), len(sys.argv) > 3
resolved = {"loss": {"name": "kl"}, "secret": "hf_secret123"}
with Tracker(run, LoggerConfig(name="trackio"), resolved=resolved, name="seed=0", group="grid") as tracker:
    if again:
        tracker.replay("distill", out)
    else:
        job = tracker.job("distill", RuntimeConfig(), out)
        for step in range(3):
            job.log({"loss": step / 2, "none": None}, step=step)
        job.table("preflight", ["a", "b"], [["x", 1]])
    page = run / "page.html"
    page.write_text("<p>a page</p>")
    tracker.image("report", page)
    tracker.summary({"eval/domain/bits_per_byte": 0.9})
"""
READ = """
import json
from trackio.sqlite_storage import SQLiteStorage as Storage

(run,) = Storage.get_runs("kldistill")
print(json.dumps([run, Storage.get_logs("kldistill", run), Storage.get_run_config("kldistill", run)]))
"""


def python(folder: Path, body: str, *arguments: object) -> str:
    environment = {"TRACKIO_DIR": str(folder / "trackio"), "HF_TOKEN": "hf_secret123", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", body, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curves_tables_and_final_figures_are_sent_once_to_one_run(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="logger=trackio is an optional extra")
    run, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    assert "trackio show --project kldistill" in python(tmp_path, LOG, run, out)
    python(tmp_path, LOG, run, out, "again")
    name, logs, config = json.loads(python(tmp_path, READ).splitlines()[-1])
    assert name == f"grid/seed=0-{(run / 'trackio' / 'run_id').read_text()[:6]}"
    rows = [{key: row[key] for key in row if key not in ("timestamp", "step")} for row in logs]
    assert rows[:3] == [{"distill/step": step, "distill/loss": step / 2} for step in range(3)]
    assert rows[3]["distill/preflight"]["_value"] == [{"a": "x", "b": 1}]
    assert [list(row) for row in rows[4:]] == 2 * [["report"], ["eval/domain/bits_per_byte"]]
    assert (config["loss"], config["loss.name"], config["secret"]) == ("kl", "kl", "<HF_TOKEN>")
    assert "hf_secret123" not in json.dumps([logs, config])


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"logger\.name=trackio.*kldistill\[trackio\]"):
        Tracker(tmp_path / "run", LoggerConfig(name="trackio"))
    Tracker(tmp_path / "run", LoggerConfig(name="trackio", mode="disabled")).finish("finished")
