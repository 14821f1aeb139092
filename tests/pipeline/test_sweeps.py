"""Sweeps: which runs they have, what these share, what happens when one of them fails, and what a second start does."""

import copy
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kldistill.pipeline import cli, compose, sweeps
from kldistill.pipeline.checks import check
from kldistill.pipeline.run import is_finished
from kldistill.pipeline.steps import steps_of
from kldistill.pipeline.sweeps import Member
from kldistill.runtime.errors import ConfigError
from tests.helpers.interpreter import python
from tests.helpers.launched import environment
from tests.helpers.patience import PATIENCE
from tests.helpers.runs import config, overrides_of, read_run, undrawn, write_corpus

SWEEPS = {
    "kl_vs_ce": {
        "loss": ["kl", "ce", "kl_ce"],
        "init": ["random", "mean", "subtoken_mean", "last_piece_subtoken_mean"],
        "seed": ["0", "1", "2"],
    },
    "controls": {"loss": ["kl", "ce", "kl_first", "kl_old", "hidden"], "seed": ["0", "1", "2"]},
    "thesis": {"loss": ["kl", "ce", "kl_ce_light"], "init": ["random", "mean", "subtoken_mean", "solved"]},
    "budgets": {
        "loss": ["kl", "ce", "kl_ce", "kl_first", "kl_old", "hidden"],
        "distill.steps": ["25", "50", "100", "200", "400", "1000"],
        "loss.lr": ["0.008", "0.015", "0.03", "0.06"],
    },
    "init_grid": {"seed": ["0", "1", "2"]},
    "vocab_size": {"tokens.n_new": ["128", "512", "2048"], "tokens.boundary": ["word", "dotted"]},
}


# ---- which runs a sweep has


@pytest.fixture
def initialised() -> Iterator[None]:
    """Hydra, as its own main function sets it up."""
    compose.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
        yield


def multirun(*overrides: str) -> DictConfig:
    """The configuration of a whole sweep."""
    return GlobalHydra.instance().hydra.compose_config(  # type: ignore[union-attr]
        "config", [*overrides], run_mode=RunMode.MULTIRUN, from_shell=False, with_log_configuration=False
    )


