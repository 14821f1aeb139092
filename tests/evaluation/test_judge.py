"""What answers are worth, against closed forms and values known from elsewhere."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kldistill.evaluation.judge import (
    edit_similarity,
    judge_choice,
    judge_text,
    pass_at_k,
    program_of,
)
from kldistill.evaluation.suites.task import Task

LINE = Task(id="a", kind="text", prompt="", reference="    return self.config(x, y)")


def test_a_program_is_what_stands_around_the_completion() -> None:
    task = Task(id="a", kind="program", prompt="def f():\n", before="def f():\n", after="\nassert f() == 1\n")
    assert program_of(task, "    return 1") == "def f():\n    return 1\nassert f() == 1\n"


BEGUN = Task(id="a", kind="program", prompt="", before="def f(x):\n", after="\nassert f(1) == 2\n")


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return x + 1\n\ny = f(", "    return x + 1\n\n"),
        ("    return x + 1\n@decor(", "    return x + 1\n"),
        ("    return x + 1\n\nprint('half a li", "    return x + 1\n\n"),
        ("    y = [\n        x,\n    ]\n    return sum(\n        y", "    y = [\n        x,\n    ]\n"),
        ("    return x + 1", "    return x + 1"),
        ("    '\xe9\u2028'\n    return (", "    '\xe9\u2028'\n"),
        ("return x", "return x"),  # nothing parses, so nothing is mended
        ("", ""),
    ],
)
def test_an_answer_that_ran_into_its_budget_goes_back_to_its_last_whole_statement(completion: str, kept: str) -> None:
    assert program_of(BEGUN, completion, ended="budget") == program_of(BEGUN, kept)
    for ended in ("stop", "eos"):
        assert program_of(BEGUN, completion, ended) == BEGUN.before + completion + BEGUN.after


def test_pass_at_k_in_closed_form() -> None:
    assert [pass_at_k(5, c, 1) for c in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # only one of the six pairs fails
    assert pass_at_k(10, 1, 10) == 1.0
    assert pass_at_k(10, 0, 10) == 0.0
    assert pass_at_k(10, 4, 7) == 1.0  # seven of ten always hold one of the four
    assert pass_at_k(200, 3, 100) == pytest.approx(1 - math.comb(197, 100) / math.comb(200, 100), rel=1e-12)
    assert 0 < pass_at_k(100_000, 1, 1) == pytest.approx(1e-5, rel=1e-9)


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of n tosses, its mean is 1 - (1 - p)^k exactly."""
    n, p = 6, 0.3
    for k in range(1, n + 1):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_pass() -> None:
    for n, c, k in [(5, 2, 3), (6, 1, 2), (7, 3, 3)]:
        subsets = list(itertools.combinations(range(n), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(min(subset) < c for subset in subsets) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_pass_at_k_of_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(AssertionError, match=f"pass@{k}"):
        pass_at_k(n, c, k)


def test_edit_similarity_of_known_pairs() -> None:
    # From the documentation of python-Levenshtein, whose ratio fuzzywuzzy rounds.
    assert edit_similarity("Hello world!", "Holly grail!") == pytest.approx(0.583333, abs=1e-6)
    assert edit_similarity("Brian", "Jesus") == 0.0
    # From the README of fuzzywuzzy: 97 of 100.
    assert round(100 * edit_similarity("this is a test", "this is a test!")) == 97
    assert edit_similarity("", "") == 1.0
    assert edit_similarity("", "a") == 0.0
    assert edit_similarity("ab", "ba") == 0.5  # difflib says the same; a substitution counts two


def longest(left: str, right: str) -> int:
    """The textbook's table."""
    row = [0] * (len(right) + 1)
    for a in left:
        corner = 0
        for at, b in enumerate(right, 1):
            corner, row[at] = row[at], corner + 1 if a == b else max(row[at], row[at - 1])
    return row[-1]


@given(st.text("abcé ", max_size=40), st.text("abcé ", max_size=40))
def test_edit_similarity_is_twice_the_longest_common_subsequence(left: str, right: str) -> None:
    total = len(left) + len(right)
    assert edit_similarity(left, right) == pytest.approx(2 * longest(left, right) / total if total else 1.0)


def test_edit_similarity_of_long_texts() -> None:
    left, right = "abcab" * 60, "bca" * 90
    assert edit_similarity(left, right) == pytest.approx(2 * longest(left, right) / (len(left) + len(right)))


def test_a_line_matches_but_for_white_space() -> None:
    assert judge_text(LINE, "return   self.config(x, y)  ") == (True, pytest.approx(2 * 24 / 50))
    assert judge_text(LINE, LINE.reference) == (True, 1.0)
    assert judge_text(LINE, "return self.config(x,y)").exact_match is False  # as in CodeXGLUE: words are compared
    assert judge_text(LINE, "") == (False, 0.0)
    assert judge_text(LINE, "return self.config(x, z)") == (False, pytest.approx(23 / 24))


def test_the_canonical_option_must_be_strictly_ahead() -> None:
    assert judge_choice([-1.0, -2.0, -3.0, -1.5]) is True
    assert judge_choice([-2.0, -1.0, -3.0, -4.0]) is False
    assert judge_choice([-1.0, -1.0, -3.0, -4.0]) is False
    assert judge_choice([float("nan"), -1.0]) is False
    assert judge_choice([-1.0, float("nan")]) is False
