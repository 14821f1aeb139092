"""A multimodal model keeps the files that say how images become inputs, and still reads text as its student does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
)

from kldistill.export import processors
from kldistill.export import stage as export_stage
from kldistill.export.config import ExportConfig
from kldistill.model import stage as model_stage
from kldistill.model import tiny
from kldistill.model.config import HfModelConfig
from kldistill.runtime.job import Job
from kldistill.training.load import load_student
from tests.helpers.artifacts import MakeModel, rows_for, write_tokens

CONTENTS = {
    "preprocessor_config.json": '{"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}}',
    "processor_config.json": '{"processor_class": "Gemma3Processor", "image_seq_length": 4}\n',
}


def multimodal(text: Path, out: Path) -> Path:
    """A tiny Gemma 3 that reads images, as it is published: model, tokenizer and processor files in one folder."""
    settings = json.loads((text / "config.json").read_text())
    settings.pop("architectures", None)
    vision: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=settings, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(out)
    AutoTokenizer.from_pretrained(text).save_pretrained(out)
    for name, content in CONTENTS.items():
        (out / name).write_text(content)
    return out


def test_a_multimodal_folder_keeps_its_processor_files(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = multimodal(tiny_model("gemma3", pad_to=1), tmp_path / "published")
    folders = {name: tmp_path / name for name in ("model", "tokens", "rows", "out")}
    for name in ("model", "tokens", "out"):
        folders[name].mkdir()
    model_stage.build(HfModelConfig(path=str(source)), {}, folders["model"], Job())
    write_tokens(folders["model"], folders["tokens"], 24)
    rows_for(folders["model"], 24, True, folders["rows"])
    inputs = {name: folders[name] for name in ("model", "tokens", "rows")}
    export_stage.build(ExportConfig(), inputs, folders["out"], Job())
    assert {name: (folders["out"] / name).read_text() for name in CONTENTS} == CONTENTS
    assert not (folders["out"] / "video_preprocessor_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(folders["out"])
    model = AutoModelForCausalLM.from_pretrained(folders["out"]).eval()
    assert isinstance(model, Gemma3ForConditionalGeneration)
    ids = torch.tensor([tokenizer.encode(tiny.training_text()[3][:400])])
    assert ids.max() >= 512
    student = load_student(folders["model"], folders["rows"])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, student.logits(student.hidden(ids)), atol=1e-5, rtol=1e-5)


def test_files_of_the_hub_are_fetched_and_what_cannot_be_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"path": "somebody/model", "revision": "abc", "local_files_only": False}
    config, said, asked = Gemma3Config(), list[str](), list[tuple[str, str]]()
    (tmp_path / "cached").write_text("from the hub")
    answers: dict[str, Any] = {
        "processor_config.json": tmp_path / "cached",
        "preprocessor_config.json": EntryNotFoundError("there is none"),
        "video_preprocessor_config.json": LocalEntryNotFoundError("no network"),
    }

    def download(path: str, name: str, revision: str, local_files_only: bool) -> str:
        asked.append((path, revision))
        if isinstance(answers[name], Exception):
            raise answers[name]
        return str(answers[name])

    monkeypatch.setattr(processors, "hf_hub_download", download)
    (out := tmp_path / "out").mkdir()
    processors.keep(facts, config, out, said.append)
    assert {file.name: file.read_text() for file in out.iterdir()} == {"processor_config.json": "from the hub"}
    assert asked == [("somebody/model", "abc")] * 3
    assert len(said) == 1 and "could not be asked for video_preprocessor_config.json." in said[0]
    processors.keep(facts, LlamaConfig(), out, said.append)  # a model of text alone asks nobody
    assert len(asked) == 3
