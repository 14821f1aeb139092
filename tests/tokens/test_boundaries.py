"""A wide pre-token is a union of whole old pre-tokens, whatever the text."""

import copy
import json
import string
from functools import cache
from itertools import product
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kldistill.model import tiny
from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.boundaries import check_pretokenizer, shape, widen, widest
from kldistill.tokens.definition import CHAR_OF_BYTE, definition
from kldistill.tokens.joints import (
    BOUNDARIES,
    GPT2,
    NAMES,
    Spans,
    alternatives,
    any_of,
    looked_up,
    spans_of,
    widen_regex,
)

KINDS = ("gpt2", "smollm", "llama3", "qwen2")
WIDER = ("identifier", "dotted", "qualified", "line")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# What their tokens span, as read off the real vocabularies.
PREFIXED = Spans({("_", "L"): "_x", (".", "L"): ".x", ("\\", "L"): "\\x", ("l", "U"): "xX"})
FREE_CASE = Spans({("_", "L"): "_x", (".", "L"): ".x", ("\\", "L"): "\\x"})
RULES = {
    "gpt2": (GPT2, Spans()),
    "llama3": (tiny.LLAMA3_RULE, PREFIXED),
    "qwen2": (tiny.QWEN2_RULE, PREFIXED),
    "cl100k": (CL100K, PREFIXED),
    "o200k": (O200K, FREE_CASE),
    "tekken": (TEKKEN, FREE_CASE),
    "deepseek": (DEEPSEEK, PREFIXED),
    "qwen3_5": (QWEN3_5, PREFIXED),
}
NASTY = [
    "aB",
    "हि",
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
    "::",
    "->",
    ":",
    ">",
    "\\",
    "std::",
    "->next",
    "App\\",
    " is not",
    " = ",
    "((",
    "):\n",
]
texts = st.lists(st.sampled_from(NASTY), max_size=24).map("".join)


@cache
def definition_of(kind: str) -> dict[str, Any]:
    """Never to be changed."""
    return definition(tiny.byte_level(kind, 1500))


@cache
def tokenizer_of(kind: str, boundary: str) -> Tokenizer:
    """The old tokenizer, cutting at ``boundary``, without its normalizer (which may change lengths)."""
    return Tokenizer.from_str(json.dumps({**widen(definition_of(kind), boundary), "normalizer": None}))


def cuts(kind: str, boundary: str, text: str) -> set[int]:
    """Where pre-tokens end, in characters."""
    return {end for _, (_, end) in tokenizer_of(kind, boundary).pre_tokenizer.pre_tokenize_str(text)}


# To draw a text takes longer than to cut it, so each is cut in every way.


@settings(max_examples=400)
@given(text=texts)
def test_every_wide_cut_is_an_old_cut_and_old_merges_give_the_old_ids(text: str) -> None:
    for kind in KINDS:
        old_cuts, old_ids = cuts(kind, "word", text), tokenizer_of(kind, "word").encode(text).ids
        narrower = old_cuts
        for boundary in WIDER:
            wide_cuts = cuts(kind, boundary, text)
            assert wide_cuts <= narrower, (kind, boundary)
            assert tokenizer_of(kind, boundary).encode(text).ids == old_ids, (kind, boundary)
            narrower = wide_cuts


@cache
def rule_of(name: str, boundary: str) -> str:
    """The rule of a family, widened."""
    pattern, spans = RULES[name]
    return widen_regex(pattern, boundary, spans)


