"""The whole pipeline on a tiny random model of every family, tied and untied, padded and not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from tests.helpers.artifacts import FAMILIES
from tests.helpers.runs import run, write_corpus

# So few steps of a random model may make it worse; here they are kept all the same.
OVERRIDES = ["distill.steps=2", "distill.validate_every=2", "distill.snippet_bytes=150", "distill.best_by=null"]
OVERRIDES += ["tokens.curve=0"]  # tests/tokens/test_stage.py draws it for every family
# Half of the families tied, half not; one tied model with separate new rows; one tokenizer of another family.
CHOICES: dict[str, tuple[bool, list[str]]] = {
    "llama": (True, ["model.tokenizer=llama2"]),
    "mistral": (False, ["model.pad_to=1"]),
    "qwen2": (True, ["init.tie=false"]),
    "qwen3": (False, []),
    "gemma2": (True, []),
    "gemma3": (False, ["tokens.boundary=word"]),
    "gpt2": (True, ["model.pad_to=1"]),
    "gpt_neox": (False, ["tokens.boundary=dotted"]),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that all families read."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "files")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that the corpus is built once."""
    return tmp_path_factory.mktemp("outputs")


def test_every_family_has_its_choice_here() -> None:
    assert set(CHOICES) == set(FAMILIES)
    assert {tied for tied, _ in CHOICES.values()} == {True, False}


@pytest.mark.parametrize("family", CHOICES)
def test_the_whole_pipeline(family: str, corpus: Path, outputs: Path) -> None:
    tied, more = CHOICES[family]
    overrides = [f"model.family={family}", f"model.tied={str(tied).lower()}", *OVERRIDES, *more]
    found = run(corpus, outputs, *overrides, name=family)
    assert found["status"] == "finished"
    folders = {name: outputs / "runs" / family / path for name, path in found["artifacts"].items()}
    check_metrics(found["metrics"])
    check_export(folders, tied=tied and "init.tie=false" not in more)


def check_metrics(metrics: dict[str, Any]) -> None:
    """The figures say that something was done, and that it makes sense."""
    assert metrics["tokens/added"] == 24 and metrics["tokens/saved"] > 0
    assert metrics["tokens/refinement_violations"] == 0
    for of in ("init", "distilled"):
        assert 0 < metrics[f"eval/{of}/domain/kl_to_teacher"] < 10
        assert 0 < metrics[f"eval/{of}/domain/bits_per_byte"] < 20
        assert metrics[f"eval/{of}/domain/new_token_share"] > 0
    assert metrics["eval/distilled/domain/kl_to_teacher"] != metrics["eval/init/domain/kl_to_teacher"]


def check_export(folders: dict[str, Path], tied: bool) -> None:
    """The exported folder loads plainly, with the student's logits and the tokens stage's ids."""
    sizes = json.loads((folders["tokens"] / "vocabulary.json").read_text())
    exported = AutoModelForCausalLM.from_pretrained(folders["export"], local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folders["export"], local_files_only=True)
    assert exported.config.get_text_config().vocab_size == sizes["new_size"] == len(tokenizer)
    assert (exported.get_output_embeddings().weight is exported.get_input_embeddings().weight) == tied
    assert json.loads((folders["distill"] / "rows.json").read_text())["tied"] == tied

    new = [json.loads(line) for line in (folders["tokens"] / "new_tokens.jsonl").read_text().splitlines()]
    assert [token["id"] for token in new] == list(range(sizes["old_size"], sizes["new_size"]))
    text = "".join(json.loads(line)["text"] for line in (folders["corpus"] / "train.jsonl").open())[:3000]
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert (ids >= sizes["old_size"]).any(), "the text has new tokens"
    assert tokenizer.decode(ids[0]).strip() == text.strip()

    student = Student(load_original(folders["model"]), Rows.load(folders["distill"]), sizes["old_size"])
    ids = ids[:, :200]
    with torch.no_grad():
        ours = student.logits(student.hidden(ids, torch.ones_like(ids)).flatten(0, 1))
        theirs = exported(ids).logits[0]
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)

    before, after = (load_file(folders[name] / "rows.safetensors") for name in ("init", "distill"))
    assert set(before) == set(after) == ({"input"} if tied else {"input", "output"})
    assert not any(torch.equal(before[name], after[name]) for name in before), "every row tensor was trained"
    original = load_original(folders["model"]).get_input_embeddings().weight[: sizes["old_size"]]
    assert torch.equal(exported.get_input_embeddings().weight[: sizes["old_size"]], original), "old rows untouched"
