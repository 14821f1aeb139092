"""What a run gives back to a sweeper that optimises: as a function, and through a real sweep."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kldistill.pipeline.cli import objective
from kldistill.pipeline.compose import overrides_name
from kldistill.runtime.errors import ConfigError
from tests.helpers.paths import ROOT
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
    command = [sys.executable, "-m", "kldistill", "-m", "--config-dir", str(tmp_path / "conf")]
    # The share of tokens saved grows with the number of tokens: the smaller number has the smaller one.
    more = ["hydra/sweeper=doubling", "stages=[tokens]", "objective=tokens/saved"]
    done = subprocess.run(
        [*command, *overrides_of(corpus, tmp_path / "outputs", *more)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'path'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {int(key): value for key, value in json.loads(out.read_text()).items()}
    assert list(found) == [8, 16], "8 was the better one, and its double was known"
    assert 0 < found[8] < found[16] < 1 and not any(math.isnan(value) for value in found.values())
