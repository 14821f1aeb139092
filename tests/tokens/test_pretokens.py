"""Counting pre-tokens gives the same with and without processes."""

from collections import Counter

import pytest
import regex

from kldistill.tokens import pretokens
from kldistill.tokens.joints import GPT2
from kldistill.tokens.pretokens import Rule, count, cutter

RULE = Rule(GPT2, {"type": "NFC"}, ["<|end|>", "<|end|>x"])
TEXT = "naïve e\u0301 it's 12 <|end|>x y\u2028z <|end|>\n\n\tfoo_bar 😀 ( "


def test_cut() -> None:
    found = cutter(RULE)("it's e\u0301 <|end|>x<|end|>ed")
    assert found == ["it", "'s", " é", " ", "<|end|>x", "<|end|>", "ed"]


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
    assert count(RULE, iter(groups), workers, done.append) == expected
    assert sum(done) == sum(len(text.encode()) for text in texts) and len(done) == len(groups)


def test_a_process_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokens, "PARALLEL_CHARACTERS", 1)
    with pytest.raises(regex.error):
        count(RULE._replace(pattern="("), iter([["some text"]] * 3), 2, lambda _done: None)
