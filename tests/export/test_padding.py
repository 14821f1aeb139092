"""Padded vocabularies: the height that was asked for, and ids beyond the tokenizer that nothing writes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill.export import stage as export_stage
from kldistill.export.config import ExportConfig
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.job import Job
from tests.helpers.artifacts import MakeModel, MakeTokens, rows_for


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_height_is_a_multiple_and_old_logits_stay(
    family: str, tied: bool, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model = tiny_model(family)
    inputs = {"model": model, "tokens": fake_tokens(model), "rows": rows_for(model, 24, tied, tmp_path / "rows")}
    for multiple in (1, 128):
        (tmp_path / str(multiple)).mkdir()
        export_stage.build(ExportConfig(pad_to_multiple_of=multiple), inputs, tmp_path / str(multiple), Job())
    assert json.loads((tmp_path / "128" / "config.json").read_text())["vocab_size"] == 640
    cards = [(tmp_path / name / "README.md").read_text() for name in ("1", "128")]
    assert "exactly one row for every id\n" in cards[0]
    assert "padded to 640 rows; no text has an id from 536 on\n" in cards[1]
    exact, padded = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("1", "128"))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "128")) == 536
    ids = torch.tensor([[5, 300, 520, 535, 77]])
    with torch.no_grad():
        wanted, got = exact(ids).logits, padded(ids).logits
    assert got.shape[-1] == 640
    assert torch.allclose(got[..., :536], wanted, atol=1e-5)
    # A mean of rows has the mean of their logits: below the largest, and with a probability of at most 1 / W.
    assert (got[..., 536:] < got[..., :536].max(-1, keepdim=True).values).all()
    assert (got.softmax(-1)[..., 536:] <= 1 / 536 + 1e-6).all()
    assert len(set(got[0, 0, 536:].tolist())) == 1


def test_nothing_is_added_where_the_size_fits(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    model = tiny_model("llama")
    rows = rows_for(model, 24, True, tmp_path / "rows")
    (tmp_path / "out").mkdir()
    export_stage.export_model(model, fake_tokens(model), rows, tmp_path / "out", pad_to_multiple_of=8)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 536
    assert "suppress_tokens" not in json.loads((tmp_path / "out" / "generation_config.json").read_text())


def test_tokens_that_are_added_to_a_padded_folder_are_generated(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    """Their ids are those of the padding rows: nothing may forbid them."""
    model = tiny_model("llama")
    rows = rows_for(model, 24, False, tmp_path / "rows")
    (tmp_path / "out").mkdir()
    export_stage.export_model(model, fake_tokens(model), rows, tmp_path / "out", pad_to_multiple_of=64)
    padded, tokenizer = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForCausalLM, AutoTokenizer))
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    index = tokenizer.convert_tokens_to_ids("<turn>")
    padded.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    assert (index, padded.config.vocab_size) == (536, 576)
    prompt = torch.tensor([[5, 300, 520]])
    with torch.no_grad():
        likeliest = padded(prompt).logits[0, -1].argmax()
        padded.lm_head.weight[index] = 2 * padded.lm_head.weight[likeliest]
    assert padded.generate(prompt, max_new_tokens=1, do_sample=False)[0, -1] == index


def test_a_new_token_is_not_forbidden_by_what_was_padding(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model, other = tiny_model("llama"), tmp_path / "model"
    shutil.copytree(model, other)
    settings = json.loads((other / "generation_config.json").read_text())
    settings |= {"suppress_tokens": [7, 512, 575], "begin_suppress_tokens": [530], "bad_words_ids": [[3, 4], [9, 513]]}
    (other / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "out").mkdir()
    export_stage.export_model(
        other, fake_tokens(other), rows_for(other, 24, True, tmp_path / "rows"), tmp_path / "out", pad_to_multiple_of=64
    )
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["suppress_tokens"] == [7] and written["bad_words_ids"] == [[3, 4]]
    assert "begin_suppress_tokens" not in written


@pytest.mark.parametrize("value", [0, -64, 10**30])
def test_a_multiple_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(ConfigError, match=r"export\.pad_to_multiple_of"):
        ExportConfig(pad_to_multiple_of=value)
