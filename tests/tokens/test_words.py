"""Counting words by the marking tokenizer is the same as counting them one by one."""

from collections import Counter

import pytest

from kldistill.model import tiny
from kldistill.model.load import old_size
from kldistill.tokens.boundaries import shape, widen
from kldistill.tokens.definition import Definition, definition
from kldistill.tokens.encoding import reader
from kldistill.tokens.joints import BOUNDARIES
from kldistill.tokens.pretokens import SEVERAL
from kldistill.tokens.words import chunks, count_words, marking, rule_of

TEXTS = [
    "def attention_mask(self):\n    return self.attention_mask  # it's 128 naïve\n\n",
    "class __Foo_bar__:\n\tx = don't_stop.中文_é\n",
    "",
    "attention_mask <|endoftext|>attention_mask" * 3,
    "x" * 40 + " y",
]


def by_hand(spec: dict, boundary: str) -> Counter[tuple[int, ...]]:
    """Words of two or more tokens, from the slow encoding that says to which pre-token a token belongs."""
    tokenizer = reader(spec)
    special = {token["id"] for token in spec["added_tokens"]}
    found: Counter[tuple[int, ...]] = Counter()
    for text in TEXTS:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        words: list[list[int]] = []
        last = None
        for index, word, offsets in zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True):
            place = ("special", offsets) if index in special else word
            if words and place == last:
                words[-1].append(index)
            else:
                words.append([index])
            last = place
        found.update(tuple(word) for word in words if len(word) > 1)
    return found


def as_counter(words) -> Counter[tuple[int, ...]]:
    return Counter(
        {
            tuple(words.pieces[start:end].tolist()): int(count)
            for start, end, count in zip(words.starts[:-1], words.starts[1:], words.counts, strict=True)
        }
    )


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", ["gpt2", "smollm", "llama3", "qwen2"])
def test_byte_level_words(name: str, boundary: str) -> None:
    tokenizer = tiny.byte_level(name, 420)
    spec = widen(definition(tokenizer), boundary)
    words = count_words(Definition(spec, old_size(tokenizer), boundary), TEXTS)
    assert as_counter(words) == by_hand(spec, boundary)
    plain = reader(spec)
    assert words.tokens == sum(len(plain.encode(text, add_special_tokens=False).ids) for text in TEXTS)
    assert words.bytes == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_marking_keeps_the_cuts(name: str) -> None:
    tokenizer = tiny.byte_level(name, 420)
    spec, size = definition(tokenizer), old_size(tokenizer)
    marked = marking(Definition(spec, size, "word"))
    for text in [*TEXTS, *tiny.training_text()[2:4]]:
        encoding = reader(spec).encode(text, add_special_tokens=False)
        assert [i % size for i in marked.encode(text, add_special_tokens=False).ids] == encoding.ids


def test_added_tokens_outside_the_vocabulary_are_no_other_token() -> None:
    """As in Phi-1, CodeGen and Pythia: runs of spaces and the like, numbered after the vocabulary."""
    tokenizer = tiny.byte_level("gpt2", 420)
    tokenizer.add_tokens(["    ", "§§"])
    spec, size = definition(tokenizer), old_size(tokenizer)
    assert size == 422 and "§§" not in spec["model"]["vocab"]
    text = "def f():\n    return x§§y    attention\n" * 3
    encoding = reader(spec).encode(text, add_special_tokens=False)
    assert {420, 421} < set(encoding.ids)
    assert [
        i % size for i in marking(Definition(spec, size, "word")).encode(text, add_special_tokens=False).ids
    ] == encoding.ids
    words = count_words(Definition(spec, size, "word"), [text])
    assert words.tokens == len(encoding.ids)
    assert not {420, 421} & set(words.pieces.tolist()), "an AddedToken stands alone"


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", ["llama2", "gemma"])
def test_sentencepiece_words_have_the_shape(name: str, boundary: str) -> None:
    tokenizer = tiny.sentencepiece_style(name, 520)
    words = count_words(Definition(definition(tokenizer), old_size(tokenizer), boundary), TEXTS)
    first, later = shape(boundary)
    found = as_counter(words)
    assert found
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    for pieces in found:
        assert first.fullmatch(names[pieces[0]]) or later.fullmatch(names[pieces[0]])
        assert all(later.fullmatch(names[piece]) for piece in pieces[1:])


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2", "smollm"])
def test_cutting_first_and_encoding_whole_texts_count_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.byte_level(name, 420)
    spec, size = widen(definition(tokenizer), "identifier"), old_size(tokenizer)
    texts = [*TEXTS, *tiny.training_text(), "e\u0301 a\u030a_x²y\u2028z\x1cq\x85\xa0w"]
    texts += ["x  12 a\t 3_4  5.6e7\n 8", "½x  ½ ٣٤", "a \x1c \x1d 1"]
    cut = count_words(Definition(spec, size, "identifier"), texts)
    assert rule_of(spec) is not None
    monkeypatch.setattr("kldistill.tokens.words.rule_of", lambda _spec: None)
    whole = count_words(Definition(spec, size, "identifier"), texts)
    assert as_counter(cut) == as_counter(whole)
    assert cut.documents.tolist() == whole.documents.tolist()
    assert {SEVERAL, 0, 1, 3, 4} <= set(whole.documents.tolist())
    assert (cut.tokens, cut.bytes) == (whole.tokens, whole.bytes)


def test_other_pretokenizers_are_encoded_whole() -> None:
    spec = definition(tiny.byte_level("smollm", 420))
    assert rule_of(spec) is not None
    punctuation = {"type": "Punctuation", "behavior": "Contiguous"}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [punctuation, spec["pre_tokenizer"]]}
    assert rule_of(spec) is None
    assert rule_of(definition(tiny.sentencepiece_style("gemma", 500))) is None


def test_the_order_of_texts_and_chunks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.byte_level("gpt2", 420)
    spec, size = definition(tokenizer), old_size(tokenizer)
    whole = count_words(Definition(spec, size, "word"), TEXTS)
    monkeypatch.setattr("kldistill.tokens.words.chunks", lambda texts, _size=0: chunks(texts, 1))
    parts = count_words(Definition(spec, size, "word"), TEXTS[::-1])
    assert ((whole.documents == SEVERAL) == (parts.documents == SEVERAL)).all()
    for name in ("pieces", "starts", "counts"):
        assert (getattr(whole, name) == getattr(parts, name)).all()


def test_no_text_gives_no_words() -> None:
    tokenizer = tiny.byte_level("gpt2", 420)
    words = count_words(Definition(definition(tokenizer), old_size(tokenizer), "word"), [""])
    assert len(words.counts) == 0 and words.starts.tolist() == [0]
