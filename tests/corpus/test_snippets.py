"""Documents cut at lines, the draw by hash, and ids after the first token."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kldistill.corpus.documents import Document
from kldistill.corpus.snippets import Snippet, cover, cut, draw, fit
from kldistill.model.load import load_original_tokenizer
from kldistill.runtime.errors import CorpusError, ModelError
from kldistill.tokens.encoding import encode, first_token
from tests.helpers.artifacts import MakeModel


@settings(max_examples=50)
@given(st.lists(st.text("aé \t", max_size=14), max_size=20), st.integers(30, 90))
def test_snippets_are_whole_lines_of_the_document(lines: list[str], size: int) -> None:
    text = "".join(f"x{line}\n" for line in lines)  # no line is blank, so no snippet is left out
    snippets = list(cut([Document("a", text)], size))
    assert "".join(snippet.text for snippet in snippets) == text
    longest = max((len(f"x{line}\n".encode()) for line in lines), default=0)
    for snippet in snippets:
        assert snippet.document == "a"
        assert snippet.text.endswith("\n")
        assert snippet.n_bytes == len(snippet.text.encode()) < 1.5 * size + longest
    assert all(snippet.n_bytes >= size / 2 for snippet in snippets[1:])


@settings(max_examples=50)
@given(st.lists(st.text("aé日😀", min_size=1, max_size=300), min_size=1, max_size=5), st.integers(4, 60))
def test_long_lines_are_cut_between_characters(lines: list[str], size: int) -> None:
    text = "".join(f"{line}\n" for line in lines)
    snippets = list(cut([Document("a", text)], size))
    assert "".join(snippet.text for snippet in snippets) == text
    assert all(snippet.n_bytes < 2.5 * size for snippet in snippets)


def test_long_lines_are_cut_before_white_space() -> None:
    line = " ".join(f"word{number}" for number in range(2_000)) + "\n"
    assert len(line) > 8_000
    snippets = list(cut([Document("a", line)], 100))
    assert "".join(snippet.text for snippet in snippets) == line
    assert all(100 <= snippet.n_bytes < 250 for snippet in snippets[:-1])
    assert all(snippet.text.startswith(" word") for snippet in snippets[1:])


def test_no_snippet_has_more_tokens_than_the_window() -> None:
    def tokens(snippet: Snippet) -> int:
        return 1 + snippet.n_bytes

    lines = [Snippet("a", "".join(f"line {n}\n" for n in range(30))), Snippet("b", "é" * 200), Snippet("c", "short\n")]
    found = fit(lines, tokens, 60)
    assert all(tokens(snippet) <= 60 for snippet in found)
    for document in "abc":
        whole = "".join(snippet.text for snippet in lines if snippet.document == document)
        assert "".join(snippet.text for snippet in found if snippet.document == document) == whole
    assert all(snippet.text.endswith("\n") for snippet in found if snippet.document == "a")
    assert fit(lines, tokens, float("inf")) == lines
    assert fit(lines, lambda snippet: 1 + len(snippet.text) // 50, 20) == lines, "what fits stays whole"


def test_a_short_rest_joins_the_last_snippet() -> None:
    assert [s.text for s in cut([Document("a", "1234\n5678\nab\n")], 5)] == ["1234\n", "5678\n", "ab\n"]
    assert [s.text for s in cut([Document("a", "1234\n5678\na\n")], 5)] == ["1234\n", "5678\na\n"]
    assert [s.text for s in cut([Document("a", "a\n")], 50)] == ["a\n"]


def test_documents_never_share_a_snippet_and_blank_ones_are_left_out() -> None:
    found = list(cut([Document("a", "1\n"), Document("b", " \n\n"), Document("c", "2\n"), Document("d", "")], 100))
    assert found == [Snippet("a", "1\n"), Snippet("c", "2\n")]


def test_the_draw_depends_on_the_snippets_alone() -> None:
    snippets = [Snippet(f"document{i % 5}", f"text {i}\n") for i in range(40)]
    shuffled = random.Random(0).sample(snippets, len(snippets))
    assert draw(snippets, n=12) == draw(shuffled, n=12)
    assert draw(snippets, n=12)[:5] == draw(snippets, n=5)
    assert draw(snippets, n=12) != snippets[:12]
    assert len({snippet.document for snippet in draw(snippets, n=12)}) >= 4
    assert len(draw(snippets, n=99)) == 40


def test_drawing_by_bytes_stops_when_they_are_reached() -> None:
    snippets = [Snippet("a", f"{i:09}\n") for i in range(20)]
    assert len(draw(snippets, n_bytes=30)) == 3
    assert len(draw(snippets, n_bytes=31)) == 4
    assert len(draw(snippets, n_bytes=1)) == 1


def test_no_text_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(CorpusError, match="Give the corpus more text"):
        draw([], n=3)


def test_ids_start_with_the_first_token_and_spell_the_text(tiny_model: MakeModel) -> None:
    tokenizer = load_original_tokenizer(tiny_model())
    texts = ["import os\n", "    return é\n", ""]
    for text, ids in zip(texts, encode(tokenizer, texts), strict=True):
        assert ids[0] == first_token(tokenizer)
        assert not set(ids[1:]) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids[1:]) == text


def test_first_token_is_bos_then_eos() -> None:
    assert first_token(SimpleNamespace(bos_token_id=0, eos_token_id=7)) == 0  # type: ignore[arg-type]
    assert first_token(SimpleNamespace(bos_token_id=None, eos_token_id=7)) == 7  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="neither a BOS nor an EOS"):
        first_token(SimpleNamespace(bos_token_id=None, eos_token_id=None))  # type: ignore[arg-type]


def test_a_seed_draws_other_text() -> None:
    snippets = [Snippet(f"d{n % 7}", f"text {n}\n") for n in range(40)]
    assert draw(snippets, n=10) == draw(snippets, n=10, seed=0)
    assert set(draw(snippets, n=10, seed=1)) != set(draw(snippets, n=10, seed=2))
    assert draw(snippets, n=10, seed=1)[:5] == draw(snippets, n=5, seed=1)


@settings(max_examples=200)
@given(
    st.lists(st.dictionaries(st.integers(0, 5), st.integers(1, 4), max_size=4), min_size=1, max_size=12),
    st.integers(1, 14),
)
def test_cover_is_the_greedy_choice(counts: list[dict[int, int]], n: int) -> None:
    """Against the plain form: at every step all gains are computed, and one of the largest is taken."""
    chosen = cover(counts, n)
    assert len(chosen) == len(set(chosen)) == min(n, len(counts))
    left, seen = list(range(len(counts))), Counter[int]()
    for index in chosen:
        gains = {i: sum(1 / (1 + seen[t] + k) for t, m in counts[i].items() for k in range(m)) for i in left}
        assert gains[index] == pytest.approx(max(gains.values()))  # which of two equal ones is left to rounding
        seen.update(counts[index])
        left.remove(index)


def test_cover_prefers_what_is_rare_so_far() -> None:
    counts = [{0: 5}, {0: 5}, {1: 1}, {}, {2: 1, 3: 1}]
    assert cover(counts, 3) == [0, 4, 2], "not the second text of what the first has shown five times"
    assert cover(counts, 9) == [0, 4, 2, 1, 3]
