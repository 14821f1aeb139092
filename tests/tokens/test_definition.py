"""Kinds of tokenizers, their sizes, and the bytes of their ids."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kldistill.model import tiny
from kldistill.model.load import old_size
from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.definition import BYTE_LEVEL, SENTENCEPIECE, definition, kind, text_bytes, token_bytes

TEXT = "def naïve_中文(x):\n\treturn 'é' + \"😀\"  # 42 tokens\n"


def make(name: str) -> PreTrainedTokenizerFast:
    return tiny.sentencepiece_style(name, 500) if name in tiny.SENTENCEPIECE else tiny.byte_level(name, 400)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2", "llama2", "gemma"])
def test_bytes_of_ids_make_up_the_text(name: str) -> None:
    tokenizer = make(name)
    table = token_bytes(tokenizer)
    assert len(table) == old_size(tokenizer)
    text = b"".join(table[i] for i in tokenizer(TEXT, add_special_tokens=False)["input_ids"]).decode()
    assert text == (f" {TEXT}" if name == "llama2" else TEXT)
    assert kind(definition(tokenizer)) == (SENTENCEPIECE if name in tiny.SENTENCEPIECE else BYTE_LEVEL)


def test_size_counts_added_tokens_beyond_gaps() -> None:
    tokenizer = make("gpt2")
    before = old_size(tokenizer)
    tokenizer.add_tokens(["<extra é>"])
    assert old_size(tokenizer) == before + 1
    assert token_bytes(tokenizer)[-1] == "<extra é>".encode()


def test_bytes_of_entries() -> None:
    assert text_bytes("Ġé", BYTE_LEVEL) == b" \xe9"
    assert text_bytes("<0xE9>", SENTENCEPIECE) == b"\xe9"
    assert text_bytes("▁é", SENTENCEPIECE) == " é".encode()


def test_merges_come_as_pairs() -> None:
    spec = definition(make("gpt2"))
    assert all(isinstance(merge, tuple) and len(merge) == 2 for merge in spec["model"]["merges"])


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (models.Unigram([("a", -1.0), ("b", -2.0)]), "Unigram"),
        (models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), "WordPiece"),
        (models.WordLevel({"a": 0}, unk_token="a"), "WordLevel"),
        (models.BPE({"a": 0}, [], dropout=0.1), "dropout"),
        (models.BPE({"a": 0}, [], end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (models.BPE({"a": 0}, []), "neither"),
    ],
)
def test_other_kinds_are_refused_by_name(model: models.Model, named: str) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    spec = definition(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    with pytest.raises(TokenizerError, match=rf"{named}(?s:.)*(Supported|null)"):
        kind(spec)


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(TokenizerError, match="slow tokenizer"):
        definition(object())  # type: ignore[arg-type]
