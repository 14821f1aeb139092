"""Collecting the runs of a sweep: factors, means, paired differences, what is missing."""

import csv
import io
import json
import os
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from kldistill.pipeline.sweeps import Collect
from kldistill.report import collect as painted
from kldistill.report.__main__ import main
from kldistill.report.data import ReportError, find_runs
from kldistill.report.sweep.charts import heat_maps, paint
from kldistill.report.sweep.collect import gather as gather_runs
from kldistill.report.sweep.factors import expected, factors
from kldistill.report.sweep.heat_map import heat_map
from tests.helpers.report_material import HOSTILE, write_json, write_jsonl, write_overrides, write_run, write_sweep
from tests.helpers.unpainted import unpainted

LOSSES = {"ce": 0.0, "kl": 0.02, "kl_ce": -0.03}
BITS, KL = "eval/domain/bits_per_byte", "eval/domain/kl_to_teacher"


def entries(table: dict, metric: str, value: str) -> dict[str | None, dict]:
    """The differences of one metric and value by init; None: all inits together."""
    found = [entry for entry in table["differences"] if (entry["metric"], entry["value"]) == (metric, value)]
    return {entry["cell"]["init"] if entry["cell"] else None: entry for entry in found}


def gather(folder: Path, factor: str = "loss", baseline: str = "ce") -> dict:
    """The table alone, without drawing the page."""
    return gather_runs(find_runs(folder), folder, factor, baseline)


