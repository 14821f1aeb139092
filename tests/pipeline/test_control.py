"""What training does without new tokens: the original model fine-tuned beside the extended one, and a run that adds
none.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from kldistill.pipeline import compose
from kldistill.pipeline.steps import steps_of
from kldistill.runtime.errors import ConfigError
from kldistill.tokens.artifact import read_new_tokens
from kldistill.training.load import load_model
from tests.helpers.runs import config, read_run, run, write_corpus
from tests.helpers.unpainted import unpainted

TUNED = ["finetune=lora", "finetune.steps=4", "finetune.validate_every=2", "finetune.lora.r=4", "finetune.lr=0.01"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything below."""
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def corpus(root: Path) -> Path:
    return write_corpus(root / "corpus")


@pytest.fixture(scope="module")
def tuned(corpus: Path, root: Path) -> Path:
    """The outputs of a run of every stage, with its pictures."""
    run(corpus, root / "outputs", *TUNED, "finetune.control=true", draw=True)
    return root / "outputs"


def test_the_original_is_fine_tuned_beside_the_extended_model(tuned: Path) -> None:
    folder = tuned / "runs" / "run"
    record = read_run(folder)
    metrics = record["metrics"]
    bits = {of: metrics[f"eval/{of}/domain/bits_per_byte"] for of in ("original", "control", "finetuned")}
    assert bits["control"] < bits["original"], "it has learnt"
    sizes = {of: metrics[f"eval/{of}/domain/tokens_per_1000_bytes"] for of in bits}
    assert sizes["control"] == sizes["original"] > sizes["finetuned"], "in the original's own tokens"
    assert metrics["tokens/added"] == 24, "the figures of the run's own tokens stay"
    assert metrics["control/trainable_parameters"] < metrics["finetune/trainable_parameters"]
    artifacts = {name: folder / where for name, where in record["artifacts"].items()}
    assert read_new_tokens(artifacts["control_tokens"]) == []
    texts = [(artifacts[of] / "summary.json").read_text() for of in ("control", "finetune")]
    assert len({json.loads(text)["finetune/snippets"] for text in texts}) == 1
    page = (folder / "report.html").read_text()
    assert "original, fine-tuned" in page and "under the fine-tuned one" in page


def test_an_adapter_of_the_original_is_measured_on_both_models(tuned: Path, corpus: Path, tmp_path: Path) -> None:
    """The control's own adapter is at hand: on the original it is the control, and the extended model is as it was."""
    before = read_run(tuned / "runs" / "run")
    adapter = tmp_path / "mine"
    shutil.copytree(tuned / "runs" / "run" / before["artifacts"]["control"] / "adapter", adapter)
    more = (f"eval.adapter={adapter}", "stages=[evaluate,export]", "eval.suites=[completion]")
    metrics = run(corpus, tuned, *TUNED, "finetune.control=true", *more, name="adapter")["metrics"]
    bits = {of: metrics[f"eval/{of}/domain/bits_per_byte"] for of in ("control", "adapted", "carried", "distilled")}
    assert bits["adapted"] == pytest.approx(bits["control"], abs=1e-6)
    assert metrics["eval/adapted/general/bits_per_byte"] < metrics["eval/original/general/bits_per_byte"]
    assert bits["carried"] != bits["distilled"] and "eval/adapted/domain/kl_to_teacher" not in metrics
    assert metrics["eval/carried/domain/kl_to_teacher"] != metrics["eval/distilled/domain/kl_to_teacher"]
    for of in ("adapted", "carried"):
        assert f"eval/{of}/completion/exact_match" in metrics
    assert metrics["eval/adapted/completion/edit_similarity"] == metrics["eval/control/completion/edit_similarity"]
    assert not [name for name in read_run(tuned / "runs" / "run")["metrics"] if "carried" in name]
    # What is measured is what peft's users do with the exported model.
    artifacts = {
        of: tuned / "runs" / "adapter" / path for of, path in read_run(tuned / "runs" / "adapter")["artifacts"].items()
    }
    ids = torch.tensor([[3, 70, 520, 9, 530, 4]])  # new ones among them
    carried = load_model(artifacts["adapted"], artifacts["distill"])
    theirs: Any = peft.PeftModel.from_pretrained(load_model(artifacts["model"], artifacts["distill"]), str(adapter))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, carried(ids).logits)


