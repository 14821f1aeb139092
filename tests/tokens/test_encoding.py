"""Text is text: the spelling of a special token in it is cut into pieces like any other text."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kldistill.model import tiny
from kldistill.report.run.examples import parts_of
from kldistill.runtime.job import Job
from kldistill.tokens import stage as tokens_stage
from kldistill.tokens.artifact import read_new_tokens
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.definition import Definition, definition, token_bytes
from kldistill.tokens.encoding import count_special, encode, first_token, reader, special_ids, text_ids
from kldistill.tokens.words import count_words

# The special tokens of the tiny tokenizers of both kinds, as a program that handles tokenizers spells them.
TEXT = "if text.endswith('<|endoftext|>') or text == '<s>' or '</s>' in text:  # <|im_end|>\n"


def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    made = {kind: tiny.byte_level(kind, 512) for kind in ("gpt2", "smollm", "llama3", "qwen2")}
    return made | {kind: tiny.sentencepiece_style(kind, 512) for kind in ("llama2", "gemma")}


@pytest.mark.parametrize("kind", ["gpt2", "smollm", "llama3", "qwen2", "llama2", "gemma"])
def test_special_tokens_in_a_text_are_text(kind: str) -> None:
    tokenizer = tokenizers()[kind]
    special = special_ids(tokenizer)
    ids = encode(tokenizer, [TEXT])[0]
    assert ids[0] == first_token(tokenizer) in special
    assert not set(ids[1:]) & special
    assert tokenizer.decode(ids[1:]).strip() == TEXT.strip()
    assert reader(definition(tokenizer)).encode(TEXT, add_special_tokens=False).ids == ids[1:]
    assert count_special(definition(tokenizer), [TEXT, TEXT]) == 4


def test_added_tokens_that_are_not_special_are_found() -> None:
    tokenizer = tokenizers()["qwen2"]
    tokenizer.add_tokens(["<tool_call>"])
    assert 512 in text_ids(tokenizer, ["a <tool_call>"])[0]
    assert count_special(definition(tokenizer), ["a <tool_call>"]) == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "gemma"])
def test_words_are_counted_as_text(kind: str) -> None:
    tokenizer = tokenizers()[kind]
    words = count_words(Definition(definition(tokenizer), 512, "word"), [TEXT])
    assert words.tokens == len(text_ids(tokenizer, [TEXT])[0])
    assert not set(words.pieces.tolist()) & special_ids(tokenizer)


def test_the_stage_reads_them_as_text_and_says_how_many(tiny_model, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "tokens"
    corpus.mkdir(), out.mkdir()
    for split, n in (("train", 40), ("validation", 3), ("test", 2)):
        (corpus / f"{split}.jsonl").write_text(json.dumps({"id": split, "text": TEXT * n}) + "\n")
    said: list[str] = []
    cfg = TokensConfig(n_new=10, boundary="word", curve=0)
    tokens_stage.build(cfg, {"model": tiny_model("qwen2"), "corpus": corpus}, out, Job(say=said.append))
    assert json.loads((out / "summary.json").read_text())["tokens/special_in_text"] == 2 * 45
    assert any("90 times" in text for text in said)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    # Those of "endoftext" come from text, as the special token does not stand there.
    assert any(token.string.strip() in "endoftext" and token.count for token in read_new_tokens(out))
    shown = parts_of(text_ids(tokenizer, [TEXT])[0], token_bytes(tokenizer), 512)
    assert "".join(part.text for part in shown) == TEXT and "<|endoftext|>" not in {part.text for part in shown}