def collect(folder: Path, **how: Any) -> dict:
    """The table and the page, its pictures blank."""
    with unpainted():
        return painted(folder, **how)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A sweep that was gathered, and its table. Shared: nobody changes either."""
    folder = write_sweep(tmp_path_factory.mktemp("grid"), LOSSES, inits=2)
    return folder, painted(folder)


def contents(folder: Path) -> dict[str, bytes]:
    names = ("results.csv", "results.md", "results.json", "report.html")
    return {name: (folder / name).read_bytes() for name in names}


def test_a_grid_is_gathered(grid: tuple[Path, dict]) -> None:
    folder, table = grid
    assert table["factors"] == {"init": ["mean", "random"], "loss": ["ce", "kl", "kl_ce"], "seed": ["0", "1", "2"]}
    assert [row["status"] for row in table["runs"]] == ["finished"] * 18
    assert table["runs"][0]["factors"] == {"init": "mean", "loss": "ce", "seed": "0"}
    (mean,) = [
        entry for entry in table["means"] if entry["cell"] == {"init": "mean", "loss": "kl"} and entry["metric"] == BITS
    ]
    values = [
        row["figures"][BITS]
        for row in table["runs"]
        if (row["factors"]["init"], row["factors"]["loss"]) == ("mean", "kl")
    ]
    assert mean["n"] == 3
    assert mean["mean"] == pytest.approx(sum(values) / 3)
    assert mean["low"] < mean["mean"] < mean["high"]
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert len(rows) == 18
    assert float(rows[0][BITS]) == pytest.approx(table["runs"][0]["figures"][BITS])
    assert {f"{BITS}/low", f"{BITS}/high", "tokens/saved"} <= rows[0].keys()


def test_the_original_stands_beside_the_arms(grid: tuple[Path, dict]) -> None:
    folder, table = grid
    found = {(entry["model"], entry["metric"]): entry for entry in table["references"]}
    run = json.loads(next(folder.rglob("run.json")).read_text())["metrics"]
    entry = found["original", BITS]
    assert entry["mean"] == pytest.approx(run["eval/original/domain/bits_per_byte"]) and entry["n"] == 1
    assert entry["low"] == run["eval/original/domain/bits_per_byte/low"] < entry["mean"] < entry["high"]
    assert "On the same texts and tasks" in (folder / "results.md").read_text()
    assert "What no arm is" in (folder / "report.html").read_text()
    assert not any(model != "original" for model, _ in found), "no control was trained"


def test_a_fine_tuned_original_is_averaged_over_seeds(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"ce": 0.0}, inits=1)
    for seed, path in enumerate(sorted(tmp_path.rglob("run.json"))):
        content = json.loads(path.read_text())
        content["metrics"]["eval/control/domain/bits_per_byte"] = 0.7 + 0.01 * seed
        path.write_text(json.dumps(content))
    (entry,) = [one for one in gather(tmp_path)["references"] if one["model"] == "original, fine-tuned"]
    assert (entry["metric"], entry["n"]) == (BITS, 3)
    assert entry["mean"] == pytest.approx(0.71) and entry["low"] < 0.7 < 0.72 < entry["high"]


def test_of_the_original_the_value_with_the_narrowest_interval_is_shown(tmp_path: Path) -> None:
    """Runs that score the same texts differ by rounding; what is of fewer texts is another figure, not another seed."""
    write_sweep(tmp_path, {"ce": 0.0}, inits=1)
    key, widths = "eval/original/domain/bits_per_byte", [0.05, 0.04, 0.2]
    for path, width, value in zip(sorted(tmp_path.rglob("run.json")), widths, [0.9, 0.9 + 1e-8, 0.8], strict=True):
        content = json.loads(path.read_text())
        content["metrics"] |= {key: value, f"{key}/low": value - width, f"{key}/high": value + width}
        path.write_text(json.dumps(content))
    (entry,) = [one for one in gather(tmp_path)["references"] if one["metric"] == BITS]
    assert (entry["model"], entry["n"], entry["mean"]) == ("original", 1, 0.9 + 1e-8)
    assert (entry["low"], entry["high"]) == pytest.approx((0.86, 0.94))


def test_differences_are_paired_and_judged(grid: tuple[Path, dict]) -> None:
    folder, table = grid
    bits, kl = entries(table, BITS, "kl"), entries(table, KL, "kl")
    assert bits.keys() == {"mean", "random", None}
    for entry in bits.values():
        assert (entry["n"], entry["verdict"]) == (3, "worse")
        assert entry["difference"] == pytest.approx(0.02, abs=0.006)
        assert entry["low"] < entry["difference"] < entry["high"]
        assert entry["low"] > 0 and entry["documents"] == 10
        assert entry["p"] < entry["p_holm"] < 0.05
    assert {entry["verdict"] for entry in kl.values()} == {"trained on it"}
    between = [entry for entry in table["differences"] if entry["metric"] == "eval/domain/new_token_nats"]
    assert {(entry["verdict"], entry["p_holm"]) for entry in between} == {("", None)}, "bits/byte has them in it"
    same = [entry for entry in table["differences"] if entry["metric"] == "tokens/saved"]
    assert {entry["verdict"] for entry in same} == {"same"}
    text = (folder / "results.md").read_text()
    assert "| mean | kl | Bits per byte, domain | +0.0" in text
    assert "Tokens saved | +0.0" not in text  # the same in all cells says nothing


def test_the_main_figures_are_a_picture_too(grid: tuple[Path, dict], tmp_path: Path) -> None:
    folder, table = grid
    first = (folder / "heat_map.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert heat_map(table, tmp_path) == tmp_path / "heat_map.png"
    assert (tmp_path / "heat_map.png").read_bytes() == first, "the same runs give the same picture"
    # One factor alone, or one run, has no second side.
    line = write_sweep(tmp_path / "line", LOSSES, inits=1)
    assert heat_map(gather(line), line) is None
    assert not (tmp_path / "line/heat_map.png").exists()


def test_the_picture_is_brighter_where_a_model_is_better() -> None:
    assert paint(0.0, "lower") == paint(1.0, "higher")
    (best, light), (worst, dark) = paint(1.0, "higher"), paint(0.0, "higher")
    assert light and not dark, "figures on them are black on the best, white on the worst"
    assert best != worst


def test_what_the_rows_learnt_is_drawn_side_by_side(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, LOSSES, inits=1)
    for loss, seed, nats in (("ce", 0, 0.5), ("kl", 1, 0.25), ("kl", 2, 0.125)):
        run = folder / f"init=random,loss={loss},seed={seed}"
        curve = {"mean": [2 * nats, nats]}
        write_json(run / "artifacts/interpret/interpret.json", {"lens": {"after": {"trained": {"js": curve}}}})
        record = json.loads((run / "run.json").read_text())
        record["artifacts"]["interpret"] = "artifacts/interpret"
        write_json(run / "run.json", record)
    collect(folder)
    page = (folder / "report.html").read_text()
    # Of kl the first seed that has one; kl_ce has none.
    assert "ce: JS at the last layer 0.5; kl: JS at the last layer 0.25." in page
    shutil.rmtree(folder / "init=random,loss=ce,seed=0/artifacts/interpret")
    collect(folder)
    assert "No two cells have a run whose stage" in (folder / "report.html").read_text()


def test_noise_is_not_called_a_difference(tmp_path: Path) -> None:
    for seed, extra in enumerate((0.03, -0.02, -0.01)):
        write_run(tmp_path / f"ce{seed}", "ce", "mean", seed, bits=0.9, kl=0.4)
        write_run(tmp_path / f"kl{seed}", "kl", "mean", seed, bits=0.9 + extra, kl=0.4)
    table = gather(tmp_path)
    (entry,) = [entry for entry in table["differences"] if entry["metric"] == BITS]
    assert (entry["verdict"], entry["n"]) == ("cannot tell", 3)


def test_one_seed_is_called_so(tmp_path: Path) -> None:
    table = collect(write_sweep(tmp_path, {"ce": 0.0, "kl": 0.02}, seeds=1, inits=2))
    assert {entry["verdict"] for entry in entries(table, BITS, "kl").values()} == {"one seed"}
    assert entries(table, BITS, "kl")["mean"]["low"] > 0, "over documents alone"
    assert entries(table, BITS, "kl")["mean"]["p"] is None
    assert "One seed" in (tmp_path / "report.html").read_text()


def test_missing_failed_and_unbegun_runs_are_shown(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"ce": 0.0, "kl": 0.02}, inits=2)
    shutil.rmtree(tmp_path / "init=mean,loss=kl,seed=2")
    write_run(tmp_path / "init=random,loss=kl,seed=0", "kl", "random", 0, bits=0, kl=0, status="failed")
    (tmp_path / "init=random,loss=kl,seed=1" / "run.json").unlink()
    (tmp_path / "init=random,loss=kl,seed=2" / "run.json").write_text("{torn")
    table = collect(tmp_path)
    status = {tuple(row["factors"].values()): (row["status"], row["error"]) for row in table["runs"]}
    assert len(status) == 12
    assert status["mean", "kl", "2"] == ("missing", "")
    assert status["random", "kl", "0"] == ("failed", "TrainingError: the loss is not finite")
    assert status["random", "kl", "1"][0] == "no result"
    assert status["random", "kl", "2"][0] == "failed"
    assert "run.json" in status["random", "kl", "2"][1]
    bits = entries(table, BITS, "kl")
    assert (bits["mean"]["n"], bits["mean"]["verdict"]) == (2, "worse")
    assert (bits["random"]["n"], bits["random"]["verdict"]) == (0, "missing")
    assert (bits[None]["n"], bits[None]["verdict"]) == (2, "worse")
    assert "| 1 of 2 cells | kl |" in (tmp_path / "results.md").read_text()
    assert "+0.020, 1 of 2 cells" in (tmp_path / "report.html").read_text()
    assert "TrainingError: the loss is not finite" in (tmp_path / "results.md").read_text()
    assert "TrainingError: the loss is not finite" in (tmp_path / "report.html").read_text()


def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"ce": 0.0, "kl": 0.02}, seeds=2, inits=1)
    painted(tmp_path)
    first = contents(tmp_path)
    painted(tmp_path)
    assert contents(tmp_path) == first
    write_run(tmp_path / "more", "kl", "mean", 5, bits=1.0, kl=0.4)
    collect(tmp_path)
    assert contents(tmp_path)["results.csv"] != first["results.csv"]


def test_factors_are_the_overrides_that_vary(tmp_path: Path) -> None:
    for at, given in enumerate((["tokens.n_new=64", "loss=kl"], ["tokens.n_new=1024", "loss=kl"], ["loss=kl"])):
        write_run(tmp_path / str(at), "kl", "mean", 0, bits=1.0, kl=0.4, hydra=False)
        content = json.loads((tmp_path / str(at) / "run.json").read_text())
        content["config"]["tokens"] = {"n_new": (64, 1024, 512)[at]}
        write_json(tmp_path / str(at) / "run.json", content)
        more = ["outputs=/x/y", "runtime.workers=2", "logger=none", f"hydra.job.name={at}", f"objective=eval/{at}"]
        write_json(tmp_path / str(at) / ".hydra" / "overrides.yaml", [*given, *more])
    values, labels = factors(find_runs(tmp_path))
    assert values == {"tokens.n_new": ["64", "512", "1024"]}  # what was not given is the configuration's
    assert [found["tokens.n_new"] for found in labels] == ["64", "1024", "512"]
    means = [entry["cell"]["tokens.n_new"] for entry in gather(tmp_path)["means"] if entry["metric"] == BITS]
    assert means == ["64", "512", "1024"], "tables read from the small to the large"


@pytest.mark.filterwarnings("error")
def test_what_nothing_was_measured_of_has_no_heat_map(tmp_path: Path) -> None:
    for at, (steps, loss, init) in enumerate(product((1, 2), ("ce", "kl"), ("mean", "random"))):
        run = write_run(tmp_path / str(at), loss, init, 0, bits=1.0 + at, kl=0.4)
        if steps == 2:  # these runs only cut tokens
            content = json.loads((run / "run.json").read_text())
            write_json(run / "run.json", {**content, "metrics": {"tokens/saved": 0.1}})
        given = json.loads((run / ".hydra" / "overrides.yaml").read_text())
        write_json(run / ".hydra" / "overrides.yaml", [*given, f"distill.steps={steps}"])
    maps = list(heat_maps(gather(tmp_path)))
    assert maps and all("distill.steps 1" in chart.title for chart in maps)


def test_runs_that_differ_in_nothing_named_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "kl", "mean", 0, bits=1.0, kl=0.4, hydra=False)
    write_run(tmp_path / "b", "ce", "mean", 0, bits=1.0, kl=0.4, hydra=False)
    assert factors(find_runs(tmp_path))[0] == {"loss": ["ce", "kl"]}
    other = write_run(tmp_path / "c", "ce", "mean", 0, bits=1.1, kl=0.4, hydra=False)
    content = json.loads((other / "run.json").read_text())
    content["config"]["distill"] = {"steps": 7}
    write_json(other / "run.json", content)
    table = gather(tmp_path)
    assert table["factors"] == {"folder": ["a", "b", "c"], "loss": ["ce", "kl"]}
    assert [row["status"] for row in table["runs"] if row["run"]] == ["finished"] * 3


@pytest.mark.parametrize("status", ["finished", "failed", "running"])
def test_a_run_that_is_there_twice_counts_once(tmp_path: Path, status: str) -> None:
    write_sweep(tmp_path, {"ce": 0.0, "kl": 0.02}, inits=2)
    whole = gather(tmp_path)
    again = write_run(tmp_path / "again", "kl", "mean", 0, bits=9.0, kl=0.4, status=status)
    write_json(again / ".hydra" / "overrides.yaml", ["loss=kl", "init=mean"])  # seed 0 is the default
    os.utime(again / "run.json", (1, 1))  # older than the other
    table = gather(tmp_path)
    (row,) = [row for row in table["runs"] if row["run"] == "again"]
    assert row["status"] == ("duplicate" if status == "finished" else status)
    assert "init=mean,loss=kl,seed=0 stands for it" in row["error"]
    assert (table["means"], table["differences"]) == (whole["means"], whole["differences"])
    assert len(table["runs"]) == 13


def test_a_refused_run_with_a_key_of_its_own_is_no_cell(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"ce": 0.0, "kl": 0.02}, inits=2)
    whole = gather(tmp_path)
    write_json(tmp_path / "refused" / ".hydra" / "overrides.yaml", ["tokens.n_new=-5"])
    table = gather(tmp_path)
    assert [(row["run"], row["status"]) for row in table["runs"] if row["status"] != "finished"] == [
        ("refused", "no result")
    ]
    assert {**table, "runs": []} == {**whole, "runs": []}


def test_keys_that_only_one_loss_was_given_belong_to_it(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"ce": 0.0}, inits=2)
    for weight, bits in (("0.1", 0.9), ("0.3", 0.95)):
        for init in ("random", "mean"):
            for seed in range(3):
                given = ["loss=kl_ce", f"init={init}", f"seed={seed}", f"loss.terms.ce.weight={weight}"]
                run = write_run(tmp_path / ",".join(given), "kl_ce", init, seed, bits=bits + seed / 1000, kl=0.4)
                write_json(run / ".hydra" / "overrides.yaml", given)
    table = gather(tmp_path)
    assert table["factors"]["loss"] == ["ce", "kl_ce, terms.ce.weight=0.1", "kl_ce, terms.ce.weight=0.3"]
    assert len(table["runs"]) == 18
    assert {entry["n"] for entry in table["differences"] if entry["metric"] == BITS} == {3}


def test_a_key_that_all_losses_were_given_is_a_factor(tmp_path: Path) -> None:
    for loss in ("ce", "kl"):
        for rate in ("1e-3", "2e-3"):
            run = write_run(tmp_path / f"{loss}{rate}", loss, "mean", 0, bits=1.0, kl=0.4)
            content = json.loads((run / "run.json").read_text())
            content["config"]["loss"]["lr"] = float(rate)
            write_json(run / "run.json", content)
            write_json(run / ".hydra" / "overrides.yaml", [f"loss={loss}", f"loss.lr={rate}"])
    write_run(tmp_path / "stray", "kl", "mean", 0, bits=1.0, kl=0.4)  # without loss.lr
    assert gather(tmp_path)["factors"] == {"loss.lr": ["0.001", "0.002", "0.004"], "loss": ["ce", "kl"]}


def test_numbers_are_one_value_however_they_are_written(tmp_path: Path) -> None:
    for at, text in enumerate(("3e-3", "0.003", "0.01")):
        write_run(tmp_path / str(at), "kl", "mean", at, bits=1.0, kl=0.4)
        given = [f"distill.lr={text}", f"seed={at}"]
        write_json(tmp_path / str(at) / ".hydra" / "overrides.yaml", given)
        if at == 2:  # refused before it left a configuration: its command line is all there is
            (tmp_path / "2" / "run.json").unlink()
    values, labels = factors(find_runs(tmp_path))
    assert values["distill.lr"] == ["0.003", "0.01"]
    assert [found["distill.lr"] for found in labels] == ["0.003", "0.003", "0.01"]


def test_large_seeds_are_seeds_of_their_own(tmp_path: Path) -> None:
    for seed in (20240101, 20240102):
        write_run(tmp_path / str(seed), "kl", "mean", seed, bits=1.0, kl=0.4)
    assert factors(find_runs(tmp_path))[0] == {"seed": ["20240101", "20240102"]}


def test_a_default_and_its_override_are_one_value(tmp_path: Path) -> None:
    for at, given in enumerate(([], ["tokens.prefix_closed=false"], ["tokens.prefix_closed=False"])):
        run = write_run(tmp_path / str(at), "kl", "mean", at, bits=1.0, kl=0.4)
        content = json.loads((run / "run.json").read_text())
        content["config"]["tokens"] = {"prefix_closed": False}
        write_json(run / "run.json", content)
        write_json(run / ".hydra" / "overrides.yaml", [*given, f"seed={at}"])
    assert list(factors(find_runs(tmp_path))[0]) == ["seed"]


def test_runs_that_are_no_grid_have_no_missing_cells() -> None:
    values = {"a": ["1", "2", "3"], "b": ["1", "2", "3"], "c": ["1", "2", "3"]}
    assert len(expected(values, 14)) == 27
    assert expected(values, 13) == []
    assert expected({}, 1) == []


def test_runs_of_several_experiments_are_no_grid(tmp_path: Path) -> None:
    """Two of each had a product of four cells a run at most, and the other two were called missing."""
    write_run(tmp_path / "quickstart" / "a", "kl", "mean", 0, bits=0.9, kl=0.4)
    write_run(tmp_path / "smoke" / "b", "ce", "random", 0, bits=1.0, kl=0.4)
    table = gather(tmp_path)
    assert [row["status"] for row in table["runs"]] == ["finished", "finished"]
    assert not table["is_grid"]


def test_a_sweep_is_not_mixed_with_what_else_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without an experiment share a folder, whatever their model and text are."""
    monkeypatch.setattr("kldistill.report.sweep.page.html", lambda *_: "")  # not looked at, and the longest by far

    def made(name: str, loss: str, seed: int, *more: str) -> Path:
        run = write_run(tmp_path / name, loss, "mean", seed, bits=0.9, kl=0.4)
        write_json(run / ".hydra" / "overrides.yaml", [f"loss={loss}", f"seed={seed}", "logger=none", *more])
        return run

    own = [made(f"own-{loss}", loss, 0, "corpus.path=a") for loss in ("kl", "ce")]
    made("seed", "kl", 1, "corpus.path=a", "logger=wandb")
    for name, more in {"text": ["corpus.path=b"], "narrower": [], "wider": ["corpus.path=a", "tokens.n_new=9"]}.items():
        made(name, "kl_ce", 0, *more)
    table = collect(tmp_path, like=own)
    assert sorted(str(row["run"]) for row in table["runs"] if row["run"]) == ["own-ce", "own-kl", "seed"]
    assert set(table["factors"]) == {"loss", "seed"} and {entry["value"] for entry in table["differences"]} == {"kl"}
    everything = collect(tmp_path)
    assert len({row["run"] for row in everything["runs"] if row["run"]}) == 6
    assert (tmp_path / "heat_map.png").is_file()
    collect(tmp_path, like=own[:1])
    assert not (tmp_path / "heat_map.png").exists(), "of runs that the page is not of"


