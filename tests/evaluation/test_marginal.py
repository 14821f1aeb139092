"""All cuts of words against every one of them, run by itself."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch

from kldistill.corpus.documents import Part
from kldistill.evaluation import marginal
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.evaluation.marginal import Masses, add_gaps, marginals
from kldistill.evaluation.words import Word, words, words_of
from kldistill.rows.student import Student
from kldistill.runtime.shares import Share
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.encoding import Encoded
from kldistill.training.cuts import TwoCuts
from kldistill.training.sums import Score, summarise
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.setting import Setting, make_setting

FAMILIES = ["llama", "gemma3"]


@pytest.fixture(scope="module", params=FAMILIES)
def made(
    request: pytest.FixtureRequest,
    tiny_model: MakeModel,
    fake_tokens: MakeTokens,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Setting, Spelling]:
    folder = tiny_model(request.param, hidden_size=32, layers=2)
    tokens = fake_tokens(folder, 60)
    setting = make_setting(folder, tokens, tmp_path_factory.mktemp("states"))
    return setting, Spelling(load_extended_tokenizer(tokens))


def every_cut(spelling: Spelling, text: bytes) -> Iterator[tuple[int, ...]]:
    """All sequences of tokens, none special, that spell a text."""
    special = set(spelling.tokenizer.all_special_ids)
    if not text:
        yield ()
    for index, spelt in enumerate(spelling.table):
        if spelt and index not in special and text.startswith(spelt):
            for rest in every_cut(spelling, text[len(spelt) :]):
                yield (index, *rest)


@torch.no_grad()
def one_by_one(student: Student, spelling: Spelling, ids: list[int], word: Word) -> Masses:
    """The masses of a word, each of its cuts run as a text of its own, without a cache."""

    def log_q(cut: tuple[int, ...]) -> float:
        whole = [*ids[: word.start], *cut]
        rows = student.logits(student.hidden(torch.tensor([whole]))[0]).double().log_softmax(-1)
        return sum(rows[at - 1, whole[at]].item() for at in range(word.start, len(whole)))

    canonical = tuple(ids[word.start : word.end])
    found = {cut: math.exp(log_q(cut)) for cut in every_cut(spelling, spelling.spell(canonical))}
    old = sum(p for cut, p in found.items() if max(cut) < student.old_size)
    return Masses(math.log(found[canonical]), math.log(sum(found.values())), math.log(old))


def short_words(setting: Setting, spelling: Spelling) -> list[tuple[list[int], list[Word]]]:
    """Words of at most six bytes, of which all cuts can be enumerated, in all texts."""
    texts = []
    for ids in setting.new_ids:
        found = words(spelling, ids, setting.pieces.old_size)
        texts.append((ids, [word for word in found if len(spelling.spell(ids[word.start : word.end])) <= 6][:3]))
    return texts


def test_every_cut_is_summed(made: tuple[Setting, Spelling]) -> None:
    """With nothing dropped or taken together, for words at different places of texts of different length."""
    setting, spelling = made
    texts = short_words(setting, spelling)
    assert sum(len(of) for _, of in texts) >= 10
    found = marginals(setting.student, spelling, texts, kept=None, least=0.0)
    for (ids, of), masses in zip(texts, found, strict=True):
        for word, one in zip(of, masses, strict=True):
            wanted = one_by_one(setting.student, spelling, ids, word)
            assert one == pytest.approx(wanted, abs=2e-4)
            assert wanted.all > wanted.canonical and wanted.all > wanted.old  # a gap, and not all of it in old tokens


def test_histories_that_share_a_place_may_be_told_apart_or_not(made: tuple[Setting, Spelling]) -> None:
    """One of each kind gives what all of them give, nearly; exactly where there are fewer than are told apart."""
    setting, spelling = made
    texts = short_words(setting, spelling)
    exact = marginals(setting.student, spelling, texts, kept=None, least=0.0)
    found = marginals(setting.student, spelling, texts, kept=1, least=0.0)
    errors = []
    for ones, others in zip(exact, found, strict=True):
        for one, other in zip(ones, others, strict=True):
            assert other.canonical == pytest.approx(one.canonical, abs=1e-4)
            errors.append(abs(other.all - one.all))
    assert max(errors) > 0 and statistics.median(errors) < 0.01
    for ones, others in zip(exact, marginals(setting.student, spelling, texts, kept=1000, least=0.0), strict=True):
        assert [tuple(one) for one in others] == [pytest.approx(tuple(one), abs=1e-4) for one in ones]


def test_what_is_dropped_is_little(made: tuple[Setting, Spelling]) -> None:
    setting, spelling = made
    texts = short_words(setting, spelling)
    exact, found = (marginals(setting.student, spelling, texts, kept=None, least=least) for least in (0.0, 0.01))
    pairs = [pair for both in zip(exact, found, strict=True) for pair in zip(*both, strict=True)]
    assert any(other.all < one.all for one, other in pairs), "something is dropped"
    for one, other in pairs:
        assert one.all - 0.05 < other.all < one.all + 1e-4
        assert other.canonical < other.all + 1e-4 and other.old < one.old + 1e-4


class ByHand(Spelling):
    """A vocabulary without a tokenizer; the id 0 starts a text."""

    def __init__(self, table: list[bytes]) -> None:
        self.table = table
        self._id_of = {spelt: [index] for index, spelt in enumerate(table) if index}
        self.longest = max(map(len, table))
        self.over_spaces = any(b" " in spelt.strip() for spelt in table)


def test_what_a_word_is() -> None:
    spelling = ByHand([b"", b"a", b"b", b"c", b" ", b" a", b"  ", b"ab", b"bc", b"ca"])
    old_size = 7
    # a a [ab] c b: nothing reaches over the boundary before ``ab``, but ``bc`` over that behind it.
    assert words(spelling, [0, 1, 1, 7, 3, 2], old_size) == [Word(3, 5)]
    # ``ab`` could begin with the a before; then that belongs to the word.
    assert words(spelling, [0, 1, 8, 2], old_size) == [Word(1, 3)]
    # Two spaces are a token, which would swallow the space of `` a``, but white space begins a word.
    assert words(spelling, [0, 4, 5, 7, 4, 1], old_size) == [Word(3, 4)]
    # A part that was read by itself ends a word; a text without new tokens has none.
    assert words(spelling, [0, 1, 7, 3, 1], old_size, starts={3}) == [Word(2, 3)]
    assert words(spelling, [0, 1, 2, 3], old_size) == []
    # With a token that goes on behind a space, white space begins no word where that one could stand.
    assert words(spelling, [0, 2, 5, 7], old_size) == [Word(3, 4)]
    reaching = ByHand([*spelling.table, b"b a"])
    assert words(reaching, [0, 2, 5, 7], old_size) == [Word(3, 4)]
    assert words(reaching, [0, 7, 5, 3], old_size) == [Word(1, 3)]
    # One word for two new tokens that stand in each other's reach.
    assert words(spelling, [0, 7, 9, 4], old_size) == [Word(1, 3)]


def scored(setting: Setting, spelling: Spelling, n_words: int, share: Share | None = None) -> list[Score]:
    scores = [Score(snippet.document, snippet.n_bytes, 0) for snippet in setting.states.snippets]
    add_gaps(
        setting.student, spelling, setting.cuts, scores, n_words, description="", **({"share": share} if share else {})
    )
    return scores


def test_the_gap_of_a_text_is_that_of_its_words(
    made: tuple[Setting, Spelling], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, spelling = made
    n = len(setting.new_ids)
    monkeypatch.setattr(marginal, "PER_TEXT", 1000)  # all words
    scores = scored(setting, spelling, 1000 * n)
    texts = [(ids, words(spelling, ids, setting.pieces.old_size)) for ids in setting.new_ids]
    for score, (_, of), masses in zip(scores, texts, marginals(setting.student, spelling, texts), strict=True):
        assert score.n_words == len(of)
        assert score.gap_nats == pytest.approx(sum(one.all - one.canonical for one in masses), rel=1e-3)
        assert score.canonical_mass == pytest.approx(sum(math.exp(one.canonical - one.all) for one in masses), rel=1e-3)
    figures = summarise(scores)
    bits = sum(score.gap_nats for score in scores) / math.log(2) / sum(score.n_bytes for score in scores)
    assert figures["marginal_gap"] == pytest.approx(bits) and bits > 0
    assert figures["canonical_mass"] + figures["old_mass"] < 1


def test_some_words_stand_for_all_of_a_text(made: tuple[Setting, Spelling], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean gap of the words that were drawn, times the number of its words; other texts are left out."""
    setting, spelling = made
    monkeypatch.setattr(marginal, "PER_TEXT", 2)
    scores = scored(setting, spelling, 5)
    assert [score.gap_bytes > 0 for score in scores] == [True] * 3 + [False] * (len(scores) - 3)
    for score, ids in zip(scores[:3], setting.new_ids, strict=False):
        every = words(spelling, ids, setting.pieces.old_size)
        assert score.n_words == min(2, len(every))
        (masses,) = marginals(setting.student, spelling, [(ids, every)])
        gaps = [one.all - one.canonical for one in masses]
        means = [(one + other) / 2 * len(every) for one in gaps for other in gaps]
        assert any(score.gap_nats == pytest.approx(mean, rel=1e-3) for mean in means) or not every
    assert sum(score.gap_nats > 0 for score in scores) >= 2
    halves = [scored(setting, spelling, 5, Share(rank, 2)) for rank in range(2)]
    for score, one, other in zip(scores, *halves, strict=True):
        for name in ("gap_nats", "canonical_mass", "old_mass", "n_words"):
            assert getattr(one, name) + getattr(other, name) == pytest.approx(getattr(score, name), rel=1e-3)


