"""A model in one GGUF file, converted once to a Hugging Face folder in float32: ``model=gguf model.path=FILE``.

Whatever transformers reads (https://huggingface.co/docs/transformers/gguf) works, quantised or not; quantised weights
keep the values that they were rounded to. A GGUF file names the splitting rule of its tokenizer by a word
(``tokenizer.ggml.pre``), which transformers does not follow: rules that it would read otherwise are put right here, or,
where the rule is not known, the user is told.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf as gguf_format
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)

from kldistill.model import beginning
from kldistill.model.load import read_whole, reading
from kldistill.runtime import digests
from kldistill.runtime.components import component
from kldistill.runtime.digests import remembered_sha256
from kldistill.runtime.errors import ModelError
from kldistill.runtime.progress import without_bars_of_transformers

READING: Any = modeling_gguf_pytorch_utils
# Splitting rules that transformers reads as another one, by their names in GGUF files (llama.cpp, src/llama-vocab.cpp).
_WHOLE = {"add_prefix_space": False, "use_regex": True}
RULES: dict[str, Callable[[], Any]] = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(**_WHOLE)]
    ),
}
# Rules that it reads as they are: GPT-2's, Llama 3's, Qwen 2's, and SentencePiece-style vocabularies, which have none.
READ = {"default", "gpt-2", "llama-bpe", "qwen2"}
TOKENIZER_FILES = {".json", ".jinja", ".model", ".txt"}  # what a tokenizer is read from, chat templates included


def identity(*, path: str, **others: object) -> dict[str, object]:
    """The file's digest, and the files of a tokenizer's folder by theirs. Raises ``ModelError``."""
    named = others.get("tokenizer")
    facts: dict[str, object] = {"sha256": sha256(existing(path, "model.path"), remembered_sha256)}
    if named is not None:
        folder = Path(str(named)).expanduser()
        files = sorted(file for file in folder.rglob("*") if file.suffix in TOKENIZER_FILES and file.is_file())
        facts["tokenizer"] = {str(file.relative_to(folder)): sha256(file, remembered_sha256) for file in files}
    return facts | beginning.identity(others.get("first_token"))


@component("model", identity)
def gguf(
    out: Path,
    *,
    path: str,
    tokenizer: str | None = None,
    first_token: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, object]:
    """Convert the GGUF file at ``path`` into ``out``: weights (float32), tokenizer, generation config.

    Args:
        tokenizer: a folder with the model's own ``tokenizer.json``; None takes the one in the file.
        first_token: the special token that begins every text; None takes the tokenizer's own or, where that is
            in doubt, the best (see ``kldistill.model.beginning``).

    Returns:
        What ``model.json`` says of it.

    Raises:
        ModelError: there is no such file, or transformers cannot read it.
    """
    facts = convert(existing(path, "model.path"), out, say, tokenizer)
    return {
        "path": ".",
        "name": facts.get("general.name"),
        "license": facts.get("general.license"),
        "base_model": None,
        "first_token": beginning.asked(first_token),
    }


def convert(file: Path, out: Path, say: Callable[[str], None], tokenizer_folder: str | None = None) -> dict[str, Any]:
    """Write a GGUF file as a Hugging Face folder, in float32.

    Returns:
        The plain values of the file's header (see ``metadata``).

    Raises:
        ModelError: it is no GGUF file, or transformers cannot read it.
    """
    with read_once():
        header = metadata(file)
        say(f"Converting {file.name} to float32 safetensors (once, some ten seconds)")
        with reading(f"{file}: the tokenizer of this GGUF file"):
            tokenizer = read_tokenizer(file, header, tokenizer_folder, say)
        loaded = read_whole(file, str(file.parent), gguf_file=file.name, dtype=torch.float32)
    tokenizer.save_pretrained(out)
    config = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "unk_token_id"):
        config.pop(key, None)
    # A model read from GGUF counts as quantized and refuses to be saved; a fresh one with its weights does not.
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    del loaded
    gc.collect()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    with without_bars_of_transformers():
        model.save_pretrained(out)
    return header


@contextmanager
def read_once() -> Iterator[None]:
    """Meanwhile a GGUF file is gone through once, in plain Python, and names of tensors are listed once.

    transformers goes through the whole file for each of config, tokenizer and weights, and lists all names anew for
    every module of the model. Neither changes in between. Its bar, which none of its settings turns off, is not drawn.
    """
    reader, names = gguf_format.GGUFReader, gguf_format.get_tensor_name_map
    bar = READING.tqdm
    opened = cache(reader)
    patched = {"GGUFReader": lambda path, *rest: opened(Path(path), *rest), "get_tensor_name_map": cache(names)}
    try:
        for name, function in patched.items():
            setattr(gguf_format, name, function)
        READING.tqdm = lambda tensors, **_: tensors
        yield
    finally:
        gguf_format.GGUFReader, gguf_format.get_tensor_name_map = reader, names
        READING.tqdm = bar


def read_tokenizer(
    file: Path, header: Mapping[str, Any], folder: str | None, say: Callable[[str], None]
) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file with its own splitting rule, or the one in ``folder``. Raises ``ModelError``."""
    if folder is not None:
        where = Path(folder).expanduser()
        if not (where / "tokenizer.json").is_file():
            raise ModelError(f"model.tokenizer={folder!r}: has no tokenizer.json.")
        return AutoTokenizer.from_pretrained(where)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    rule = str(header.get("tokenizer.ggml.pre", "default"))
    if rule in RULES:
        tokenizer.backend_tokenizer.pre_tokenizer = RULES[rule]()
    elif rule not in READ:
        say(
            f"Warning: {file.name}: its splitting rule {rule!r} may be read otherwise here. Give the folder of the "
            "model's own tokenizer.json as model.tokenizer."
        )
    return tokenizer


def metadata(file: Path) -> dict[str, Any]:
    """The plain values of a GGUF file's header, by key. Raises ``ModelError`` if it is no GGUF file."""
    try:
        fields = gguf_format.GGUFReader(file).fields
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"{file}: is no GGUF file: {error}") from error
    plain = {name: field for name, field in fields.items() if field.types[:1] != [gguf_format.GGUFValueType.ARRAY]}
    return {name: field.contents() for name, field in plain.items()}


def existing(path: str, key: str) -> Path:
    """The file that a key names. Raises ``ModelError`` where there is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"{key}={path!r}: there is no such file.")
    return file


def sha256(file: Path, read: Callable[[Path], str] = digests.sha256) -> str:
    """The file's digest, by ``read``. Raises ``ModelError`` if it cannot be read."""
    try:
        return read(file)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}.") from error
