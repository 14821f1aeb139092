"""What a run gives back to a sweeper that optimises: as a function, and through a real sweep."""

import json
import math
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kldistill.pipeline.cli import no_objective, objective
from kldistill.pipeline.names import overrides_name
from kldistill.runtime.errors import ConfigError
from tests.helpers.interpreter import python
from tests.helpers.launched import environment
from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE
from tests.helpers.runs import overrides_of, write_corpus

METRICS = {"eval/distilled/domain/bits_per_byte": 0.9, "tokens/saved": 0.1}

# Tries two values of one key, and then the better one's double: each trial depends on what the earlier ones gave back.
SWEEPER = """
import json
from pathlib import Path
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Doubling(Sweeper):
    def __init__(self, key, first, second, out):
        self.key, self.values, self.out = key, [first, second], out

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def trial(self, number, value, arguments):
        (done,) = self.launcher.launch([[*arguments, f"{self.key}={value}"]], initial_job_idx=number)
        return done.return_value

    def sweep(self, arguments):
        found = {value: self.trial(n, value, arguments) for n, value in enumerate(self.values)}
        best = min(found, key=found.get)
        found[2 * best] = self.trial(2, 2 * best, arguments)
        Path(self.out).write_text(json.dumps(found))
"""


def test_an_objective_is_one_figure_or_several() -> None:
    assert objective(None, METRICS) is None
    assert objective("tokens/saved", METRICS) == 0.1
    assert objective(["tokens/saved", "eval/distilled/domain/bits_per_byte"], METRICS) == [0.1, 0.9]
    with pytest.raises(ConfigError, match=r"no such figure\. Near it are: eval/distilled/domain/bits_per_byte"):
        objective("eval/distilled/domain/bits_per_bite", METRICS)


def test_the_objective_is_no_part_of_a_runs_name() -> None:
    assert overrides_name(["objective=tokens/saved", "seed=1"]) == "seed=1"


def test_a_sweeper_that_optimises_is_told_what_each_run_came_to(tmp_path: Path) -> None:
    plugin = tmp_path / "path/hydra_plugins/doubling"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(SWEEPER)
    corpus = write_corpus(tmp_path / "files")
    out = tmp_path / "found.json"
    sweeper = {
        "_target_": "hydra_plugins.doubling.Doubling",
        "key": "tokens.n_new",
        "first": 8,
        "second": 16,
        "out": str(out),
    }
    conf = tmp_path / "conf/hydra/sweeper"
    conf.mkdir(parents=True)
    (conf / "doubling.yaml").write_text(json.dumps(sweeper))
    command = [python(), "-m", "kldistill", "-m", "--config-dir", str(tmp_path / "conf")]
    # The share of tokens saved grows with the number of tokens: the smaller number has the smaller one.
    more = ["hydra/sweeper=doubling", "stages=[tokens]", "objective=tokens/saved"]
    done = subprocess.run(
        [*command, *overrides_of(corpus, tmp_path / "outputs", *more)],
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path / 'path'}{os.pathsep}{ROOT}"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {int(key): value for key, value in json.loads(out.read_text()).items()}
    assert list(found) == [8, 16], "8 was the better one, and its double was known"
    assert 0 < found[8] < found[16] < 1 and not any(math.isnan(value) for value in found.values())


def test_a_failed_run_gives_back_what_its_sweeper_knows_as_such() -> None:
    assert no_objective(None, "hydra._internal.core_plugins.basic_sweeper.BasicSweeper") is None
    assert math.isnan(no_objective("tokens/saved", "hydra_plugins.mine.Sweeper"))  # type: ignore[arg-type]
    assert len(no_objective(["a", "b"], "hydra_plugins.mine.Sweeper")) == 2  # type: ignore[arg-type]
    assert no_objective("tokens/saved", "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper") is None


def optuna(folder: Path, *given: str) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    """Run a sweep by Optuna of a tiny model; what it names as the best, and the records of its runs."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason='pip install -e ".[optuna]"')
    small = overrides_of(write_corpus(folder / "files"), folder / "outputs", "corpus.general_train=0.5")
    small = ["corpus.general.packages=[rich,numpy]" if "general.packages" in word else word for word in small]
    done = subprocess.run(
        [python(), "-m", "kldistill", "-m", *given, *small, "eval.suites=[]"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = folder.glob("outputs/runs/*/optimization_results.yaml")
    best = OmegaConf.to_container(OmegaConf.load(told))
    assert isinstance(best, dict)
    return best, [json.loads(path.read_text()) for path in told.parent.glob("*/run.json")]


@pytest.mark.slow
def test_optuna_finishes_three_trials_and_names_the_best(tmp_path: Path) -> None:
    """The command that docs/tuning.md has, with three trials of a tiny model."""
    text = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^kldistill -m .*hydra/sweeper=optuna.*$", text, flags=re.MULTILINE)
    given = [word for word in shlex.split(line)[2:] if not word.startswith("hydra.sweeper.n_trials=")]
    best, runs = optuna(tmp_path, *given, "hydra.sweeper.n_trials=3", "stages=[evaluate]")
    found = {run["config"]["distill"]["lr"]: run["metrics"]["eval/distilled/domain/bits_per_byte"] for run in runs}
    assert len(set(found.values())) == len(found) == 3 and all(run["status"] == "finished" for run in runs)
    assert found[best["best_params"]["distill.lr"]] == best["best_value"] == min(found.values())


@pytest.mark.slow
def test_a_failed_trial_ends_no_sweep_of_optuna(tmp_path: Path) -> None:
    given = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    # With this seed the second and the third trial are unlike the first, which fails.
    given += ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=1"]
    more = ["hydra.sweeper.direction=maximize", "objective=tokens/saved", "stages=[tokens]"]
    best, runs = optuna(tmp_path, *given, *more, "tokens.min_count=choice(2,1000000,8)", "tokens.n_new=8")
    assert sorted(run["status"] for run in runs) == ["failed", "finished", "finished"]
    assert best["best_value"] == max(run["metrics"]["tokens/saved"] for run in runs if run["status"] == "finished")
