"""Mutations: small, valid, of every kind, and nothing but the mutated spot changes."""

import ast
import difflib

import pytest

from kldistill.evaluation.suites.mutants import Mutant, mutants
from tests.helpers.programs import passes

CODE = '''\
def f(items, n, flag=False):
    """Docstring with 1 + 1 and not x."""
    total = 0  # a comment with a + b < c
    for index in range(n):
        if items[index] <= n and not flag:
            total += max(items[index], n - index)
    while total > 10 * n:
        total -= 1
    if flag or total == 3:
        return "yes"
    return total
'''


def of_kind(code: str, kind: str, before: str = "") -> list[str]:
    return [mutant.text for mutant in mutants(before, code, "0") if mutant.kind == kind]


def lines(code: str) -> set[str]:
    """Changed lines of all mutants of a code."""
    return {
        line[2:].strip()
        for mutant in mutants("", code, "0")
        for line in difflib.ndiff(code.splitlines(), mutant.text.splitlines())
        if line.startswith("+ ")
    }


def test_every_mutant_is_valid_new_and_one_edit_away() -> None:
    found = mutants("", CODE, "0")
    assert len({mutant.text for mutant in found} | {CODE}) == len(found) + 1
    for mutant in found:
        ast.parse(mutant.text)
        changed = [line for line in difflib.ndiff(CODE.splitlines(), mutant.text.splitlines()) if line[0] in "+-"]
        assert [line[0] for line in changed] == ["-", "+"], mutant
    assert {mutant.kind for mutant in found} == {
        *("operator", "comparison", "connective", "negation", "constant"),
        *("off_by_one", "name", "function", "argument", "shape"),
    }


def test_comments_and_docstrings_stay() -> None:
    for mutant in mutants("", CODE, "0"):
        assert '"""Docstring with 1 + 1 and not x."""' in mutant.text
        assert "# a comment with a + b < c" in mutant.text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("y = a + b", {"y = a - b", "y = a * b"}),
        ("y = (a)  +(b)", {"y = (a)  -(b)", "y = (a)  *(b)"}),
        ("y = a // b", {"y = a * b", "y = a % b", "y = b // a"}),
        ("y = (a + b) % c", {"y = (a - b) % c", "y = (a * b) % c", "y = (a + b) // c", "y = (a + b) * c"}),
        ("y += x", {"y -= x", "y *= x"}),
        ("y = a < b >= c", {"y = a <= b >= c", "y = a > b >= c", "y = a < b > c", "y = a < b <= c"}),
        ("y = a not  in b", {"y = a in b"}),
        ("y = a is not b", {"y = a is b"}),
        ("y = a and b or c", {"y = a or b or c", "y = a and b and c"}),
        ("y = not a", {"y = a"}),
        ("y = x[::-a]", {"y = x[::a]"}),
        ("if a: pass", {"if not a: pass"}),
        ("y = [a for a in b if a.c]", {"y = [a for a in b if not a.c]"}),
        ("y = 0", {"y = 1"}),
        ("y = 5", {"y = 6", "y = 4"}),
        ("y = 0.5", {"y = 1.5", "y = -0.5"}),
        ("y = True", {"y = False"}),
        ("y = 'aB'", {"y = 'Ab'", "y = 'B'"}),
        ("y = ''", {"y = ' '"}),
        (r"y = r'\w{4}'", {r"y = r'\w{5}'"}),
        ("y = 0x10", set()),
        (
            "for i in range(n): pass",
            {"for i in range(n + 1): pass", "for i in range(n - 1): pass"} | {"for i in n: pass"},
        ),
        ("y = f(a, b, c)", {"y = f(b, a, c)", "y = f(a, c, b)"}),
        ("y = f(*a, b)", set()),
        ("y = a.min(b, c)", {"y = a.max(b, c)"}),
        ("import a as b", set()),
        ("y = f'{a + b}'", set()),
        ("y: int = a", set()),
    ],
)
def test_mutations_of(code: str, expected: set[str]) -> None:
    assert lines(code) == expected


def test_the_authors_way_of_writing_sums() -> None:
    assert "for i in range(n+1): y = a+b" in lines("for i in range(n): y = a+b")
    assert "for i in range(n + 1): y = a + b" in lines("for i in range(n): y = a + b")


def test_names_are_of_the_same_function_and_known_before() -> None:
    code = "def f(a):\n    b = a\n    c = a\n    return b\n\ndef g(d):\n    return d\n"
    texts = of_kind(code, "name")
    changed = {text.splitlines()[index] for text in texts for index in range(7)} - set(code.splitlines())
    assert changed == {"    c = b", "    return a", "    return c"}


def test_places_count_bytes() -> None:
    code = "s = 'äöü€😀'; y = a + b"
    assert {"s = 'äöü€😀'; y = a - b", "s = 'äöü€😀'; y = a * b"} <= lines(code)


def test_an_operator_in_a_comment_is_none() -> None:
    code = "y = (a  # +\n     + b)"
    assert set(of_kind(code, "operator")) == {"y = (a  # +\n     - b)", "y = (a  # +\n     * b)"}


def test_what_stands_before_is_not_mutated() -> None:
    before = "def f(a, b=1):\n    x = a + b\n"
    found = mutants(before, "    return x * a\n", "0")
    assert found
    for mutant in found:
        ast.parse(before + mutant.text)
        assert mutant.text.startswith("    return ")
    assert "    return x * b\n" in [mutant.text for mutant in found]


def test_loops_that_may_not_end_come_last() -> None:
    found = mutants("", CODE, "0")
    risky = [mutant.risky for mutant in found]
    assert risky == sorted(risky) and 0 < sum(risky) < len(risky)
    loop = "while total > 10 * n:\n        total -= 1"
    assert all((loop in mutant.text) != mutant.risky for mutant in found)


def test_kinds_take_turns() -> None:
    kinds = [mutant.kind for mutant in mutants("", CODE, "0") if not mutant.risky]
    n = len(set(kinds) - {"shape"})
    assert len(set(kinds[:n])) == n
    # Those that show by their length come after the others.
    assert "shape" not in kinds[: -kinds.count("shape")]


def test_a_slice_more_or_a_call_less() -> None:
    shapes = of_kind("def f(x):\n    return sorted(x)\n", "shape")
    assert {text.splitlines()[1].strip() for text in shapes} == {
        "return sorted(x)[1:]",
        "return sorted(x)[:-1]",
        "return x",
    }


def test_the_seed_decides() -> None:
    assert mutants("", CODE, "0") == mutants("", CODE, "0")
    assert mutants("", CODE, "0") != mutants("", CODE, "1")
    assert set(mutants("", CODE, "0")) == set(mutants("", CODE, "1"))


def test_no_python_has_no_mutants() -> None:
    assert mutants("", "def f(:\n", "0") == []
    assert mutants("", "print 'a'", "0") == []
    assert mutants("", "\0", "0") == []


def test_most_mutants_of_a_tested_function_fail() -> None:
    """What they are for: a solution's mutants are wrong, and tests say so."""
    code = (
        "def f(x):\n    y = 0\n    for i in range(len(x)):\n        if x[i] > 2:\n            y += x[i]\n    return y\n"
    )
    tests = "assert f([1, 2, 3, 4]) == 7\nassert f([]) == 0\nassert f([5]) == 5\n"
    found: list[Mutant] = mutants("", code, "0")
    verdicts = passes([code + tests, *(mutant.text + tests for mutant in found)])
    assert verdicts[0]
    assert sum(verdicts[1:]) <= len(found) // 5
