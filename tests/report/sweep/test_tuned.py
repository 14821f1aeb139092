"""A sweep over rates and budgets: the rate is chosen on validation text, and the command that widens the range."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from kldistill.report import collect
from kldistill.report.data import find_runs
from kldistill.report.sweep.collect import gather
from kldistill.report.sweep.formats import as_markdown
from tests.helpers.report_material import write_run

BITS = "eval/domain/bits_per_byte"
RATES, STEPS = (0.01, 0.02, 0.04), (25, 100)
# Validation by the distance (in rates of the grid) from the best one: what is best by it is not best on test text.
BEST = {("ce", 25): 2, ("ce", 100): 1, ("kl", 25): 0, ("kl", 100): 1}
JUDGED = {"ce": "bits_per_byte", "kl": "kl_to_teacher"}


def write(folder: Path, loss: str, steps: int, rate: float, seed: int, validation: float, bits: float) -> None:
    """A run with a rate and a budget of its own."""
    own = [f"distill.steps={steps}", f"loss={loss}", f"loss.lr={rate}", f"seed={seed}"]
    run = write_run(folder / ",".join(own), loss, "mean", seed, bits=bits, kl=0.2)
    record = json.loads((run / "run.json").read_text())
    record["config"] |= {"distill": {"steps": steps, "best_by": JUDGED[loss]}}
    record["config"]["loss"]["lr"] = rate
    record["metrics"][f"distill/validation_{JUDGED[loss]}"] = validation
    record["metrics"]["distill/validation_adoption"] = 0.1
    (run / "run.json").write_text(json.dumps(record))
    (run / ".hydra" / "overrides.yaml").write_text(json.dumps(["experiment=budgets", *own, "stages=[evaluate]"]))


def sweep(folder: Path, kept: Callable[[str, int, float], bool] = lambda *of: True) -> Path:
    for (loss, steps), best in BEST.items():
        for at, rate in enumerate(RATES):
            for seed in (0, 1):
                if kept(loss, steps, rate):
                    validation = 1.0 + 0.1 * abs(at - best) + 0.01 * seed
                    write(folder, loss, steps, rate, seed, validation, bits=0.9 + 0.1 * at - 0.0001 * steps)
    return folder


def test_every_loss_and_budget_has_the_rate_that_is_best_on_validation_text(tmp_path: Path) -> None:
    table = gather(find_runs(sweep(tmp_path)), tmp_path, "loss", "ce")
    found = {(entry["cell"]["loss"], int(entry["cell"]["distill.steps"])): entry for entry in table["tuned"]}
    assert found.keys() == BEST.keys()
    for (loss, steps), entry in found.items():
        at = BEST[loss, steps]
        assert entry["rate"] == str(RATES[at]) and entry["judged"] == f"distill/validation_{JUDGED[loss]}"
        assert entry["validation"] == pytest.approx(1.005), "the mean of both seeds"
        assert [rate for rate, _ in entry["tried"]] == [str(rate) for rate in RATES]
        assert entry["figures"][BITS] == pytest.approx(0.9 + 0.1 * at - 0.0001 * steps), "of the chosen runs"
        assert entry["edge"] == {0: "lowest tried", 1: "", 2: "highest tried"}[at]
    wider = {(loss, steps): entry["command"] for (loss, steps), entry in found.items() if entry["command"]}
    assert wider.keys() == {("ce", 25), ("kl", 25)}
    assert shlex.split(wider["ce", 25]) == [
        *("kldistill", "-m", "experiment=budgets", "distill.steps=25", "loss=ce", "loss.lr=0.08"),
        *("seed=0,1", "stages=[evaluate]"),
    ]
    assert "loss.lr=0.005" in wider["kl", 25]


def test_arms_are_compared_at_their_own_best_rates(tmp_path: Path) -> None:
    table = gather(find_runs(sweep(tmp_path)), tmp_path, "loss", "ce")
    found = {
        entry["cell"]["distill.steps"]: entry["difference"]
        for entry in table["differences"]
        if entry["metric"] == BITS and entry["cell"]
    }
    assert found == pytest.approx({"25": 0.9 - 1.1, "100": 0.0}, abs=1e-6), "kl at 0.01 with ce at 0.04"


def test_a_range_that_was_widened_for_one_arm_is_missing_nowhere_else(tmp_path: Path) -> None:
    sweep(tmp_path, lambda loss, steps, rate: (loss, steps, rate) != ("kl", 100, 0.04))
    for seed in (0, 1):
        write(tmp_path, "ce", 25, 0.08, seed, 1.2, 0.9)
    table = gather(find_runs(tmp_path), tmp_path, "loss", "ce")
    missing = [row["factors"] for row in table["runs"] if row["status"] == "missing"]
    assert missing == [
        {"distill.steps": "100", "loss.lr": "0.04", "loss": "kl", "seed": seed} for seed in ("0", "1")
    ], "what all the others tried"
    (entry,) = [one for one in table["tuned"] if one["cell"] == {"distill.steps": "25", "loss": "ce"}]
    assert (entry["rate"], entry["edge"], entry["command"]) == ("0.04", "", None)


def test_it_is_in_the_table_on_the_page_and_in_a_picture(tmp_path: Path) -> None:
    collect(sweep(tmp_path))
    text, page = (tmp_path / "results.md").read_text(), (tmp_path / "report.html").read_text()
    assert "| 25 | ce | 0.04 | 3 | bits_per_byte | 1.005 | highest tried | 1.098 |" in text
    assert "loss=ce loss.lr=0.08 seed=0,1" in text and "loss=ce loss.lr=0.08 seed=0,1" in page
    assert "The best rate by validation" in page
    assert (tmp_path / "budgets.png").read_bytes().startswith(b"\x89PNG")


def test_one_rate_is_no_search(tmp_path: Path) -> None:
    sweep(tmp_path, lambda loss, steps, rate: rate == 0.02)
    table = gather(find_runs(tmp_path), tmp_path, "loss", "ce")
    assert table["tuned"] == [] and "best rate" not in as_markdown(table)
    write(tmp_path, "ce", 25, 0.04, 0, 1.2, 0.9)
    table = gather(find_runs(tmp_path), tmp_path, "loss", "ce")
    entry = next(one for one in table["tuned"] if one["cell"] == {"distill.steps": "100", "loss": "ce"})
    assert entry["edge"] == "only one tried" and "loss.lr=0.01,0.04" in entry["command"]
