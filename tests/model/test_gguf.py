"""A model in a GGUF file: the same ids and logits as the folder that the file was made of, or a message."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kldistill.export import gguf_file
from kldistill.model import gguf, tiny
from kldistill.model import stage as model_stage
from kldistill.model.config import GgufConfig, HfModelConfig
from kldistill.model.load import load_original, load_original_tokenizer, read_facts
from kldistill.runtime import digests
from kldistill.runtime.errors import ModelError
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import encode, text_ids
from tests.helpers.artifacts import MakeModel

TEXT = "".join(tiny.training_text())[4_000:14_000] + " 12345  67\n\n   8 x1y22  end "


def write(folder: Path, file: Path) -> Path:
    """The GGUF file of a tiny model."""
    gguf_file.write(load_original(folder), folder, file, name="a tiny model")
    return file


@pytest.mark.parametrize(("family", "kind"), [("llama", "smollm"), ("llama", "gpt2"), ("qwen2", "qwen2")])
def test_ids_and_logits_are_those_of_the_folder(family: str, kind: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tiny_model(family, tokenizer=kind, pad_to=1)
    file, out = write(folder, tmp_path / "model.gguf"), tmp_path / "out"
    out.mkdir()
    said: list[str] = []
    model_stage.build(GgufConfig(path=str(file)), {}, out, Job(say=said.append))
    before, after = load_original_tokenizer(folder), load_original_tokenizer(out)
    assert text_ids(after, [TEXT]) == text_ids(before, [TEXT])
    ids = torch.tensor(text_ids(before, [TEXT[:400]]))
    torch.testing.assert_close(load_original(out)(ids).logits, load_original(folder)(ids).logits, rtol=1e-4, atol=1e-4)
    assert read_facts(out)["name"] == "a tiny model"
    assert not any("Warning" in text for text in said)


def test_the_file_is_gone_through_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: MakeModel, tmp_path: Path
) -> None:
    """By us and by transformers for config, tokenizer and weights together: it is done in plain Python, entry by entry.
    Names of tensors are listed once, not for every module, and no bar of transformers is drawn.
    """
    import gguf as gguf_format

    file = write(tiny_model("llama", tokenizer="smollm", pad_to=1), tmp_path / "model.gguf")
    calls: list[str] = []

    class Counted(gguf_format.GGUFReader):
        def __init__(self, *arguments: Any) -> None:
            calls.append("reader")
            super().__init__(*arguments)

    def counted(*arguments: Any, of: Any = gguf_format.get_tensor_name_map) -> Any:
        calls.append("names")
        return of(*arguments)

    monkeypatch.setattr(gguf_format, "GGUFReader", Counted)
    monkeypatch.setattr(gguf_format, "get_tensor_name_map", counted)
    (tmp_path / "out").mkdir()
    capsys.readouterr()
    bar = gguf.READING.tqdm
    gguf.convert(file, tmp_path / "out", lambda text: None)
    assert sorted(calls) == ["names", "reader"]
    assert capsys.readouterr().err == ""
    assert gguf.READING.tqdm is bar
    assert gguf_format.GGUFReader is Counted and gguf_format.get_tensor_name_map is counted
    assert gguf.metadata(file)["general.name"] == "a tiny model"


def test_a_rule_that_may_be_read_otherwise_is_told_and_a_folder_mends_it(
    monkeypatch: pytest.MonkeyPatch, tiny_model: MakeModel, tmp_path: Path
) -> None:
    folder = tiny_model("llama", tokenizer="smollm", pad_to=1)
    file = write(folder, tmp_path / "model.gguf")
    monkeypatch.setattr(gguf, "RULES", {})  # as if this rule were one that nobody knows
    for tokenizer in (None, str(folder)):
        out = tmp_path / ("own" if tokenizer else "file")
        out.mkdir()
        said: list[str] = []
        model_stage.build(GgufConfig(path=str(file), tokenizer=tokenizer), {}, out, Job(say=said.append))
        same = text_ids(load_original_tokenizer(out), [TEXT]) == text_ids(load_original_tokenizer(folder), [TEXT])
        warned = any("splitting rule 'smollm' may be read otherwise" in text for text in said)
        assert (same, warned) == ((True, False) if tokenizer else (False, True))


def test_the_identity_is_the_content(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tiny_model("llama", tokenizer="gpt2", pad_to=1)
    file = write(folder, tmp_path / "model.gguf")
    cfg = GgufConfig(path=str(file))
    first = model_stage.identity(cfg)
    assert first == model_stage.identity(cfg)
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    with_own = model_stage.identity(GgufConfig(path=str(file), tokenizer=str(own)))
    assert with_own != first
    (own / "additional_chat_templates").mkdir()
    for template in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
        before = model_stage.identity(GgufConfig(path=str(file), tokenizer=str(own)))
        (own / template).write_text("another template")
        assert model_stage.identity(GgufConfig(path=str(file), tokenizer=str(own))) != before
    file.write_bytes(file.read_bytes() + b"\0")
    assert model_stage.identity(cfg) != first


def test_the_identity_of_a_large_file_is_remembered(
    monkeypatch: pytest.MonkeyPatch, tiny_model: MakeModel, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LEAST", 1)
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    file = write(tiny_model("llama", tokenizer="gpt2", pad_to=1), tmp_path / "model.gguf")
    cfg = GgufConfig(path=str(file))
    first = model_stage.identity(cfg)
    assert first["sha256"] == digests.sha256(file)

    def unread(_file: Path) -> str:
        raise AssertionError("an unchanged file is not read again")

    monkeypatch.setattr(digests, "sha256", unread)
    assert model_stage.identity(cfg) == first


def test_what_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.path='no\.gguf': there is no such file"):
        model_stage.identity(GgufConfig(path="no.gguf"))
    (tmp_path / "text.gguf").write_text("no model at all, but long enough to be looked into")
    with pytest.raises(ModelError, match=r"text\.gguf: "):
        model_stage.build(GgufConfig(path=str(tmp_path / "text.gguf")), {}, tmp_path, Job())
    (tmp_path / "text.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"text\.gguf: "):
        model_stage.build(GgufConfig(path=str(tmp_path / "text.gguf")), {}, tmp_path, Job())


def test_the_first_token_can_be_chosen(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tiny_model("llama", tokenizer="gpt2")
    tokenizer = load_original_tokenizer(folder)
    assert tokenizer.bos_token != tokenizer.eos_token
    (tmp_path / "a").mkdir()
    cfg = HfModelConfig(path=str(folder), first_token=str(tokenizer.eos_token))
    model_stage.build(cfg, {}, tmp_path / "a", Job())
    read = load_original_tokenizer(tmp_path / "a")
    assert encode(read, ["x"])[0][0] == tokenizer.eos_token_id != encode(tokenizer, ["x"])[0][0]
    read.save_pretrained(tmp_path / "saved")
    assert type(read).from_pretrained(tmp_path / "saved").bos_token == tokenizer.eos_token
    (tmp_path / "b").mkdir()
    with pytest.raises(ModelError, match=r"^model\.first_token='<nothing>': is no special token.*those are <"):
        model_stage.build(HfModelConfig(path=str(folder), first_token="<nothing>"), {}, tmp_path / "b", Job())