@settings(max_examples=200)
@given(text=texts)
def test_wider_ones_contain_narrower_ones_and_all_matches_cover_the_text(text: str) -> None:
    def ends(name: str, rule: str) -> set[int]:
        matches = list(regex.finditer(rule, text, regex.VERSION1))
        if name != "deepseek":  # its digits are cut before
            assert "".join(match[0] for match in matches) == text, name
        return {match.end() for match in matches}

    for name, (pattern, _) in RULES.items():
        identifier, dotted, qualified = (ends(name, rule_of(name, boundary)) for boundary in NAMES[1:])
        assert qualified <= dotted <= identifier <= ends(name, pattern), name


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
        ("dotted", "std::vector", ["std", "::", "vector"]),
        ("qualified", "std::vector::at", ["std::vector::at"]),
        ("qualified", "self->next_of.a", ["self->next_of.a"]),
        ("qualified", "App\\Models\\User::find", ["App\\Models\\User::find"]),
        ("qualified", "x ::y z->* q:: d::~e", ["x", " ::", "y", " z", "->*", " q", "::", " d", "::~", "e"]),
        ("qualified", "f()->a[0]::b", ["f", "()->", "a", "[", "0", "]::", "b"]),
        ("line", "if x.y is not None and z[a] > b:", ["if x.y is not None and z[a] > b:"]),
        ("line", "z[7]: a7b c", ["z[", "7", "]: a", "7", "b c"]),
        ("line", "    return a,  b\t c\n\n d", ["   ", " return a,", " ", " b", "\t", " c", "\n\n", " d"]),
        ("line", "Größe ändern. naïve: déjà vu", ["Größe ändern. naïve: déjà vu"]),
        ("line", "'self' isn't 's", ["'s", "elf' isn't '", "s"]),
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


def test_word_and_sentencepiece_leave_the_definition_alone() -> None:
    for boundary in BOUNDARIES:
        gemma = definition(tiny.sentencepiece_style("gemma", 500))
        assert widen(gemma, boundary) == gemma
    assert widen(definition_of("gpt2"), "word") == definition_of("gpt2")


def test_widening_does_not_change_its_argument() -> None:
    before = copy.deepcopy(definition_of("qwen2"))
    widen(definition_of("qwen2"), "dotted")
    assert definition_of("qwen2") == before


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        *(
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": rule}, "behavior": behavior, "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            }
            for rule, behavior in [
                (r"\p{L}|\p{N}|\s+", "Isolated"),  # letters apart
                (r"(?<=\s)\p{L}+|\p{N}|\s+", "Isolated"),  # looks back
                (GPT2, "MergedWithNext"),
            ]
        ),
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
    spec = {**definition_of("gpt2"), "pre_tokenizer": pre_tokenizer}
    with pytest.raises(TokenizerError, match=r"tokens\.boundary=word|neither byte-level"):
        widen(spec, "identifier")
    assert widen(spec, "word") == spec


# Rules as main had them spelt for the families it knew: the derived ones must cut the same places.
_RUN, _LRUN, _DOTS = r"_+(?![^\s\p{L}\p{N}])", r"_+(?![^\s\p{L}\p{N}]|[\r\n])", r"[._]+(?=\p{L})"


def spelt_out(pattern: str, boundary: str) -> str:
    dots = rf"|{_DOTS}" if boundary == "dotted" else ""
    joint = "[._]" if boundary == "dotted" else "_"
    wide = {
        r" ?\p{L}+": rf"(?: ?\p{{L}}+| ?{_RUN})(?:{_RUN}{dots}|\p{{L}}+)*",
        r"[^\r\n\p{L}\p{N}]?\p{L}+": rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+(?:{joint}\p{{L}}+)*(?:{_LRUN}{dots})?",
    }
    return "|".join(wide.get(part, part) for part in alternatives(pattern))