def test_runs_that_are_no_grid_have_no_missing_differences(tmp_path: Path) -> None:
    """Every run of one loss was listed as lacking its pair with every figure, once a text and model that were tried."""
    for number, loss in enumerate(["kl", "ce", *["kl_ce"] * 9]):
        run = write_run(tmp_path / str(number), loss, "mean", 0, bits=0.9, kl=0.4)
        more = f"tokens.n_new={max(number, 1)}"
        write_json(run / ".hydra" / "overrides.yaml", [f"loss={loss}", more, f"distill.steps={max(number, 1)}"])
    table = gather(tmp_path)
    assert not table["is_grid"] and table["baseline"] == "ce"
    assert {entry["value"] for entry in table["differences"]} == {"kl"}
    assert "missing" not in {entry["verdict"] for entry in table["differences"]}


def test_the_best_run_is_named(grid: tuple[Path, dict]) -> None:
    folder, table = grid
    figures = {row["run"]: row["figures"][BITS] for row in table["runs"]}
    assert table["best"]["run"] == min(figures, key=lambda run: figures[run]) and table["best"]["of"] == 18
    assert table["best"]["run"].startswith("init=mean,loss=kl_ce,")
    assert "Fewest bits per byte on domain text of 18 runs" in (folder / "report.html").read_text()


