"""A wide pre-token is a union of whole old pre-tokens, whatever the text."""

import copy
import json
from functools import cache

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kldistill.model import tiny
from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.boundaries import GPT2, alternatives, check_pretokenizer, shape, widen, widen_regex
from kldistill.tokens.definition import definition

KINDS = ("gpt2", "smollm", "llama3", "qwen2")
WIDER = ("identifier", "dotted")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
NASTY = [
    *"abnmeszé中ß_.('s)\u0301 \n\t\r7٣😀-",
    "__",
    "'s",
    "'ll",
    "n't_",
    " _",
    "._",
    "_.",
    "\r\n",
    "  ",
    "name",
    "init",
    "_name",
    "self.",
]
texts = st.lists(st.sampled_from(NASTY), max_size=24).map("".join)

DEFINITIONS = {kind: definition(tiny.byte_level(kind, 1500)) for kind in KINDS}


@cache
def tokenizer_of(kind: str, boundary: str) -> Tokenizer:
    """The old tokenizer, cutting at ``boundary``, without its normalizer (which may change lengths)."""
    return Tokenizer.from_str(json.dumps({**widen(DEFINITIONS[kind], boundary), "normalizer": None}))


def cuts(kind: str, boundary: str, text: str) -> set[int]:
    """Where pre-tokens end, in characters."""
    return {end for _, (_, end) in tokenizer_of(kind, boundary).pre_tokenizer.pre_tokenize_str(text)}


@pytest.mark.parametrize("boundary", WIDER)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_every_wide_cut_is_an_old_cut(kind: str, boundary: str, text: str) -> None:
    assert cuts(kind, boundary, text) <= cuts(kind, "word", text)


@pytest.mark.parametrize("pattern", [GPT2, tiny.LLAMA3_RULE, tiny.QWEN2_RULE, CL100K])
@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_dotted_contains_identifier_and_all_matches_cover_the_text(pattern: str, text: str) -> None:
    def ends(rule: str) -> set[int]:
        matches = list(regex.finditer(rule, text, regex.VERSION1))
        assert "".join(match[0] for match in matches) == text
        return {match.end() for match in matches}

    dotted, identifier = (ends(widen_regex(pattern, boundary)) for boundary in ("dotted", "identifier"))
    assert dotted <= identifier <= ends(pattern)


def test_the_property_is_not_vacuous() -> None:
    """A careless rule, which lets underscores join across punctuation, is found by the same comparison."""
    careless = r"(?: ?\p{L}+| ?_+)(?:_+|\p{L}+)*"
    rule = GPT2.replace(r" ?\p{L}+", careless)
    wrong = {m.end() for m in regex.finditer(rule, "x__(y")}
    assert not wrong <= {m.end() for m in regex.finditer(GPT2, "x__(y")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("boundary", "text", "expected"),
    [
        ("identifier", "x = self.attention_mask", ["x", " =", " self", ".attention_mask"]),
        ("identifier", " __init__ ", [" __init__", " "]),
        ("identifier", "a_b2_c", ["a_b", "2", "_c"]),
        ("identifier", "f(__)", ["f", "(__)"]),
        ("dotted", "torch.nn.Linear_x", ["torch.nn.Linear_x"]),
        ("dotted", "end.\nNext", ["end", ".", "\n", "Next"]),
    ],
)
def test_examples(kind: str, boundary: str, text: str, expected: list[str]) -> None:
    if kind in ("gpt2", "smollm") and expected[-1] == ".attention_mask":
        expected = [*expected[:-1], ".", "attention_mask"]
    if kind in ("llama3", "qwen2"):
        others = {" __init__ ": [" __", "init__", " "], "end.\nNext": ["end", ".\n", "Next"]}
        expected = others.get(text, expected)
    pre = tokenizer_of(kind, boundary).pre_tokenizer
    assert [text[start:end] for _, (start, end) in pre.pre_tokenize_str(text)] == expected


@pytest.mark.parametrize("boundary", WIDER)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None)
@given(text=texts)
def test_old_merges_give_the_old_ids(kind: str, boundary: str, text: str) -> None:
    assert tokenizer_of(kind, boundary).encode(text).ids == tokenizer_of(kind, "word").encode(text).ids


def test_word_and_sentencepiece_leave_the_definition_alone() -> None:
    for boundary in ("word", "identifier", "dotted"):
        gemma = definition(tiny.sentencepiece_style("gemma", 500))
        assert widen(gemma, boundary) == gemma
    assert widen(DEFINITIONS["gpt2"], "word") == DEFINITIONS["gpt2"]


def test_widening_does_not_change_its_argument() -> None:
    before = copy.deepcopy(DEFINITIONS["qwen2"])
    widen(DEFINITIONS["qwen2"], "dotted")
    assert DEFINITIONS["qwen2"] == before


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": r"[\p{L}\p{M}]+|\p{N}|\s+"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                {"type": "Digits", "individual_digits": True},
            ],
        },
    ],
)
def test_unknown_pretokenizers_are_refused_with_the_way_out(pre_tokenizer: dict) -> None:
    spec = {**DEFINITIONS["gpt2"], "pre_tokenizer": pre_tokenizer}
    with pytest.raises(TokenizerError, match=r"tokens\.boundary=word|neither byte-level"):
        widen(spec, "identifier")
    assert widen(spec, "word") == spec


def test_alternatives_respect_groups_classes_and_escapes() -> None:
    assert alternatives(r"(?:a|b)|[|)]|\||c") == ["(?:a|b)", "[|)]", r"\|", "c"]


@pytest.mark.parametrize(
    ("boundary", "first", "later", "neither"),
    [
        ("word", ["▁foo", "foo", "▁"], ["foo", "é"], ["_", "foo1", "▁▁foo", "<0x41>", "."]),
        ("identifier", ["▁_foo", "foo_", "_"], ["_foo", "__"], ["foo.", ".", "2", "<0x41>"]),
        ("dotted", ["self.", "▁self"], [".", "._x"], ["<0x41>", "1", "("]),
    ],
)
def test_shapes(boundary: str, first: list[str], later: list[str], neither: list[str]) -> None:
    starts, continues = shape(boundary)
    assert all(starts.fullmatch(token) for token in first)
    assert all(continues.fullmatch(token) for token in later)
    assert not any(starts.fullmatch(token) or continues.fullmatch(token) for token in neither)
    assert not any(continues.fullmatch(token) for token in first if token.startswith("▁"))


def test_sentencepiece_pretokenizers_that_cut_unknown_places_are_refused() -> None:
    gemma = definition(tiny.sentencepiece_style("gemma", 500))
    check_pretokenizer(gemma)
    with pytest.raises(TokenizerError, match="Punctuation"):
        check_pretokenizer({**gemma, "pre_tokenizer": {"type": "Punctuation", "behavior": "Isolated"}})