@settings(max_examples=300)
@given(text=texts)
def test_derived_rules_cut_as_those_spelt_out_by_hand(text: str) -> None:
    for name, boundary in product(["gpt2", "llama3", "qwen2"], ["identifier", "dotted"]):
        derived, by_hand = rule_of(name, boundary), spelt_out(RULES[name][0], boundary)
        assert regex.findall(derived, text) == regex.findall(by_hand, text), (name, boundary)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("o200k", "x = self.camelCase_id.toHTML()", ["x", " =", " self.camelCase_id.toHTML", "()"]),
        ("tekken", "self.camelCase_id", ["self.camelCase_id"]),
        ("deepseek", "f(self.attention_mask)", ["f", "(self.attention_mask", ")"]),
        ("qwen3_5", "हिन्दी_नाम.x", ["हिन्दी_नाम.x"]),
        ("cl100k", "np.array_equal", ["np.array_equal"]),
    ],
)
def test_other_families(name: str, text: str, expected: list[str]) -> None:
    pattern, spans = RULES[name]
    assert [m[0] for m in regex.finditer(widen_regex(pattern, "dotted", spans), text)] == expected


def test_tokens_across_the_joint_refuse_it_and_auto_takes_what_is_left() -> None:
    spec = copy.deepcopy(definition_of("gpt2"))
    assert widest(spec)[0] == "qualified"
    for token, left in (("x-", "dotted"), ("x.", "identifier"), ("x_", "word")):
        spec["model"]["vocab"][token] = len(spec["model"]["vocab"])
        boundary, wide, reasons = widest(spec)
        assert boundary == left and repr(token) in reasons[-1]
    assert len(reasons) == 3 and wide == spec


def with_merges(first: list[str], last: list[str]) -> dict[str, Any]:
    """Qwen's rule with merges of two characters before and after its own."""
    spec = copy.deepcopy(definition_of("qwen2"))
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for token in [*first, *last]:
        vocab.setdefault(token, len(vocab))
    own = [merge for merge in merges if "".join(merge) not in [*first, *last]]
    spec["model"]["merges"] = [*((t[:-1], t[-1]) for t in first), *own, *((t[:-1], t[-1]) for t in last)]
    return spec


@pytest.mark.parametrize(
    ("first", "last", "whole"),
    [
        (["::"], [":v"], True),  # two colons are one token before a letter can join the second
        ([":v"], ["::"], False),  # ``:v`` would win
        ([":v"], [], False),  # no token of two colons
        ([":Ã"], ["::"], True),  # the first byte of é wins, so é stays apart (see the ids), other letters do not
        (["::"], ["::v"], False),
        ([], [], True),  # nothing reaches over
    ],
)
def test_two_characters_are_a_joint_where_they_are_merged_first(first: list[str], last: list[str], whole: bool) -> None:
    """Qwen's tokens such as ``:v`` (after a space, or in ``a:v``) must not break ``::`` up before a letter."""
    spec = with_merges(first, last)
    old, wide = (Tokenizer.from_str(json.dumps({**s, "normalizer": None})) for s in (spec, widen(spec, "qualified")))
    for text in ("std::vec", "std::vec::vec a::b", "a::été", "a:vec a->vec"):
        assert wide.encode(text).ids == old.encode(text).ids, text
    pieces = [text for text, _ in wide.pre_tokenizer.pre_tokenize_str("std::vec")]
    assert pieces == (["std::vec"] if whole else ["std::", "vec"])


def test_a_token_that_begins_a_character_keeps_those_characters_apart() -> None:
    """GPT-2 has a token of a dot and the first byte of U+2000 to U+2FFF."""
    spec = copy.deepcopy(definition_of("gpt2"))
    spec["model"]["vocab"]["." + CHAR_OF_BYTE[0xE2]] = len(spec["model"]["vocab"])
    spans = spans_of(spec)
    assert spans.partial == {".": "\u2000-\u2fff"} and set(spans.pairs) <= {("l", "U")}
    rule = widen_regex(GPT2, "dotted", spans)
    assert [m[0] for m in regex.finditer(rule, "a.b a.\u2c80")] == ["a.b", " a.", "\u2c80"]