def test_learning_curves_stand_together(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, LOSSES, seeds=1, inits=1)
    for loss, end in (("ce", 0.9), ("kl", 0.8)):
        curve = [
            {"stage": "distill", "step": s, "distill/validation_bits_per_byte": v} for s, v in ((0, 1.2), (9, end))
        ]
        write_jsonl(folder / f"init=random,loss={loss},seed=0" / "metrics.jsonl", curve)
    collect(folder)
    page = (folder / "report.html").read_text()
    assert "Validation: Bits per byte" in page
    assert "ce ends at 0.9 to 0.9; kl ends at 0.8 to 0.8." in page


def test_another_factor_can_be_compared(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"ce": 0.0, "kl": 0.02}, inits=2)
    table = gather(tmp_path, factor="init", baseline="random")
    found = [entry for entry in table["differences"] if entry["metric"] == BITS and entry["cell"]]
    assert {(entry["value"], entry["cell"]["loss"], entry["verdict"]) for entry in found} == {
        ("mean", "ce", "better"),
        ("mean", "kl", "better"),
    }


def test_a_sweep_without_the_baseline_has_no_verdicts(tmp_path: Path) -> None:
    table = collect(write_sweep(tmp_path, {"kl": 0.0, "kl_ce": 0.02}, seeds=1, inits=1))
    assert (table["baseline"], table["differences"]) == (None, [])
    assert "Nothing to compare with" in (tmp_path / "report.html").read_text()


