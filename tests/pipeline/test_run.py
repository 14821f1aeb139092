"""Whole runs in this process: what they leave, what they share, what they rebuild, and what they refuse to use."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kldistill.evaluation.config import VllmConfig
from kldistill.pipeline import compose
from kldistill.pipeline import run as pipeline
from kldistill.pipeline.step import Step, plan, rebuilt, stages_of
from kldistill.pipeline.steps import STAGES, steps_of
from kldistill.runtime.config import resolved
from kldistill.runtime.errors import ArtifactError, ModelError
from tests.helpers.runs import SMALL, config, read_run, run, write_corpus

SHARED = ["model", "corpus", "tokens", "init", "evaluate_original", "evaluate_init", "teacher"]
OWN = ["distill", "evaluate_distilled", "interpret", "export"]


def named_for_good() -> list[str]:
    """The metrics that users may rely on."""
    names = ["tokens/saved", "distill/seconds", "distill/tokens_per_second", "distill/peak_memory_bytes"]
    for kind in ("domain", "general"):
        names += [f"eval/{of}/{kind}/bits_per_byte" for of in ("original", "init", "distilled")]
        names += [f"eval/{of}/{kind}/kl_to_teacher" for of in ("init", "distilled")]
    return names


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that all runs read. Shared: never write into it."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "files")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts and runs of the tests that only add to them."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def first(corpus: Path, outputs: Path) -> dict[str, Any]:
    """run.json of one finished run, with the default loss."""
    return run(corpus, outputs, name="first")


@pytest.fixture
def copied(first: dict[str, Any], outputs: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's outputs, to be changed."""
    for path in first["artifacts"].values():
        shutil.copytree(outputs / "runs/first" / path, tmp_path / "artifacts" / Path(*Path(path).parts[-2:]))
    shutil.copytree(outputs / "runs/first", tmp_path / "runs/first")
    return tmp_path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that are really built from here on."""
    names: list[str] = []

    def watch(name: str, step: Step) -> Step:
        def watched(*arguments: Any) -> None:
            names.append(name)
            step.run(*arguments)

        return replace(step, run=watched)

    monkeypatch.setattr(
        pipeline, "steps_of", lambda cfg: {name: watch(name, step) for name, step in steps_of(cfg).items()}
    )
    return names


# ---- plan


def steps(*overrides: str) -> dict[str, Step]:
    """The steps of a small configuration."""
    return steps_of(compose.typed(config([*SMALL, "corpus.path=.", *overrides])))


def test_a_plan_holds_what_the_wanted_stages_read_in_order() -> None:
    every = steps()
    assert plan(every, ["tokens"]) == ["model", "corpus", "tokens"]
    assert plan(every, ["teacher"]) == ["model", "corpus", "tokens", "teacher"]
    hashed = steps("distill.draw=hash")
    assert plan(hashed, ["teacher"]) == ["model", "corpus", "teacher"], "text by hash has nothing to do with the tokens"
    assert plan(every, ["export"]) == ["model", "corpus", "tokens", "init", "teacher", "distill", "export"]
    assert plan(every, ["interpret"]) == ["model", "corpus", "tokens", "init", "teacher", "distill", "interpret"]
    assert plan(every, []) == [] == plan(every, ["finetune"])
    whole = ["evaluate", "interpret", "export"]
    assert plan(every, whole) == list(every) == plan(every, whole[::-1])


def test_a_run_is_of_training_where_something_trains() -> None:
    every = steps("finetune=lora", "finetune.control=true")
    for stages in (["distill"], ["finetune"], ["export"], ["interpret"], list(STAGES[:-1])):
        assert pipeline.job_type(plan(every, stages)) == "train", stages
    assert pipeline.job_type(plan(every, ["teacher"])) == "teacher"
    assert pipeline.job_type(plan(every, ["tokens"])) == "tokens"
    assert pipeline.job_type([]) is None


def test_fine_tuning_adds_its_steps_and_is_what_is_exported() -> None:
    every, tuned = steps(), steps("finetune=lora", "eval.suites=[completion]")
    assert set(every) < set(tuned)
    added = ["finetune", "evaluate_finetuned", "generate_finetuned_completion"]
    at = list(tuned).index("finetune")
    assert list(tuned)[at : at + 3] == added
    for name, last in (("export", "rows"), ("interpret", "rows"), ("evaluate_finetuned", "rows")):
        assert tuned[name].inputs[last] == "finetune"
    assert every["export"].inputs["rows"] == "distill" == tuned["finetune"].inputs["rows"]
    assert plan(tuned, ["export"])[-3:] == ["distill", "finetune", "export"]


def test_models_without_new_tokens_write_the_same_whatever_the_cut() -> None:
    chosen = ["finetune=lora", "finetune.control=true", "eval.suites=[completion]", "eval.cut=merged"]
    cfg = compose.typed(config([*SMALL, "corpus.path=.", *chosen]))
    models = ("original", "control", "distilled", "finetuned")
    cuts = {of: steps_of(cfg)[f"generate_{of}_completion"].config(cfg).cut for of in models}
    assert cuts == {"original": "free", "control": "free", "distilled": "merged", "finetuned": "merged"}


def test_answers_of_vllm_are_artifacts_of_their_own_and_all_else_stays_the_same() -> None:
    chosen = ["corpus.path=.", "eval.suites=[completion]"]
    configs = [compose.typed(config([*SMALL, *chosen, f"eval.backend={name}"])) for name in ("transformers", "vllm")]
    slices = [{name: resolved(step.config(cfg)) for name, step in steps_of(cfg).items()} for cfg in configs]
    for name, of_transformers in slices[0].items():
        assert "backend" not in of_transformers, "artifacts from before there was a choice are still found"
        of_vllm = {"backend": "vllm", "vllm": resolved(VllmConfig())} if name.startswith("generate_") else {}
        assert slices[1][name] == of_transformers | of_vllm, name


def test_every_suite_is_answered_by_every_model_after_the_original() -> None:
    found = steps("finetune=rows", "eval.suites=[humaneval,completion]")
    for suite in ("humaneval", "completion"):
        names = [f"generate_{of}_{suite}" for of in ("original", "distilled", "finetuned")]
        assert [name for name in found if name in names] == names
        for name in names:
            assert found[name].inputs["tasks"] == f"tasks_{suite}"
            assert ("original" in found[name].inputs) == ("original" not in name)
    assert not any("mbpp" in name or "choice" in name for name in found)
    assert set(found["export"].optional) >= {"evaluate_finetuned", "generate_finetuned_humaneval"}


def test_every_step_reads_only_steps_before_it() -> None:
    seen: set[str] = set()
    for name, step in steps("finetune=lora", "eval.suites=[humaneval,completion]").items():
        assert {*step.inputs.values(), *step.optional} <= seen, name
        seen.add(name)


def test_forcing_a_stage_rebuilds_what_follows_from_it() -> None:
    every = steps()
    measured = {"evaluate_original", "evaluate_init", "evaluate_distilled"}
    assert rebuilt(every, list(every), []) == set()
    assert rebuilt(every, list(every), ["export"]) == {"export"}
    assert rebuilt(every, list(every), ["distill"]) == {"distill", "evaluate_distilled", "interpret", "export"}
    assert rebuilt(every, list(every), ["evaluate"]) == {*measured, "export"}
    follow = {"init", "evaluate_init", "distill", "evaluate_distilled", "interpret", "export"}
    assert rebuilt(every, list(every), ["init"]) == follow
    assert rebuilt(every, list(every), ["model"]) == set(every) - {"corpus"}
    assert rebuilt(every, ["model", "corpus", "tokens"], ["distill"]) == set()


def test_the_stages_are_those_of_the_steps_and_the_report() -> None:
    assert [*stages_of(steps("finetune=lora", "eval.suites=[completion]")), "report"] == STAGES
    assert stages_of(steps()) == [stage for stage in STAGES if stage not in ("finetune", "report")]
    named = {step.stage(name) for name, step in steps("eval.suites=[humaneval]").items()}
    assert named <= set(STAGES) and "evaluate" in named and "evaluate_original" not in named
    words = "model corpus tokens init teacher distill finetune evaluate interpret export report"
    assert words.split() == STAGES, "the order that --help shows"


# ---- one run


def test_run_json_holds_status_config_artifacts_and_the_stable_metrics(first: dict[str, Any], outputs: Path) -> None:
    assert set(first) == {"status", "config", "changes", "about", "artifacts", "metrics"}
    assert {"key": "model.family", "value": "llama", "default": None} in first["changes"]
    assert first["status"] == "finished"
    assert first["config"]["distill"]["steps"] == 4 and first["config"]["model"]["family"] == "llama"
    assert "${" not in json.dumps(first["config"]), "resolved"
    assert list(first["artifacts"]) == list(steps())
    metrics = first["metrics"]
    for name in named_for_good():
        assert isinstance(metrics[name], float), name
        assert metrics[name] > 0, name
    for name in (name for name in named_for_good() if name.startswith("eval/")):
        if f"{name}/low" in metrics:  # fewer than eight documents have no interval
            low, high = metrics[f"{name}/low"] * (1 - 1e-9), metrics[f"{name}/high"] * (1 + 1e-9)
            assert low <= metrics[name] <= high
    assert all(isinstance(value, int | float) for value in metrics.values()), "flat"
    assert metrics["tokens/added"] == 24 == metrics["tokens/new_size"] - metrics["tokens/old_size"]


def test_the_log_ends_with_what_was_gained_and_lost(outputs: Path, first: dict[str, Any]) -> None:
    log = (outputs / "runs/first/kldistill.log").read_text()
    assert "24 new tokens make held-out domain text" in log and "General text costs" in log
    assert log.index("24 new tokens make") < log.index("The extended model: ")


def test_training_lowers_the_loss_that_it_minimises(first: dict[str, Any]) -> None:
    """Four steps on a random model: little, but in the right direction, on text that it was not trained on."""
    metrics = first["metrics"]
    assert metrics["eval/distilled/domain/kl_to_teacher"] < metrics["eval/init/domain/kl_to_teacher"]
    assert metrics["distill/validation_kl_to_teacher"] > 0


def test_the_artifacts_are_whole_and_where_run_json_says(first: dict[str, Any], outputs: Path) -> None:
    folder = outputs / "runs/first"
    holds = {
        "model": ["model.json", "config.json", "model.safetensors"],
        "corpus": ["train.jsonl", "validation.jsonl", "test.jsonl", "general.jsonl", "summary.json"],
        "tokens": [
            "tokenizer/tokenizer.json",
            "new_tokens.jsonl",
            "vocabulary.json",
            "preflight.json",
            "preflight.txt",
        ],
        "init": ["rows.safetensors", "rows.json"],
        "teacher": ["train.jsonl", "train.npy", "validation.jsonl", "validation.npy"],
        "distill": ["rows.safetensors", "rows.json", "metrics.jsonl", "summary.json"],
        "evaluate_distilled": ["records.jsonl", "summary.json"],
        "export": ["config.json", "model.safetensors", "tokenizer.json", "README.md"],
    }
    for name, path in first["artifacts"].items():
        artifact = folder / path
        manifest = json.loads((artifact / "artifact.json").read_text())
        assert (manifest["stage"], manifest["fingerprint"]) == (name, artifact.name)
        assert set(holds.get(name, [])) <= set(manifest["files"]), name
        assert manifest["inputs"] == {
            key: Path(first["artifacts"][source]).name
            for key, source in steps()[name].sources(first["artifacts"]).items()
        }
    assert not list((outputs / "artifacts").rglob("*.partial"))
    assert not (folder / first["artifacts"]["distill"] / "checkpoint.safetensors").exists()


def test_metrics_jsonl_has_every_training_step_once(first: dict[str, Any], outputs: Path) -> None:
    lines = [json.loads(line) for line in (outputs / "runs/first/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "distill/loss" in x] == [1, 2, 3, 4]
    assert [x["step"] for x in lines if "distill/validation_bits_per_byte" in x] == [0, 2, 4]


# ---- what runs share


def test_another_loss_uses_all_that_does_not_depend_on_it(
    first: dict[str, Any], corpus: Path, outputs: Path, built: list[str]
) -> None:
    other = run(corpus, outputs, "loss=ce", name="ce")
    assert built == OWN
    same = {name for name, path in first["artifacts"].items() if other["artifacts"][name] == path}
    assert same == set(SHARED)
    for name in ("tokens/saved", "eval/original/domain/bits_per_byte", "eval/init/domain/kl_to_teacher"):
        assert other["metrics"][name] == first["metrics"][name]
    assert (
        other["metrics"]["eval/distilled/domain/kl_to_teacher"]
        != first["metrics"]["eval/distilled/domain/kl_to_teacher"]
    )


def test_the_same_again_builds_nothing_and_says_the_same(
    first: dict[str, Any], corpus: Path, outputs: Path, built: list[str]
) -> None:
    again = run(corpus, outputs, "runtime.checkpoint_every=1", name="again")
    assert built == []
    assert (again["artifacts"], again["metrics"]) == (first["artifacts"], first["metrics"])
    lines = [(outputs / "runs" / name / "metrics.jsonl").read_text() for name in ("first", "again")]
    assert lines[0] == lines[1], "a reused artifact's curves are in the new run too"


def test_a_subset_of_stages_runs_only_what_it_needs(corpus: Path, tmp_path: Path, built: list[str]) -> None:
    found = run(corpus, tmp_path, "stages=[tokens]")
    assert built == ["model", "corpus", "tokens"] == list(found["artifacts"])
    assert found["status"] == "finished" and "tokens/saved" in found["metrics"]
    assert not any(name.startswith(("eval/", "distill/")) for name in found["metrics"])


def test_each_seed_has_its_own_training_on_the_same_states(
    first: dict[str, Any], corpus: Path, outputs: Path, built: list[str]
) -> None:
    other = run(corpus, outputs, "distill.seed=1", "stages=[distill]", name="seed")
    assert built == ["distill"]
    assert other["artifacts"]["distill"] != first["artifacts"]["distill"]


def test_what_a_later_step_refuses_of_the_model_is_known_when_the_model_is_there(
    corpus: Path, tmp_path: Path, built: list[str]
) -> None:
    """GGUF of a family that is not written as such: refused before any text is read, not after the training."""
    with pytest.raises(ModelError, match=r"export\.gguf=true: gpt2 models are not written as GGUF"):
        run(corpus, tmp_path, "model.family=gpt2", "tokens.boundary=word", "export.gguf=true", "stages=[export]")
    assert built == ["model"]
    found = read_run(tmp_path / "runs/run")
    assert found["status"] == "failed" and "export.gguf" in found["error"]


# ---- rebuilding


def test_force_rebuilds_the_stage_and_what_follows_into_the_same_place(
    first: dict[str, Any], corpus: Path, copied: Path, built: list[str]
) -> None:
    rows = [copied / "runs/first" / first["artifacts"][name] / "rows.safetensors" for name in ("init", "distill")]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in rows]
    again = run(corpus, copied, "force=[distill]", name="first")
    assert built == OWN
    assert again["artifacts"] == first["artifacts"]
    after = [(path.stat().st_mtime_ns, path.read_bytes()) for path in rows]
    assert after[0] == before[0], "init was not touched"
    assert after[1][0] > before[1][0] and after[1][1] == before[1][1], "built anew, bit for bit the same"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "added"])
def test_a_damaged_artifact_is_named_and_not_used(
    damage: str, first: dict[str, Any], corpus: Path, copied: Path, built: list[str]
) -> None:
    artifact = (copied / "runs/first" / first["artifacts"]["init"]).resolve()
    file = artifact / "rows.safetensors"
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "removed":
        file.unlink()
    else:
        file = artifact / "more.txt"
        file.write_text("more")
    with pytest.raises(ArtifactError) as caught:
        run(corpus, copied, name="first")
    assert str(file) in str(caught.value) and "force=[init]" in str(caught.value)
    assert built == []
    broken = read_run(copied / "runs/first")
    assert broken["status"] == "failed" and str(file) in broken["error"]
    if damage == "flipped":  # the way out that the message names
        assert run(corpus, copied, "force=[init]", name="first")["status"] == "finished"
        assert (artifact / "rows.safetensors").read_bytes() == content


def test_a_stage_that_fails_marks_the_run_and_leaves_no_artifact(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cfg: Any, inputs: Any, out: Path, job: Any) -> None:
        (out / "half.txt").write_text("half")
        raise OSError("the disk is full")

    def failing(cfg: compose.Config) -> dict[str, Step]:
        found = steps_of(cfg)
        return found | {"init": replace(found["init"], run=fail)}

    monkeypatch.setattr(pipeline, "steps_of", failing)
    with pytest.raises(OSError, match="the disk is full"):
        run(corpus, tmp_path, "stages=[init]")
    found = read_run(tmp_path / "runs/run")
    assert (found["status"], found["error"]) == ("failed", "OSError: the disk is full")
    assert list(found["artifacts"]) == ["model", "corpus", "tokens"], "what was whole stays"
    assert [path.suffix for path in (tmp_path / "artifacts/init").iterdir()] == [".lock"]
    monkeypatch.setattr(pipeline, "steps_of", steps_of)
    assert run(corpus, tmp_path, "stages=[init]")["status"] == "finished"


# ---- fingerprints


def test_a_changed_source_file_is_another_corpus(corpus: Path, tmp_path: Path, built: list[str]) -> None:
    files = shutil.copytree(corpus, tmp_path / "files")
    stages = "stages=[tokens]"
    before = run(files, tmp_path / "outputs", stages)["artifacts"]
    some = sorted(files.iterdir())[0]
    os.utime(some, (0, 0))
    assert run(files, tmp_path / "outputs", stages)["artifacts"] == before, "content counts, not time"
    some.write_text(some.read_text() + "\n# changed\n")
    del built[:]
    after = run(files, tmp_path / "outputs", stages)["artifacts"]
    assert after["model"] == before["model"]
    assert after["corpus"] != before["corpus"] and after["tokens"] != before["tokens"]
    assert built == ["corpus", "tokens"]


def test_a_changed_list_of_terms_is_another_tokenizer(corpus: Path, tmp_path: Path) -> None:
    terms = tmp_path / "terms.txt"
    overrides = ["stages=[tokens]", "tokens=list", f"tokens.terms={terms}"]
    terms.write_text("textwrap\nliteral\n")
    before = run(corpus, tmp_path, *overrides)["artifacts"]
    terms.write_text("textwrap\nindent\n")
    after = run(corpus, tmp_path, *overrides)["artifacts"]
    assert after["corpus"] == before["corpus"] and after["tokens"] != before["tokens"]


# ---- ways through the pipeline that few take


def test_a_run_without_a_teacher_stores_no_states(corpus: Path, outputs: Path, first: dict[str, Any]) -> None:
    found = run(corpus, outputs, "loss=ce", "distill.teacher=none", name="no_teacher")
    teacher = outputs / "runs/no_teacher" / found["artifacts"]["teacher"]
    assert not list(teacher.glob("*.npy")) and (teacher / "train.jsonl").is_file()
    assert "distill/validation_bits_per_byte" in found["metrics"]
    assert "distill/validation_kl_to_teacher" not in found["metrics"]
    assert found["metrics"]["eval/distilled/domain/kl_to_teacher"] > 0, "evaluation still compares with the original"


@pytest.mark.parametrize("loss", ["ce", "kl_old", "hidden"])
def test_added_tokens_go_through_with_losses_that_need_no_pieces(
    loss: str, corpus: Path, outputs: Path, tmp_path: Path, first: dict[str, Any]
) -> None:
    terms = tmp_path / "terms.txt"
    terms.write_text("getattr\nelement_type\nref_type\n")
    overrides = ["tokens=list", f"tokens.terms={terms}", "tokens.as_added_tokens=true", "tokens.leading_space=with"]
    solved = ["distill.solve.iterations=2"] if loss == "ce" else []  # others do not see the logits of new tokens
    found = run(corpus, outputs, *overrides, *solved, "init=mean", f"loss={loss}", name=f"added_{loss}")
    assert found["metrics"]["tokens/added"] == 3
    assert found["metrics"]["eval/distilled/domain/new_token_share"] > 0
    assert "eval/distilled/domain/kl_to_teacher" not in found["metrics"], "undefined without pieces"


@pytest.mark.parametrize("loss", ["kl", "kl_first", "kl_old", "hidden"])
def test_every_loss_trains(loss: str, corpus: Path, outputs: Path, first: dict[str, Any]) -> None:
    found = run(corpus, outputs, f"loss={loss}", "stages=[distill]", "distill.steps=2", name=loss)
    lines = (outputs / "runs" / loss / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["distill/gradient_norm"] > 0 for line in lines if "distill/loss" in line)
    assert found["status"] == "finished"