@pytest.mark.parametrize(
    ("token", "apart"),
    [
        ("x ", ["a", " b. c"]),  # a letter before a space
        (". ", ["a b.", " c"]),
        ("x.", ["a b", ". c"]),
    ],
)
def test_in_lines_no_joint_is_where_an_old_token_reaches_over(token: str, apart: list[str]) -> None:
    spec = copy.deepcopy(definition_of("gpt2"))
    spec["model"]["vocab"][token.replace(" ", "Ġ")] = len(spec["model"]["vocab"])
    pre = Tokenizer.from_str(json.dumps(widen(spec, "line"))).pre_tokenizer
    assert ["a b. c"[start:end] for _, (start, end) in pre.pre_tokenize_str("a b. c")] == apart


def test_in_lines_a_part_of_a_character_keeps_a_sign_from_other_letters_than_those_of_ascii() -> None:
    spec = copy.deepcopy(definition_of("gpt2"))
    spec["model"]["vocab"]["(" + CHAR_OF_BYTE[0xC3]] = len(spec["model"]["vocab"])
    pre = Tokenizer.from_str(json.dumps(widen(spec, "line"))).pre_tokenizer
    assert [part for part, _ in pre.pre_tokenize_str("f(a f[é f(é")] == ["f(aĠf[Ã©Ġf(", "Ã©"]


def test_a_line_is_refused_where_old_tokens_are_superwords_already_or_metaspace_cuts() -> None:
    spec = copy.deepcopy(definition_of("gpt2"))
    for left in [*string.punctuation, "x"]:
        spec["model"]["vocab"][left + "Ġ"] = len(spec["model"]["vocab"])
    with pytest.raises(TokenizerError, match=r"boundary=line: old tokens reach over the space.*boundary=auto"):
        widen(spec, "line")
    gemma = definition(tiny.sentencepiece_style("gemma", 500))
    assert widen(gemma, "line") == gemma
    gemma["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": True}
    with pytest.raises(TokenizerError, match=r"boundary=line.*Metaspace with split.*boundary=auto"):
        widen(gemma, "line")
    assert widen(gemma, "dotted") == gemma


@pytest.mark.parametrize(("part", "whole"), [(None, ["oЁaBiỆ"]), ("iá", ["o", "ЁaBi", "Ệ"])])
def test_a_token_that_ends_within_a_capital_keeps_capitals_beyond_ascii_apart(part: str, whole: list[str]) -> None:
    """o200k has tokens of a letter and the first byte of the next, which its merges would make before the capital."""
    spec = {"added_tokens": [], "model": {"vocab": {"a": 0, "B": 1, **({part: 2} if part else {})}, "merges": []}}
    rule = widen_regex(O200K, "identifier", spans_of(spec))
    assert [match[0] for match in regex.finditer(rule, "oЁaBiỆ")] == whole


def test_auto_stays_inside_names_and_a_line_is_kept_when_extended_again() -> None:
    assert widest(definition_of("gpt2"))[0] == "qualified"
    once = widen(definition_of("gpt2"), "line")
    assert widen(once, "line") == widen(once, "dotted") == widest(once)[1] == once


def test_words_that_are_only_looked_up_keep_their_own_cut() -> None:
    """Llama-3's `` milyon``: in the vocabulary, but its merges make other tokens of it."""
    spec = copy.deepcopy(definition_of("llama3"))
    vocab = spec["model"]["vocab"]
    assert looked_up(spec) == []
    vocab["Ġmqzjyon"] = len(vocab)
    vocab["mqzjyon"] = len(vocab)
    spec["model"]["ignore_merges"] = True
    assert looked_up(spec) == [" mqzjyon", "mqzjyon"]
    wide = {boundary: Tokenizer.from_str(json.dumps(widen(spec, boundary))) for boundary in ("word", *WIDER)}
    for text in (
        "x mqzjyon\u0301 y",
        "_mqzjyon\u0301_x",
        "if mqzjyon is not mqzjyon: (mqzjyon)",
        " mqzjyon_id",
        "mqzjyon::a->mqzjyon\\mqzjyon",
        "x mqzjyon.id",
        "a.mqzjyon_b mqzjyons_x",
        "_mqzjyon",
    ):
        ids = {boundary: tokenizer.encode(text).ids for boundary, tokenizer in wide.items()}
        assert all(ids["word"] == found for found in ids.values()), text
    assert vocab["Ġmqzjyon"] in wide["dotted"].encode(" mqzjyon_id").ids


