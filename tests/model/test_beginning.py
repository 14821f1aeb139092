"""What begins a text is measured where the tokenizer's own beginning is the marker of a turn, and only there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill.model import beginning
from kldistill.model import stage as model_stage
from kldistill.model.config import GgufConfig, HfModelConfig
from kldistill.model.load import load_original_tokenizer, read_facts
from kldistill.pipeline.about import of_artifacts
from kldistill.rows.student import embedding_of, head_of
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import encode
from tests.helpers.artifacts import MakeModel, write_tokens

TURN, END = "<|im_end|>", "<|endoftext|>"
TEMPLATE = "{% for message in messages %}<|im_end|>{{ message['content'] }}{% endfor %}"


def chat_model(folder: Path, out: Path, bad: str, template: str = TEMPLATE) -> Path:
    """A model whose tokenizer begins with a turn's marker, and that predicts text badly after the token ``bad``.

    After it the model is sure of one token that no text begins with; no other token points there.
    """
    shutil.copytree(folder, out)
    (out / "model.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = TURN, TURN, END
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        rows, there = embedding_of(model).weight, torch.eye(model.config.hidden_size)[0]
        rows[:, 0] = 0.0
        rows[tokenizer.convert_tokens_to_ids(bad)] = 100 * there
        head_of(model).weight[5] = 5 * there
    model.save_pretrained(out)
    return out


def build(source: Path, out: Path, first_token: str | None = None) -> list[str]:
    out.mkdir()
    said: list[str] = []
    model_stage.build(HfModelConfig(path=str(source), first_token=first_token), {}, out, Job(say=said.append))
    return said


@pytest.mark.parametrize("bad", [TURN, END])
def test_the_better_beginning_is_taken(bad: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = chat_model(tiny_model("llama", tokenizer="gpt2", tied=False), tmp_path / "source", bad)
    said = build(source, tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    nats = beginning.nats_after(model, tokenizer, [TURN, END])
    better = min(nats, key=nats.__getitem__)
    assert better != bad and abs(nats[TURN] - nats[END]) > 1e-3
    assert read_facts(tmp_path / "out")["first_token"] == (None if better == TURN else END)
    read = load_original_tokenizer(tmp_path / "out")
    assert encode(read, ["x"])[0][0] == tokenizer.convert_tokens_to_ids(better)
    (line,) = (text for text in said if text.startswith(f"Every text begins with {better!r}"))
    assert f"{nats[TURN]:.3f} after {TURN!r}, {nats[END]:.3f} after {END!r}" in line
    # What the run writes down: the token of the tokenizer that every stage then uses.
    (tokens := tmp_path / "tokens").mkdir()
    write_tokens(tmp_path / "out", tokens, 8)
    read.save_pretrained(tokens / "tokenizer")
    (tokens / "summary.json").write_text(json.dumps({"tokens/old_size": 512, "tokens/new_size": 520}))
    assert of_artifacts({"tokens": tokens})["first_token"] == better


def test_where_there_is_no_doubt_nothing_is_measured(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("no doubt, no measurement")

    monkeypatch.setattr(beginning, "nats_after", measured)
    folder = tiny_model("llama", tokenizer="gpt2")
    plain = chat_model(folder, tmp_path / "plain", TURN, template="{{ bos_token }}{{ messages[0]['content'] }}")
    assert not any("begins with" in text for text in build(plain, tmp_path / "a"))
    assert read_facts(tmp_path / "a")["first_token"] is None
    source = chat_model(folder, tmp_path / "chat", TURN)
    build(source, tmp_path / "b", first_token=END)
    assert read_facts(tmp_path / "b")["first_token"] == END
    with pytest.raises(AssertionError, match="no doubt"):
        build(source, tmp_path / "c")


def test_asking_for_it_is_part_of_what_the_model_is(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = str(tiny_model("llama"))
    own, given = (model_stage.identity(HfModelConfig(path=folder, first_token=token)) for token in (None, END))
    assert own["first_token"] == beginning.VERSION and "first_token" not in given
    (tmp_path / "m.gguf").write_bytes(b"x")
    own, given = (
        model_stage.identity(GgufConfig(path=str(tmp_path / "m.gguf"), first_token=token)) for token in (None, END)
    )
    assert own["first_token"] == beginning.VERSION and "first_token" not in given