@pytest.mark.parametrize("experiment", SWEEPS)
def test_a_preset_is_the_whole_grid_in_folders_of_their_own(experiment: str, initialised: None) -> None:
    runs = sweeps.members(multirun(f"experiment={experiment}"))
    seen = [dict(text.split("=") for text in member.overrides) for member in runs]
    assert {of.pop("experiment") for of in seen} == {experiment}
    for key, values in SWEEPS[experiment].items():
        assert Counter(of[key] for of in seen) == dict.fromkeys(values, len(runs) // len(values)), key
    assert len({json.dumps(of, sort_keys=True) for of in seen}) == len(runs), "every cell once"
    folders = [member.folder for member in runs]
    assert len(set(folders)) == len(runs)
    assert {folder.parent for folder in folders} == {Path("outputs/runs") / experiment}
    for member, of in zip(runs, seen, strict=True):
        assert member.folder.name == ",".join(sorted(f"{key}={value}" for key, value in of.items()))
        assert member.log == member.folder / "kldistill.log"
    for member in (runs[0], runs[-1]):
        check(compose.typed(config(list(member.overrides))))


def test_kl_vs_ce_trains_every_run_on_the_same_text_and_measures_on_the_same_tasks(initialised: None) -> None:
    runs = sweeps.members(multirun("experiment=kl_vs_ce"))
    assert len(runs) == 36
    made = [compose.typed(config(list(member.overrides))) for member in (runs[0], runs[-1])]
    assert (made[0].loss.name, made[-1].loss.name) == ("kl", "kl_ce")
    assert (made[0].distill.seed, made[-1].distill.seed) == (0, 2)
    assert (made[0].init.seed, made[0].init.input["_target_"]) == (0, "kldistill.rows.inits.random")
    for key in ("model", "corpus", "tokens", "eval"):
        assert getattr(made[0], key) == getattr(made[1], key), key
    for key in ("steps", "batch_size", "snippets", "snippet_bytes"):
        assert getattr(made[0].distill, key) == getattr(made[1].distill, key), key


def test_kl_vs_ce_trains_every_loss_and_kind_of_init_at_its_own_rate(initialised: None) -> None:
    def rate(*overrides: str) -> float:
        return compose.typed(config(["experiment=kl_vs_ce", *overrides])).distill.lr

    near = [rate("loss=ce", f"init={init}") for init in ("last_piece_subtoken_mean", "subtoken_mean")]
    far = [rate("loss=ce", f"init={init}") for init in ("random", "mean")]
    assert near[0] < near[1] and len(set(far)) == 1
    assert near[1] < rate("loss=kl") == rate("loss=kl_ce") < rate("loss=kl", "init=mean") == far[0]
    assert rate("loss=hidden", "init=first_piece", "loss.lr=1e-3") == 1e-3, "the command line decides"
    for overrides, name in ((["loss=hidden"], "hidden"), (["loss=ce", "init=first_piece"], "first_piece")):
        with pytest.raises(Exception, match=f"no value for {name}"):
            rate(*overrides)


def test_how_much_is_scored_of_each_text(initialised: None) -> None:
    """General code of the quickstart has eight documents at 14,000 bytes; the larger and the smaller grid score as much
    of it as of general prose.
    """
    sizes = {}
    for experiment in ("quickstart", "thesis", "kl_vs_ce"):
        found = compose.typed(config([f"experiment={experiment}", "loss=kl", "init=subtoken_mean"])).eval
        sizes[experiment] = [found.size_of(text) for text in ("domain", "general", "general_code")]
    assert sizes == {
        "quickstart": [32_000, 12_000, 14_000],
        "thesis": [150_000, 30_000, 30_000],
        "kl_vs_ce": [16_000, 6_000, 6_000],
    }


def test_the_thesis_fine_tunes_every_arm_and_asks_all_tasks(initialised: None) -> None:
    runs = sweeps.members(multirun("experiment=thesis", "seed=0,1"))
    assert len(runs) == 24
    # Every loss and every init, and both seeds: of the whole grid each fifth run and the last one.
    chosen = [*runs[::5], runs[-1]]
    for key, n in (("loss", 3), ("init", 4), ("seed", 2)):
        assert len({text for member in chosen for text in member.overrides if text.startswith(f"{key}=")}) == n
    made = [compose.typed(config(list(member.overrides))) for member in chosen]
    steps = steps_of(made[0])
    suites = ["completion", "humaneval", "mbpp", "choice", "solution", "cloze"]
    for model in ("original", "finetuned", "control"):
        assert all(f"generate_{model}_{suite}" in steps for suite in suites)
    assert made[0].eval.limit is None and made[0].eval.all_suites()["mbpp"]["split"] == "all"
    assert {cfg.distill.solve.iterations for cfg in made} == {0, 12}
    assert {cfg.finetune.method for cfg in made} == {"lora"} and all(cfg.finetune.control for cfg in made)
    for key in ("model", "corpus", "tokens", "eval"):
        assert len({str(getattr(cfg, key)) for cfg in made}) == 1, key
    assert {steps_of(cfg)["teacher"].config(cfg).seed for cfg in made} == {0}, "one teacher for all"


def test_a_budget_is_of_steps_and_of_text(initialised: None) -> None:
    runs = [dict(text.split("=") for text in one.overrides) for one in sweeps.members(multirun("experiment=budgets"))]
    for own in (runs[0], runs[-1]):
        cfg = compose.typed(config([f"{key}={value}" for key, value in own.items()]))
        assert cfg.distill.lr == float(own["loss.lr"]) and cfg.distill.steps == int(own["distill.steps"])
        assert cfg.distill.n_snippets == cfg.distill.steps * cfg.distill.batch_size
        assert not cfg.distill.lora.r


def test_solved_rows_are_a_start_like_any_other(initialised: None) -> None:
    solved, mean = (compose.typed(config(["distill=rows", f"init={init}"])) for init in ("solved", "subtoken_mean"))
    assert (solved.distill.solve.iterations, mean.distill.solve.iterations) == (12, 0)
    assert solved.init == mean.init
    with pytest.raises(ConfigError, match="says nothing of their output rows"):
        check(compose.typed(config(["model=tiny", "init=solved", "loss=hidden"])))


def test_the_controls_train_each_loss_at_its_own_rate(initialised: None) -> None:
    rates = {loss: compose.typed(config([f"loss={loss}"])).loss.lr for loss in ("kl", "kl_first", "kl_old", "hidden")}
    for loss, rate in rates.items():
        made = compose.typed(config(["experiment=controls", f"loss={loss}"]))
        assert (made.loss.name, made.distill.lr, made.finetune.method) == (loss, rate, "none")
    own = compose.typed(config(["experiment=controls", "loss=ce", "distill.self_written=0.9"]))
    assert steps_of(own)["write_train"].config(own).n == 135


def test_swept_experiments_have_a_folder_each(initialised: None) -> None:
    runs = sweeps.members(multirun("experiment=smoke,quickstart", "seed=1,2", "outputs=here", "logger=none"))
    assert [str(member.folder) for member in runs] == [
        f"here/runs/{name}/seed={seed}" for name in ("smoke", "quickstart") for seed in (1, 2)
    ]


def test_the_command_line_narrows_a_presets_grid(initialised: None) -> None:
    runs = sweeps.members(multirun("experiment=kl_vs_ce", "seed=5", "loss=kl,ce", "init=mean"))
    assert [member.folder.name for member in runs] == ["init=mean,loss=kl,seed=5", "init=mean,loss=ce,seed=5"]


def test_the_runs_of_another_sweeper_are_not_guessed(initialised: None) -> None:
    cfg = copy.deepcopy(multirun("seed=1,2"))
    OmegaConf.update(cfg, "hydra.sweeper", {"_target_": "hydra_plugins.other.Sweeper"}, merge=False, force_add=True)
    assert sweeps.members(cfg) == []


def test_runs_that_would_share_a_folder_are_refused(initialised: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_launched", [])
    with pytest.raises(SystemExit, match=r"2 runs of this sweep would share the folder outputs/runs/default/seed=1"):
        sweeps.Sweep().on_multirun_start(multirun("runtime.workers=1,2", "seed=1,2"))
    assert sweeps.folders() == []
    sweeps.Sweep().on_multirun_start(multirun("experiment=smoke,quickstart", "seed=1,2"))
    assert [str(folder) for folder in sweeps.folders()] == ["outputs/runs/smoke", "outputs/runs/quickstart"]


# ---- what has become of them


def member(folder: Path, *overrides: str, **record: object) -> Member:
    folder.mkdir()
    if record:
        (folder / "run.json").write_text(json.dumps(record))
    return Member(("model=tiny", *overrides), folder, folder / "kldistill.log")


def test_the_account_names_what_is_not_finished_and_its_log(tmp_path: Path) -> None:
    runs = [
        member(tmp_path / "a", "loss=kl", status="finished"),
        member(tmp_path / "b", "loss=ce", status="failed", error="TrainingError: The loss is nan.\nmore"),
        member(tmp_path / "c", "loss=kl_ce", status="running"),
        member(tmp_path / "d", "loss=hidden"),
    ]
    text = sweeps.account(runs).splitlines()
    assert text[0] == "Sweep: 1 of 4 runs finished."
    assert text[1:3] == ["  loss=ce: TrainingError: The loss is nan.", f"    see {tmp_path / 'b/kldistill.log'}"]
    assert text[3] == "  loss=kl_ce: was killed, or is still running"
    assert text[5] == "  loss=hidden: has not started"
    assert len(text) == 8 and "The same command again" in text[7]
    assert sweeps.account(runs[:1]) == "Sweep: 1 of 1 runs finished."


def test_conclude_says_whether_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeps.conclude() is True, "no sweep at all"
    assert capsys.readouterr().out == ""
    done, left = member(tmp_path / "a", status="finished"), member(tmp_path / "b")
    try:
        sweeps._launched[:] = [done]
        assert sweeps.conclude() is True
        sweeps._launched[:] = [done, left]
        assert sweeps.conclude() is False
    finally:
        sweeps._launched.clear()
    assert "1 of 2 runs finished" in capsys.readouterr().out


def test_a_refused_run_is_marked_as_failed_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret123")
    cfg = OmegaConf.create({"model": {"path": "hf_secret123"}})
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "metrics": {"old": 1}}))
    sweeps.mark_failed(tmp_path, cfg, ConfigError("model.path=hf_secret123: is no folder."))
    found = read_run(tmp_path)
    assert (found["status"], found["error"]) == ("failed", "ConfigError: model.path=<HF_TOKEN>: is no folder.")
    assert (found["config"], found["metrics"]) == ({"model": {"path": "<HF_TOKEN>"}}, {}), "nothing of another attempt"
    (tmp_path / "run.json").write_text(json.dumps({"status": "running", "metrics": {"tokens/added": 1}}))
    sweeps.mark_failed(tmp_path, cfg, OSError("the disk is full"))
    found = read_run(tmp_path)
    assert (found["error"], found["metrics"]) == ("OSError: the disk is full", {"tokens/added": 1})