def test_tasks_are_compared_by_their_records(tmp_path: Path) -> None:
    for loss, right in (("ce", range(4)), ("kl", range(2, 20))):
        for seed in range(2):
            run = write_run(tmp_path / f"{loss}{seed}", loss, "mean", seed, bits=1.0, kl=0.4)
            records = [
                {"task": str(at), "sample": 0, "group": f"g{at // 2}", "verdict": "passed" if at in right else "failed"}
                for at in range(20)
            ]
            start = "eval/distilled/programs"
            figures = {f"{start}/pass@1": (len(right) - seed) / 20, f"{start}/tasks": 20}
            write_jsonl(run / "artifacts" / "generate" / "records.jsonl", records)
            write_json(run / "artifacts" / "generate" / "summary.json", figures)
            content = json.loads((run / "run.json").read_text())
            content["metrics"] |= figures
            content["artifacts"]["generate_distilled_programs"] = "artifacts/generate"
            write_json(run / "run.json", content)
    table = gather(tmp_path)
    (entry,) = [entry for entry in table["differences"] if entry["metric"] == "eval/programs/pass@1"]
    assert entry["difference"] == pytest.approx(0.7)
    assert 0.2 < entry["low"] < 0.7 < entry["high"] < 1.2
    assert (entry["n"], entry["documents"]) == (2, 10)
    assert entry["verdict"] == "better"