def test_an_adapter_that_changes_nothing_leaves_both_models_as_they_are(
    tuned: Path, corpus: Path, tmp_path: Path
) -> None:
    before = read_run(tuned / "runs" / "run")
    adapter = tmp_path / "nothing"
    shutil.copytree(tuned / "runs" / "run" / before["artifacts"]["control"] / "adapter", adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: torch.zeros_like(weight) for name, weight in weights.items()}, adapter / "adapter_model.safetensors"
    )
    more = (f"eval.adapter={adapter}", "stages=[evaluate]")
    metrics = run(corpus, tuned, *TUNED, "finetune.control=true", *more, name="nothing")["metrics"]
    for name in ("domain/bits_per_byte", "general/bits_per_byte"):
        assert metrics[f"eval/adapted/{name}"] == metrics[f"eval/original/{name}"]
        assert metrics[f"eval/carried/{name}"] == metrics[f"eval/distilled/{name}"]
    assert metrics["eval/carried/domain/kl_to_teacher"] == metrics["eval/distilled/domain/kl_to_teacher"]


def test_no_artifact_holds_a_path_of_this_machine(tuned: Path, root: Path) -> None:
    """What a run leaves can be handed on, but for ``artifact.json``, which repeats the paths that the user gave."""
    files = [path for path in (tuned / "artifacts").rglob("*") if path.is_file()]
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {path.name for path in files}
    assert any(path.suffix == ".svg" for path in files), "pictures too"
    here = str(root).encode()
    assert not [str(path) for path in files if path.name != "artifact.json" and here in path.read_bytes()]


def test_a_run_without_new_tokens_is_the_original(corpus: Path, tmp_path: Path) -> None:
    with unpainted():
        metrics = run(corpus, tmp_path, "tokens=none", draw=True)["metrics"]
    for name in ("bits_per_byte", "tokens_per_1000_bytes"):
        assert metrics[f"eval/distilled/domain/{name}"] == pytest.approx(metrics[f"eval/original/domain/{name}"], 1e-6)
    assert metrics["eval/distilled/domain/kl_to_teacher"] == pytest.approx(0, abs=1e-5)
    assert metrics["tokens/added"] == 0
    assert (tmp_path / "runs" / "run" / "report.html").is_file()


def test_a_body_may_learn_without_new_tokens(corpus: Path, tmp_path: Path) -> None:
    """What the same training would give the original: nothing is covered or solved, as there is nothing to be. (The
    nearest to the original is the original, so the last step is kept.)
    """
    more = ("tokens=none", "distill=lora", "loss=kl_ce_light", "distill.general=0", "distill.best_by=null")
    metrics = run(corpus, tmp_path, *more)["metrics"]
    assert metrics["eval/distilled/domain/bits_per_byte"] < metrics["eval/original/domain/bits_per_byte"]
    assert metrics["eval/distilled/domain/kl_to_teacher"] > 0 and "distill/solve/ridge" not in metrics


def test_a_control_needs_a_body_that_learns() -> None:
    with pytest.raises(ConfigError, match=r"^finetune\.control=True: needs a body that learns"):
        compose.typed(config(["finetune=rows", "finetune.control=true"]))
    steps = steps_of(compose.typed(config(["finetune=lora"])))
    assert not any(name.startswith("control") for name in steps)


def test_one_control_serves_all_starts_and_losses_of_a_sweep() -> None:
    """The original is fine-tuned without new rows, so neither what they start as nor what trains them is seen."""
    asked = (
        ["init=random", "loss=ce"],
        ["init=solved", "init.tie=false", "init.seed=3", "loss=kl"],
        ["init=mean", "init.calibrate=true", "loss.lr=0.5"],
    )
    seen = []
    for overrides in asked:
        cfg = compose.typed(config([*overrides, "finetune=lora", "finetune.control=true"]))
        steps = steps_of(cfg)
        seen.append([steps[name].config(cfg) for name in ("control_tokens", "control_init", "control")])
    assert seen[0] == seen[1] == seen[2]