def test_a_finished_result_outlives_a_refusal(tmp_path: Path, initialised: None) -> None:
    cfg = config(["experiment=smoke", "seed=1"])
    done = {"status": "finished", "config": compose.resolved(compose.typed(cfg)), "metrics": {"a": 1.0}}
    only = member(tmp_path / "run", "seed=1", **done)
    sweeps.mark_failed(only.folder, cfg, ConfigError("eval.mbpp.path=x: no such file."))
    assert only.record == {**done, "error": "ConfigError: eval.mbpp.path=x: no such file."}
    assert not only.whole
    assert "its earlier result stands, but now: ConfigError: eval.mbpp.path=x" in sweeps.account([only])
    sweeps.mark_failed(only.folder, config(["experiment=smoke", "seed=2"]), ConfigError("no"))
    assert (only.record["status"], only.record["metrics"]) == ("failed", {}), "of another configuration"


def test_a_torn_record_is_none(tmp_path: Path) -> None:
    torn = member(tmp_path / "run", "seed=1")
    (torn.folder / "run.json").write_text('{"status": "fin')
    assert "  model=tiny seed=1: has not started" in sweeps.account([torn])
    sweeps.mark_failed(torn.folder, OmegaConf.create({"a": 1}), OSError("no"))
    assert torn.record == {
        "status": "failed",
        "error": "OSError: no",
        "config": {"a": 1},
        "artifacts": {},
        "metrics": {},
    }


