"""Groups of documents, and text of held-out documents that stands in train, against plain Python sets."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kldistill.corpus.documents import Document
from kldistill.corpus.leakage import Seen, groups_of


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    tokens = re.findall(r"[0-9A-Za-z_\x80-\U0010ffff]+|[!-/:-@\[-^`{-~]", text)
    width = min(13, len(tokens))
    return {tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1)}


def code(rng: random.Random, lines: int) -> str:
    return "".join(f"value_{rng.randrange(9_999)} = call_{rng.randrange(9_999)}(other)\n" for _ in range(lines))


pieces = st.lists(
    st.sampled_from(["a", "b", "ab", "x_1", "é", "(", ")", ".", " ", "\n", "=="]), min_size=14, max_size=80
)


@settings(max_examples=200)
@given(pieces, pieces)
def test_containment_is_the_share_of_shingles_that_train_has(first: list[str], second: list[str]):
    mine, train = "x" + "".join(first), "x" + "".join(second)
    known = plain_shingles(mine) & plain_shingles(train)
    seen = Seen([Document("train", train)])
    assert seen.containment(mine) == pytest.approx(len(known) / len(plain_shingles(mine)))


def test_a_small_file_inside_a_larger_one_is_contained_in_it():
    rng = random.Random(0)
    part = code(rng, 20)
    seen = Seen([Document("large", code(rng, 400) + part + code(rng, 400))])
    assert seen.containment(part) == 1.0
    assert seen.containment(code(rng, 20)) == 0.0
    half = seen.containment(part + code(rng, 20))
    assert half == pytest.approx(0.5, abs=0.05)


def test_what_is_left_counts_shingles_and_long_lines():
    rng = random.Random(1)
    train, new = code(rng, 50), code(rng, 30)
    seen = Seen([Document("train", train)])
    lines = train.splitlines(keepends=True)
    held_out = [Document("one", "".join(lines[:10])), Document("two", new + "    " + lines[20] + "return x\n")]
    left = seen.copied(held_out)
    assert left.lines == 11 / 41  # the short line does not count
    expected = [plain_shingles(document.text) for document in held_out]
    known = sum(len(mine & plain_shingles(train)) for mine in expected)
    assert left.shingles == pytest.approx(known / sum(map(len, expected)))
    assert seen.copied([]) == Seen([]).copied([]) == (left := Seen([]).copied(held_out)) and left.shingles == 0


def test_documents_of_a_folder_are_a_group_unless_it_is_too_large():
    sizes = {f"lib/part{n // 4}/file{n % 4}.py": 100 for n in range(100)} | {"setup.py": 50, "README.md": 40}
    groups = groups_of(sizes, largest=0.05)
    assert groups["lib/part3/file0.py"] == groups["lib/part3/file3.py"] == "lib/part3"
    assert groups["setup.py"] == "setup.py" and groups["README.md"] == "README.md"
    sizes |= {f"lib/part3/more{n}.py": 100 for n in range(4)}
    groups = groups_of(sizes, largest=0.05)
    assert groups["lib/part3/file0.py"] == "lib/part3/file0.py"
    assert groups["lib/part4/file0.py"] == "lib/part4"


def test_a_folder_is_not_the_folder_above_it():
    groups = groups_of({f"a/{name}": 1 for name in ("x.py", "b/y.py", "b/z.py")}, largest=1.0)
    assert groups == {"a/x.py": "a", "a/b/y.py": "a/b", "a/b/z.py": "a/b"}


def test_what_stands_in_many_documents_makes_none_a_copy():
    """Every file of a Java or C# project begins with the same licence, and small ones have little more."""
    rng = random.Random(3)
    licence = "".join(
        f"// word{n} of the licence that every file of the project carries, line {n}\n" for n in range(15)
    )
    train = [Document(f"{n}.java", licence + code(rng, 20)) for n in range(40)]
    seen, new = Seen(train), code(rng, 20)
    assert seen.containment(licence + new) == 0.0
    assert seen.containment(licence) == 1.0, "nothing of its own"
    half = licence + "".join(train[7].text.splitlines(keepends=True)[-10:]) + code(rng, 10)
    assert seen.containment(half) == pytest.approx(0.45, abs=0.1), "what one document has is a copy all the same"
    assert seen.copied([Document("new", licence + new)]).shingles > 0.3, "the figure is of all text"
    few = Seen(train[:4])
    assert few.containment(licence + new) > 0.3, "four documents are not many"
