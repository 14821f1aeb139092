"""Near-duplicates, against plain Python sets of word runs."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kldistill.corpus.near_duplicates import NearDuplicates, jaccard, rows_per_band, shingles, signature


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[0-9A-Za-z_\x80-\U0010ffff]+", text)
    width = min(5, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}


def plain_jaccard(first: str, second: str) -> float:
    one, two = plain_shingles(first), plain_shingles(second)
    return len(one & two) / len(one | two)


def sentence(rng: random.Random, words: int, vocabulary: int = 500) -> list[str]:
    return [f"w{rng.randrange(vocabulary)}" for _ in range(words)]


words = st.lists(st.sampled_from(["a", "b", "ab", "ba", "x_1", "é", "日本"]), min_size=1, max_size=40)
gaps = st.sampled_from([" ", "\n", " = ", "(", ").", "  "])


@settings(max_examples=200)
@given(words, words, gaps, gaps)
def test_jaccard_is_that_of_runs_of_five_words(first: list[str], second: list[str], gap: str, other: str):
    one, two = gap.join(first), other.join(second)
    assert len(shingles(one)) == len(plain_shingles(one))
    assert jaccard(shingles(one), shingles(two)) == pytest.approx(plain_jaccard(one, two))


def test_layout_and_punctuation_do_not_count():
    assert np.array_equal(shingles("def f(a, b):\n    return a + b"), shingles("def f ( a,b ): return a - b"))


def test_texts_without_words_are_told_apart_by_their_bytes():
    assert jaccard(shingles("((++))--!!"), shingles("((++))--!!")) == 1.0
    assert jaccard(shingles("((++))--!!"), shingles("[[]]??;;,,")) == 0.0
    assert jaccard(shingles(""), shingles("")) == 1.0


def test_the_signature_estimates_the_similarity():
    rng = random.Random(1)
    base = sentence(rng, 4_000)
    errors = []
    for changed in (0, 50, 100, 300, 1_000):
        other = list(base)
        for place in rng.sample(range(len(base)), changed):
            other[place] = f"n{place}"
        one, two = shingles(" ".join(base)), shingles(" ".join(other))
        errors.append(float((signature(one) == signature(two)).mean()) - jaccard(one, two))
    assert errors[0] == 0
    assert max(map(abs, errors)) < 0.2  # Four and a half standard deviations.
    assert abs(sum(errors) / len(errors)) < 0.08


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_bands_overlook_almost_nothing_at_the_threshold(threshold: float):
    rows = rows_per_band(threshold)
    assert 128 % rows == 0
    assert (1 - threshold**rows) ** (128 // rows) <= 1e-6


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_kept_documents_are_what_the_greedy_definition_keeps(threshold: float):
    rng = random.Random(2)
    texts: list[str] = []
    for _ in range(25):
        base = sentence(rng, rng.randrange(60, 400))
        for _ in range(rng.randrange(1, 7)):
            copy = list(base)
            for place in rng.sample(range(len(copy)), rng.randrange(0, len(copy) // rng.choice((8, 30)))):
                copy[place] = f"n{rng.randrange(10_000)}"
            texts.append(" ".join(copy))
    rng.shuffle(texts)
    kept: list[str] = []
    for text in texts:
        if all(plain_jaccard(text, other) < threshold for other in kept):
            kept.append(text)
    known = NearDuplicates(threshold)
    assert [text for text in texts if known.add(text)] == kept
    assert 25 <= len(kept) < len(texts)


def test_identical_short_texts_are_duplicates_at_threshold_one():
    known = NearDuplicates(1.0)
    assert known.add("one two")
    assert not known.add("one two")
    assert known.add("one two three")
    assert known.add("one(two, three)"), "another text"
    assert known.add("one two\nthree"), "another layout"


def test_a_copy_with_one_word_changed_is_no_duplicate_at_threshold_one():
    text = " ".join(sentence(random.Random(3), 3_000, 100_000))
    known = NearDuplicates(1.0)
    assert known.add(text)
    assert known.add(text.replace("w1", "w2", 1))