def test_a_sweep_under_a_launcher_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"A sweep cannot be launched by accelerate.*tasks_per_node"):
        cli._join_submitit()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli._join_submitit() is None


# ---- real sweeps, in processes of their own

STAGES = ("model", "corpus", "tokens", "init", "teacher")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "files")


def sweep(folder: Path, corpus: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command with ``-m`` on tiny models, up to the training."""
    overrides = overrides_of(corpus, folder / "out", "stages=[distill]", "runtime.workers=1")
    return subprocess.run(
        [python(), "-m", "kldistill", "-m", *overrides, *more],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def by_override(folder: Path) -> dict[str, Path]:
    """The runs' folders by their loss and weight decay, as Hydra recorded them."""
    found = {}
    for path in (folder / "out/runs/default").glob("*/.hydra/overrides.yaml"):
        given = dict(text.split("=", 1) for text in OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[union-attr]
        found[f"{given['loss']} {given['distill.weight_decay']}"] = path.parents[1]
    return found


def test_a_failing_run_leaves_the_others_alone_and_a_second_start_only_repeats_it(tmp_path: Path, corpus: Path) -> None:
    """The first start in two workers, which build what they share once; the second one in this machine's only one."""
    # So much decay turns rows over, a thousand million times as long, at every step: soon no gradient is finite.
    grid = ["loss=kl", "distill.weight_decay=1e12,0.0,0.1"]
    first = sweep(tmp_path, corpus, *grid, "hydra/launcher=workers", "hydra.launcher.n_jobs=2")
    assert first.returncode == 1
    runs = by_override(tmp_path)
    assert sorted(runs) == ["kl 0.0", "kl 0.1", "kl 1000000000000.0"]
    records = {key: read_run(folder) for key, folder in runs.items()}
    assert {key: record["status"] for key, record in records.items()} == {
        key: "failed" if key.endswith(" 1000000000000.0") else "finished" for key in runs
    }
    # Built once, whoever came first.
    built = Counter(re.findall(r"^(\w+): building", first.stdout, flags=re.MULTILINE))
    assert built == {**dict.fromkeys(STAGES, 1), "distill": 3}
    for name in STAGES:
        assert len({Path(record["artifacts"][name]).name for record in records.values()}) == 1
    # The failure: named at the end, and traced in its own log.
    account = first.stdout[first.stdout.index("Sweep: ") :]
    assert account.startswith("Sweep: 2 of 3 runs finished.")
    for key, folder in runs.items():
        log = folder / "kldistill.log"
        assert (str(log) in account) == (records[key]["status"] == "failed")
        traced = "Traceback (most recent call last)" in log.read_text()
        assert traced == (records[key]["status"] == "failed"), key
        assert ("TrainingError: The " in records[key].get("error", "")) == traced
    # Again: what is finished is left alone.
    times = {key: (folder / "run.json").stat().st_mtime_ns for key, folder in runs.items()}
    again = sweep(tmp_path, corpus, *grid)
    assert again.returncode == 1
    assert again.stdout.count("finished already") + again.stderr.count("finished already") == 2
    changed = {key for key, folder in runs.items() if (folder / "run.json").stat().st_mtime_ns != times[key]}
    assert changed == {"kl 1000000000000.0"}
    assert re.findall(r"^(\w+): building", again.stdout, flags=re.MULTILINE) == ["distill"]
    assert "Sweep: 2 of 3 runs finished." in again.stdout


def test_jobs_of_submitit_with_two_processes_each(tmp_path: Path, corpus: Path) -> None:
    launcher = ["hydra/launcher=slurm_local", "hydra.launcher.tasks_per_node=2"]
    done = sweep(tmp_path, corpus, "loss=kl", "distill.weight_decay=0.0", *launcher)
    logs = "".join(path.read_text() for path in (tmp_path / "out/runs/default/.submitit").rglob("*_log.*"))
    assert done.returncode == 0, done.stderr + logs
    assert "Sweep: 1 of 1 runs finished." in done.stdout
    assert Counter(re.findall(r"^(\w+): building", logs, flags=re.MULTILINE)) == dict.fromkeys((*STAGES, "distill"), 1)
    (folder,) = by_override(tmp_path).values()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "distill/loss" in line] == [1, 2, 3, 4], "written by one of them"


# ---- finished or not


def test_a_finished_run_is_known_by_what_it_would_build(tmp_path: Path, corpus: Path) -> None:
    from kldistill.pipeline.run import run_pipeline

    def made(*more: str) -> compose.Config:
        return compose.typed(config(overrides_of(corpus, tmp_path, "stages=[init]", *more)))

    folder = tmp_path / "runs/run"
    assert not is_finished(made(), folder), "there is nothing"
    with undrawn():
        run_pipeline(made(), folder)
    assert is_finished(made(), folder)
    assert is_finished(made("runtime.checkpoint_every=1", "distill.steps=9"), folder), "nothing that it reads"
    assert not is_finished(made("tokens.n_new=20"), folder)
    assert not is_finished(made("force=[init]"), folder)
    assert is_finished(made("stages=[tokens]"), folder), "a part of what stands there"
    assert not is_finished(made("stages=[init,report]"), folder), "the page is missing"
    record = read_run(folder)
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert not is_finished(made(), folder)
    (folder / "run.json").write_text(json.dumps(record))
    artifact = (folder / record["artifacts"]["tokens"]).resolve()
    artifact.rename(artifact.with_name("gone"))
    assert not is_finished(made(), folder)
