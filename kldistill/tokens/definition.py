"""What the ids of a tokenizer stand for: which kind of tokenizer it is, how large it is, and the bytes of every id.

Two kinds can be extended, both BPE in ``tokenizer.json``: *byte-level* (GPT-2, Llama-3, Qwen, SmolLM), whose tokens are
bytes written in GPT-2's printable alphabet, and *SentencePiece-style* (Llama-2, Gemma), whose tokens are text with
``▁`` for a space and ``<0xXX>`` for a byte that has no token.
"""

import json
import re
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from kldistill.model.load import old_size
from kldistill.runtime.errors import TokenizerError

BYTE_LEVEL = "byte-level"
SENTENCEPIECE = "sentencepiece"
SPACE = "▁"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for every byte, inverted (Radford et al. 2019, ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


BYTE_OF_CHAR = _byte_alphabet()
CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}


def definition(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tokenizer's ``tokenizer.json`` as a dict, with merges as pairs whatever the library's version writes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"{type(tokenizer).__name__} is a slow tokenizer (no tokenizer.json). Only BPE tokenizers with a "
            "tokenizer.json can be extended; convert it with transformers and give that folder as model.path."
        )
    spec = json.loads(backend.to_str())
    model = spec["model"]
    if model["type"] == "BPE":
        model["merges"] = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return spec


class Definition(NamedTuple):
    """A tokenizer that words are looked for with: the old one, its pre-tokenizer widened to a boundary.

    Attributes:
        spec: its ``tokenizer.json``, as ``definition`` gives it.
        size: V, the number of ids of the old tokenizer.
        boundary: one of ``boundaries.BOUNDARIES``.
    """

    spec: dict[str, Any]
    size: int
    boundary: str


def parts(node: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, normalizer or decoder: those of a ``Sequence`` (under ``members``), or itself."""
    if node is None:
        return []
    if node["type"] != "Sequence":
        return [node]
    return [step for member in node[members] for step in parts(member, members)]


def kind(spec: dict[str, Any]) -> str:
    """``BYTE_LEVEL`` or ``SENTENCEPIECE`` for a tokenizer's definition.

    Raises:
        TokenizerError: it is neither, or its BPE has an option under which continued merges mean something else.
    """
    model = spec["model"]
    supported = "Supported are byte-level BPE (GPT-2, Llama-3, Qwen) and SentencePiece-style BPE (Llama-2, Gemma)."
    if model["type"] != "BPE":
        raise TokenizerError(f"This is a {model['type']} tokenizer, which has no merges to continue. {supported}")
    if model.get("dropout"):
        raise TokenizerError(
            f"This BPE tokenizer uses dropout={model['dropout']}: its cuts are random. Set it to null."
        )
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise TokenizerError(f"This BPE tokenizer marks words with {option}={model[option]!r}. {supported}")
    steps = parts(spec["pre_tokenizer"], "pretokenizers")
    if any(step["type"] == "ByteLevel" for step in steps):
        return BYTE_LEVEL
    normalizers = parts(spec["normalizer"], "normalizers")
    spaced = any(step["type"] == "Metaspace" for step in steps) or any(
        step["type"] == "Replace" and step["content"] == SPACE for step in normalizers
    )
    if spaced:
        return SENTENCEPIECE
    raise TokenizerError(f"This BPE tokenizer is neither byte-level nor does it write spaces as {SPACE!r}. {supported}")


def text_bytes(token: str, of_kind: str) -> bytes:
    """The bytes of normalised text that a vocabulary entry (not an AddedToken) stands for."""
    if of_kind == BYTE_LEVEL:
        values = [BYTE_OF_CHAR.get(char) for char in token]
        # An entry outside the byte alphabet can come from no text; it stands for what it shows.
        return token.encode() if None in values else bytes(value for value in values if value is not None)
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(SPACE, " ").encode()


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
    """The bytes of normalised text for every id (the index); ``b""`` for ids that the tokenizer leaves out."""
    of_kind = kind(definition(tokenizer))
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    table = [b""] * old_size(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        table[index] = added[index].encode() if index in added else text_bytes(token, of_kind)
    return table
