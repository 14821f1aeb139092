"""Counting pre-tokens gives the same with and without processes."""

import re
from collections import Counter
from functools import cache

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from kldistill.model import tiny
from kldistill.tokens import pretokens
from kldistill.tokens.boundaries import widen
from kldistill.tokens.definition import definition, parts
from kldistill.tokens.joints import GPT2
from kldistill.tokens.pretokens import SEVERAL, Rule, count, cutter, for_ascii


def widened(name: str, boundary: str) -> str:
    """The regex of a tokenizer, widened."""
    spec = widen(definition(tiny.byte_level(name, 420)), boundary)
    return next(step["pattern"]["Regex"] for step in parts(spec["pre_tokenizer"], "pretokenizers") if "pattern" in step)


RULE = Rule(GPT2, {"type": "NFC"}, ["<|end|>", "<|end|>x"])
TEXT = "naïve e\u0301 it's 12 <|end|>x y\u2028z <|end|>\n\n\tfoo_bar 😀 ( "


def test_cut() -> None:
    found = cutter(RULE)("it's e\u0301 <|end|>x<|end|>ed")
    assert found == ["it", "'s", " é", " ", "<|end|>x", "<|end|>", "ed"]


def test_what_is_cut_first_hides_what_stands_beside_it() -> None:
    """White space before a digit ends a piece there: nothing goes on after it."""
    rule = Rule(GPT2, None, [], (r"\p{N}",))
    assert cutter(rule)("a  12") == ["a", "  ", "1", "2"]
    assert cutter(rule)("é  12") == ["é", "  ", "1", "2"]
    assert cutter(rule._replace(before=()))("a  12") == ["a", " ", " 12"]


PATTERNS = [
    GPT2,
    r"(?i:'s|'t|'re|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}|\p{Han}+|[^\p{L}\p{Han}]|.",
    r"\P{L}+|\pL+|[\P{N}\[\]]|\\p",
]


@cache
def translated_patterns() -> dict[str, re.Pattern[str] | None]:
    """These and the widened ones of tokenizers, translated."""
    names, boundaries = ("gpt2", "llama3", "qwen2", "smollm"), ("identifier", "dotted", "qualified", "line")
    wide = [widened(name, boundary) for name in names for boundary in boundaries]
    return {pattern: for_ascii(pattern) for pattern in [*PATTERNS, *wide]}


@settings(max_examples=200)
@given(text=st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_is_cut_by_a_translation_as_by_the_regex(text: str) -> None:
    for pattern, translated in translated_patterns().items():
        assert translated is not None
        assert translated.findall(text) == regex.findall(pattern, text), pattern


@pytest.mark.parametrize("pattern", [r"[[:alpha:]]+", r"[]a]+", r"[^]a]+", r"\X+", r"\p{Lx"])
def test_what_python_reads_otherwise_is_not_translated(pattern: str) -> None:
    assert for_ascii(pattern) is None


def test_no_special_tokens_and_no_normalizer() -> None:
    text = "it's e\u0301\n\n x"
    assert "".join(cutter(Rule(GPT2, None, []))(text)) == text


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_count_the_same(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokens, "PARALLEL_CHARACTERS", 40)
    texts = [TEXT + str(i) for i in range(30)]
    cut = cutter(RULE)
    expected: Counter[str] = Counter()
    for text in texts:
        expected.update(cut(text))
    done: list[int] = []
    groups = [texts[i : i + 4] for i in range(0, len(texts), 4)]
    found = count(RULE, iter(groups), workers, done.append)
    assert found.counts == expected and found.documents.keys() == expected.keys()
    # " 12" is in every text.
    alone = {word: number for word, number in found.documents.items() if number != SEVERAL}
    assert len(alone) == len(texts) - 1 and all(texts[number].endswith(word) for word, number in alone.items())
    assert sum(done) == sum(len(text.encode()) for text in texts) and len(done) == len(groups)


def test_a_process_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokens, "PARALLEL_CHARACTERS", 1)
    with pytest.raises(regex.error):
        count(RULE._replace(pattern="("), iter([["some text"]] * 3), 2, lambda _done: None)