def test_in_lines_signs_that_are_only_looked_up_keep_their_own_cut() -> None:
    spec = copy.deepcopy(definition_of("llama3"))
    vocab = spec["model"]["vocab"]
    assert "%%%" not in vocab
    vocab["%%%"] = len(vocab)
    spec["model"]["ignore_merges"] = True
    old, wide = (Tokenizer.from_str(json.dumps(widen(spec, boundary))) for boundary in ("word", "line"))
    for text in ("a%%% b", "a %%%b", "%%%", "%%%%", "x((%%%"):
        assert wide.encode(text).ids == old.encode(text).ids, text
    assert vocab["%%%"] in wide.encode("a%%% b").ids


@settings(max_examples=200)
@given(words=st.lists(st.text("ab_ .é", min_size=1, max_size=5), min_size=1, max_size=8), text=st.text("ab_ .é"))
def test_any_of_matches_the_words(words: list[str], text: str) -> None:
    assert bool(regex.fullmatch(any_of(words), text)) == (text in words)
    assert all(regex.fullmatch(any_of(words), word) for word in words)


def test_what_was_widened_before_stays() -> None:
    """An extended tokenizer is extended again: its own tokens span the joints that its rule has already."""
    once = widen(definition_of("llama3"), "identifier")
    once["model"] = {**once["model"], "vocab": {**once["model"]["vocab"], "x_y": len(once["model"]["vocab"])}}
    assert widen(once, "identifier") == once
    assert widest(once)[0] == "identifier"
    with pytest.raises(TokenizerError, match=r"boundary=identifier, which leaves"):
        widen(once, "dotted")


def test_alternatives_respect_groups_classes_and_escapes() -> None:
    assert alternatives(r"(?:a|b)|[|)]|\||c") == ["(?:a|b)", "[|)]", r"\|", "c"]


@pytest.mark.parametrize(
    ("boundary", "first", "later", "neither"),
    [
        ("word", ["▁foo", "foo", "▁"], ["foo", "é"], ["_", "foo1", "▁▁foo", "<0x41>", "."]),
        ("identifier", ["▁_foo", "foo_", "_"], ["_foo", "__"], ["foo.", ".", "2", "<0x41>"]),
        ("dotted", ["self.", "▁self"], [".", "._x"], ["<0x41>", "1", "(", "::", "->"]),
        ("qualified", ["std::", "▁self"], ["::", "->", "\\", "->_", "."], ["<0x41>", ":", "-", ">", "▁->"]),
        ("line", ["▁"], ["foo", "▁self", "):", "▁->", "é"], ["<0x41>", "1", "▁2", "▁▁", "▁▁foo", "\n", "a▁b"]),
    ],
)
def test_shapes(boundary: str, first: list[str], later: list[str], neither: list[str]) -> None:
    starts, continues = shape(boundary)
    assert all(starts.fullmatch(token) for token in first)
    assert all(continues.fullmatch(token) for token in later)
    assert not any(starts.fullmatch(token) or continues.fullmatch(token) for token in neither)
    if boundary != "line":
        assert not any(continues.fullmatch(token) for token in first if token.startswith("▁"))


def test_sentencepiece_pretokenizers_that_cut_unknown_places_are_refused() -> None:
    gemma = definition(tiny.sentencepiece_style("gemma", 500))
    check_pretokenizer(gemma)
    with pytest.raises(TokenizerError, match="Punctuation"):
        check_pretokenizer({**gemma, "pre_tokenizer": {"type": "Punctuation", "behavior": "Isolated"}})