def test_hostile_names_are_harmless(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "kl", "mean", 0, bits=1.0, kl=0.4, status="failed")
    write_run(tmp_path / "b", HOSTILE, "mean|x", 0, bits=1.0, kl=0.4)
    write_overrides(tmp_path / "b", HOSTILE, "mean|x", 0)
    collect(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;img src=x" in page
    assert "mean\\|x" in (tmp_path / "results.md").read_text()


def test_secrets_do_not_leave_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_0123456789abcdef"
    run = write_run(tmp_path / "a", "kl", "mean", 0, bits=1.0, kl=0.4, status="failed")
    content = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**content, "error": f"cannot log in with {secret}"})
    monkeypatch.setenv("HF_TOKEN", secret)
    collect(tmp_path)
    for name, data in contents(tmp_path).items():
        assert secret.encode() not in data, name
    assert b"cannot log in with &lt;HF_TOKEN&gt;" in contents(tmp_path)["report.html"]


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ReportError, match=r"no run\.json below it"):
        collect(tmp_path)
    assert main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_hydra_calls_it_at_the_end_of_a_multirun(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_sweep(tmp_path / "sweep", {"ce": 0.0}, seeds=1, inits=1)
    before = GlobalHydra.instance().hydra
    with caplog.at_level("INFO", logger="kldistill"):
        Collect().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}}))
        Collect().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "none")}}}))
    assert (tmp_path / "sweep" / "results.csv").is_file()
    assert GlobalHydra.instance().hydra is before
    assert "report failed" in caplog.records[-1].message
    assert "no run.json below it" in caplog.text


def test_the_command_makes_the_pages_of_the_runs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, {"ce": 0.0}, seeds=1, inits=1)
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert main(["--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html"), str(tmp_path / "report.html")]
    page = (tmp_path / "report.html").read_text()
    assert f'href="{run.name.replace("=", "%3D").replace(",", "%2C")}/report.html"' in page
    assert os.path.getsize(run / "report.json") > 100