def test_nothing_is_run_where_there_is_nothing_to_look_at(made: tuple[Setting, Spelling]) -> None:
    setting, spelling = made
    for score in scored(setting, spelling, 0):
        assert (score.n_words, score.gap_bytes) == (0, 0)
    assert not {"marginal_gap", "canonical_mass", "old_mass"} & summarise(scored(setting, spelling, 0)).keys()
    plain = [Score("a", 10, 5)]
    add_gaps(setting.teacher, spelling, setting.cuts, plain, 10, description="")  # a model without new tokens
    assert asdict(plain[0]) == asdict(Score("a", 10, 5))


def test_only_what_is_scored_of_a_conversation(made: tuple[Setting, Spelling]) -> None:
    """Half of a text as a question, half as the answer: no word of the question is looked at, none lies in both."""
    setting, spelling = made
    new = setting.pieces.old_size
    # A text with a new token far behind its middle.
    at, ids = next((at, ids) for at, ids in enumerate(setting.new_ids) if max(ids[3 * len(ids) // 4 :]) >= new)
    snippet, middle = setting.states.snippets[at], len(ids) // 2
    lengths = [len(spelling.spell(part).decode()) for part in (ids[1:middle], ids[middle:])]
    parts = (Part(lengths[0], scored=False), Part(lengths[1]))
    talk = setting.states._replace(snippets=[snippet._replace(parts=parts)], ids=setting.states.ids[at : at + 1])
    cuts = TwoCuts(talk, [Encoded(ids, [middle - 1, len(ids) - middle])], setting.pieces)
    found = words_of(spelling, cuts, 0)
    whole = words(spelling, ids, setting.pieces.old_size)
    assert found and min(word.start for word in found) >= middle
    assert {word for word in whole if word.start >= middle} <= set(found)
