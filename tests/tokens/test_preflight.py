"""Preflight finds each kind of fault when it is there, and none when it is not."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from kldistill.model import tiny
from kldistill.model.load import old_size
from kldistill.runtime.errors import TokenizerError
from kldistill.tokens import preflight
from kldistill.tokens.artifact import NewToken
from kldistill.tokens.boundaries import widen
from kldistill.tokens.definition import definition, token_bytes
from kldistill.tokens.encoding import reader
from kldistill.tokens.examiner import Examiner, changed_words, produces, unreachable
from kldistill.tokens.folder import extend
from kldistill.tokens.joints import GPT2

TOKENIZER = tiny.byte_level("gpt2", 420)
SPEC, SIZE, TABLE = definition(TOKENIZER), old_size(TOKENIZER), token_bytes(TOKENIZER)
VOCAB = SPEC["model"]["vocab"]


def examine(merges: list[tuple[str, str]], texts: list[str], spec: dict = SPEC, counts: int = 100):
    """Findings for new tokens made by ``merges``."""
    entries = [left + right for left, right in merges]
    pieces = {name: [index] for name, index in VOCAB.items()}
    for left, right in merges:
        pieces[left + right] = pieces[left] + pieces[right]
    new_tokens = [
        NewToken(SIZE + i, TOKENIZER.backend_tokenizer.decode(pieces[name]), name, pieces[name], counts)
        for i, name in enumerate(entries)
    ]
    new = Tokenizer.from_str(json.dumps(extend(spec, SIZE, entries, merges)))
    examiner = Examiner(TOKENIZER.backend_tokenizer, new, new_tokens, SIZE, TABLE)
    examiner.read("test", texts)
    return examiner, new_tokens


def test_clean() -> None:
    text = "qz qzx qz é"
    examiner, new_tokens = examine([("q", "z"), ("Ġ", "qz")], [text, ""])
    found = examiner.findings
    assert (found.violations, found.mismatches, found.unaligned, found.contested, found.broken) == (0,) * 5
    figures = preflight.figures(examiner, new_tokens)
    old = len(TOKENIZER.backend_tokenizer.encode(text).ids)
    # "qz" x 3, of which two follow a space and join it.
    assert figures["tokens/saved"] == pytest.approx(5 / old)
    assert figures["tokens/per_1000_bytes/old"] == pytest.approx(1000 * old / len(text.encode()))
    quartiles = [figures[f"tokens/saved/{name}_quartile"] for name in ("lower", "upper")]
    assert figures["tokens/documents"] == 1 and quartiles == pytest.approx([5 / old] * 2), "the empty one has none"
    assert found.uses.tolist() == [1, 2]
    pieces = TOKENIZER.backend_tokenizer.encode("日").ids
    assert "".join(map(examiner.text_of, pieces)) == r"\xe6\x97\xa5", "not three times the mark of what is no text"
    assert [examiner.text_of(token.id) for token in new_tokens] == ["qz", " qz"]
    assert figures["tokens/unreachable"] == 0
    preflight.check(figures)


def test_refinement_violations_are_counted() -> None:
    """A rule that lets letters and spaces join makes tokens that begin or end inside old ones."""
    careless = {**SPEC, "pre_tokenizer": {**SPEC["pre_tokenizer"]}}
    careless["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": GPT2[1:]}, "behavior": "Isolated", "invert": False},
            {"type": "Split", "pattern": {"String": "el"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    text = "self self"
    examiner, new_tokens = examine([("q", "z")], [text], careless)
    old, new = (t.encode(text) for t in (examiner.old, examiner.new))
    ends = {end for _, end in old.offsets}
    assert examiner.findings.violations == sum(end not in ends for _, end in new.offsets) > 0
    figures = preflight.figures(examiner, new_tokens)
    with pytest.raises(TokenizerError, match=r"whole old tokens.*tokens\.boundary"):
        preflight.check(figures)


def test_other_pieces_between_common_boundaries_are_counted() -> None:
    """The claimed pieces of a token are not what the old tokenizer makes there."""
    examiner, new_tokens = examine([("q", "z")], [])
    wrong = [new_tokens[0]._replace(pieces=[VOCAB["q"], VOCAB["x"]])]
    examiner = Examiner(examiner.old, examiner.new, wrong, SIZE, TABLE)
    examiner.read("test", ["qz qx"])
    assert (examiner.findings.violations, examiner.findings.mismatches) == (0, 1)


def test_contested_places() -> None:
    """With qz before zx, ``qzx`` becomes qz|x; with zx first it becomes q|zx although qz would have fitted."""
    assert examine([("q", "z"), ("z", "x")], ["qzx qz zx"])[0].findings.contested == 0
    examiner, new_tokens = examine([("z", "x"), ("q", "z")], ["qzx qz zx"])
    assert examiner.findings.contested == 1
    assert preflight.overlapping(new_tokens) == 1


def test_broken_round_trip_is_refused() -> None:
    examiner, new_tokens = examine([("q", "z")], [])
    broken = json.loads(examiner.new.to_str())
    broken["decoder"] = None
    examiner = Examiner(examiner.old, Tokenizer.from_str(json.dumps(broken)), new_tokens, SIZE, TABLE)
    examiner.read("test", ["a qz", "", "a"])
    figures = preflight.figures(examiner, new_tokens)
    assert figures["tokens/broken_documents"] == 1
    with pytest.raises(TokenizerError, match="1 held-out documents decode"):
        preflight.check(figures)


def test_unreachable() -> None:
    """``qz`` is taken by ``Xq`` in its only place, but its own string makes it; ``zq`` has no merge at all."""
    examiner, new_tokens = examine([("X", "q"), ("q", "z")], ["Xqz"], counts=0)
    assert unreachable(examiner.new, new_tokens, examiner.findings.uses) == []
    ghost = NewToken(SIZE + 2, "zq", "zq", [VOCAB["z"], VOCAB["q"]], 0)
    assert unreachable(examiner.new, [*new_tokens, ghost], np.array([1, 0, 0])) == [ghost]
    figures = {**preflight.figures(examiner, new_tokens), "tokens/unreachable": 2}
    with pytest.raises(TokenizerError, match="No text produces"):
        preflight.check(figures)


def test_a_string_that_only_a_bracket_or_a_line_break_frees_is_reachable() -> None:
    """Llama-2 puts a space before every text, so ``qz`` never stands alone in it."""
    tokenizer = tiny.sentencepiece_style("llama2", 520)
    spec, size = definition(tokenizer), old_size(tokenizer)
    model = spec["model"]
    first = {**model, "vocab": {**model["vocab"], "▁q": size}, "merges": [("▁", "q"), *model["merges"]]}
    new = reader(extend({**spec, "model": first}, size + 1, ["qz"], [("q", "z")]))
    for text in ("qz", " qz"):
        assert size + 1 not in new.encode(text, add_special_tokens=False).ids
    assert produces(new, "qz", size + 1)


def test_miscounted_tokens_are_refused() -> None:
    examiner, new_tokens = examine([("q", "z")], ["qz qz"])
    examiner.findings.miscounted = 1
    with pytest.raises(TokenizerError, match="1 new tokens occur in the train text less often"):
        preflight.check(preflight.figures(examiner, new_tokens))


def test_old_words_that_fall_apart_inside_a_wider_word_are_found() -> None:
    """A word that is only looked up whole, as `` milyon`` of Llama-3, under a rule that glues it all the same."""
    spec = definition(tiny.byte_level("llama3", 420))
    spec["model"] = {**spec["model"], "ignore_merges": True, "vocab": {**spec["model"]["vocab"], "Ġmqzjyon": 420}}
    rule = widen({**spec, "model": {**spec["model"], "ignore_merges": False}}, "identifier")["pre_tokenizer"]
    old, careless = reader(spec), reader({**spec, "pre_tokenizer": rule})
    assert changed_words(old, careless, [], [" mqzjyon", " self", "def"]) == [" mqzjyon"]
    assert changed_words(old, reader(widen(spec, "identifier")), [], [" mqzjyon", " self"]) == []
    figures = preflight.figures(*examine([("q", "z")], ["qz"]))
    with pytest.raises(TokenizerError, match="fall apart inside a wider word"):
        preflight.check({**figures, "tokens/old_words_changed": 100})


def test_prefix_closed_share() -> None:
    def token(*pieces: int) -> NewToken:
        return NewToken(0, "", "", list(pieces), 0)

    assert preflight.prefix_closed([token(1, 2), token(1, 2, 3), token(4, 5, 6), token(4, 5, 6, 7)]) == 0.5
    assert preflight.prefix_closed([token()]) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tokens/refinement_violations", 1, "whole old tokens"),
        ("tokens/old_words_changed", 1, "fall apart inside a wider word"),
        ("tokens/unaligned_documents", 1, "not compared"),
        ("tokens/unreachable", 1, "never produced"),
        ("tokens/few_uses", 40, "fewer than 20 times"),
        ("tokens/unused_held_out", 60, "never occur in held-out"),
        ("tokens/overlaps", 500, "longer token would have fitted"),
        ("tokens/saved", 0.001, "Only 0.1%"),
        ("tokens/documents", 2, "only 2 documents: what is saved on other text may be far from this"),
        ("tokens/documents", 1, "only 1 document: "),
        ("tokens/saved/lower_quartile", 0.12, "10.0% of all held-out text, but 12.0% to 15.0%"),
    ],
)
def test_warnings(name: str, value: float, said: str) -> None:
    fine = {
        "tokens/old_size": 1_000,
        "tokens/miscounted": 0,
        "tokens/old_words_changed": 0,
        "tokens/added": 100,
        "tokens/boundaries": 10_000,
        "tokens/saved": 0.1,
        "tokens/saved/lower_quartile": 0.0,
        "tokens/saved/upper_quartile": 0.15,
        "tokens/documents": 20,
        "tokens/refinement_violations": 0,
        "tokens/piece_mismatches": 0,
        "tokens/unaligned_documents": 0,
        "tokens/unreachable": 0,
        "tokens/few_uses": 5,
        "tokens/unused_held_out": 5,
        "tokens/overlaps": 10,
        "tokens/broken_documents": 0,
    }
    assert preflight.warnings(fine) == []
    (warning,) = preflight.warnings({**fine, name: value})
    assert said in " ".join(warning.split())
    preflight.check({**fine, name: value})


def test_reports_hold_every_figure_and_token() -> None:
    examiner, new_tokens = examine([("q", "z"), ("Ġ", "qz")], ["qz qz"])
    figures, uses = preflight.figures(examiner, new_tokens), examiner.findings.uses
    content = json.loads(preflight.as_json(figures, new_tokens, uses))
    assert content["figures"] == figures
    assert [(t["string"], t["held_out"]) for t in content["tokens"]] == [("qz", 1), (" qz", 1)]
    text = preflight.as_text(figures, new_tokens, uses)
    assert all(name in text for name in figures) and "' qz'" in text
    assert all(warning in text for warning in preflight.warnings(figures))
