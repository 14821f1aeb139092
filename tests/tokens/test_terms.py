"""Terms become tokens, or are refused by name, line and way out."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kldistill.model import tiny
from kldistill.model.load import old_size
from kldistill.runtime.errors import ConfigError, TokenizerError
from kldistill.runtime.job import Job
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.extension import Extension, extend_by
from kldistill.tokens.merge_order import cut
from kldistill.tokens.merges import Entry, Rules
from kldistill.tokens.terms import Chains, Term, read_terms, variants

LETTERS = "abcd"
OLD = [Entry(letter, letter.encode(), (i,)) for i, letter in enumerate(LETTERS)]
TRAIN = ["x = attention_mask + rotary_embedding(attention_mask)\n" * 3]


def write(folder: Path, text: str) -> str:
    path = folder / "terms.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


def extend(name: str, path: str, job: Job | None = None, **settings: object) -> tuple[Tokenizer, Extension]:
    tokenizer = tiny.sentencepiece_style(name, 520) if name in tiny.SENTENCEPIECE else tiny.byte_level(name, 420)
    cfg = TokensConfig(method="list", terms=path, **settings)  # type: ignore[arg-type]
    extension = extend_by(cfg, tokenizer, TRAIN, job or Job())
    return Tokenizer.from_str(json.dumps(extension.spec)), extension


@settings(max_examples=300)
@given(
    terms=st.lists(st.text(LETTERS, min_size=2, max_size=6), min_size=1, max_size=8, unique=True), closed=st.booleans()
)
def test_every_term_ends_as_one_token(terms: list[str], closed: bool) -> None:
    """Overlapping terms too: ``abc`` and ``bcd`` compete for ``bc`` whatever their order."""
    rules = Rules(OLD, max_pieces=99, prefix_closed=closed)
    chains = Chains(rules)
    words = [[LETTERS.index(letter) for letter in term] for term in terms]
    assert all(chains.add(word) for word in words)
    ranks = {}
    for rank, pair in enumerate(chains.merges):
        assert pair not in ranks
        ranks[pair] = (rank, chains.ids[rules.join(*pair).pieces])
    for word in words:
        (token,) = cut(word, ranks)
        assert rules.entries[token].pieces == tuple(word)
        if closed:
            assert all(tuple(word[:n]) in chains.ids for n in range(2, len(word)))
    assert sorted(chains.ids.values()) == list(range(len(OLD), len(rules.entries)))


def test_terms_share_prefixes() -> None:
    chains = Chains(Rules(OLD))
    assert chains.add([0, 1, 2]) and chains.add([0, 1, 3])
    assert set(chains.ids) == {(0, 1), (0, 1, 2), (0, 1, 3)}


def test_a_way_round_a_token_that_must_not_be_made() -> None:
    chains = Chains(Rules(OLD, accept=lambda entry: entry.token != "ab"))
    assert chains.add([0, 1, 2])
    assert set(chains.ids) == {(1, 2), (0, 1, 2)}
    assert not Chains(Rules(OLD, accept=lambda entry: len(entry.pieces) != 2)).add([0, 1, 2])


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama2", "gemma"])
def test_terms_are_single_tokens_with_exact_pieces(name: str, tmp_path: Path) -> None:
    new, extension = extend(name, write(tmp_path, "# domain\n\nattention_mask\nrotary_embedding\nattention_mask\n"))
    by_id = {token.id: token for token in extension.tokens}
    ids = new.encode("f attention_mask rotary_embedding", add_special_tokens=False).ids
    found = [by_id[i].string for i in ids if i in by_id]
    assert found[-2:] == [" attention_mask", " rotary_embedding"]
    ids = new.encode("(attention_mask", add_special_tokens=False).ids
    assert by_id[ids[-1]].string == "attention_mask"
    old = tiny.sentencepiece_style(name, 520) if name in tiny.SENTENCEPIECE else tiny.byte_level(name, 420)
    text = "x = attention_mask[rotary_embedding] # attention\n"
    size = old_size(old)
    pieces = [[i] for i in range(size)] + [token.pieces for token in extension.tokens]
    after = new.encode(text, add_special_tokens=False).ids
    assert [p for i in after for p in pieces[i]] == old.backend_tokenizer.encode(text, add_special_tokens=False).ids
    count = {token.string: token.count for token in extension.tokens}
    assert count[" attention_mask"] == 3 and count["attention_mask"] == 3


@pytest.mark.parametrize(("space", "wanted"), [("with", [" ab"]), ("without", ["ab"]), ("both", ["ab", " ab"])])
def test_leading_space(space: str, wanted: list[str]) -> None:
    assert variants(Term("ab", 1), space) == wanted


TERMS = ["C++", "conv2d", "std::vector", "fine-tuning", "machine learning", "attention_mask", "torch.nn", "#include"]


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2", "llama2", "gemma"])
def test_the_users_own_terms_cross_any_boundary(name: str, tmp_path: Path) -> None:
    new, extension = extend(name, write(tmp_path, "\n".join(["# comment", *TERMS])), boundary="word")
    by_id = {token.id: token for token in extension.tokens}
    old = tiny.sentencepiece_style(name, 520) if name in tiny.SENTENCEPIECE else tiny.byte_level(name, 420)
    pieces = [[i] for i in range(old_size(old))] + [token.pieces for token in extension.tokens]
    for term in TERMS:
        for text in (f"x {term} y", f"x\n{term} y", f"x {term}"):
            ids = new.encode(text, add_special_tokens=False).ids
            assert term in {by_id[i].string.strip() for i in ids if i in by_id}, text
    # Refinement, also where the term is no union of old pre-tokens.
    for text in [f"a{term}{end}" for term in TERMS for end in ("", ";", "x", "_", "+", "2", "\r\n", " learning")]:
        ids = new.encode(text, add_special_tokens=False).ids
        assert [p for i in ids for p in pieces[i]] == old.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_terms_that_are_cut_before_are_refused_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"2 of 3 terms.*line 2: 'conv2d'.*line 4: 'a1b'.*as_added_tokens=true"):
        extend("smollm", write(tmp_path, "# first\nconv2d\nattention_mask\na1b\n"), leading_space="without")


def test_terms_that_are_tokens_already_are_left_out(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"one token of the old tokenizer already: 'self' \(line 1\)"):
        extend("gpt2", write(tmp_path, "self\n"), leading_space="without")
    said: list[str] = []
    path = write(tmp_path, "self\nattention_mask\nself\nin\n")
    _, extension = extend("gpt2", path, Job(say=said.append), leading_space="without", boundary="identifier")
    assert said == ["2 terms, with or without a space, are one token already: 'self' (line 1), 'in' (line 4)."]
    assert extension.tokens[-1].string == "attention_mask"


@pytest.mark.parametrize("name", ["llama2", "gemma"])
def test_characters_without_a_token_are_refused_where_bytes_have_names(name: str, tmp_path: Path) -> None:
    """SentencePiece-style: ``<0xC3>`` + ``<0xA9>`` would be shown as it is written."""
    with pytest.raises(TokenizerError, match=r"2 of 3 terms.*line 1: '機械' cannot be built.*line 3: '\u212bx'"):
        extend(name, write(tmp_path, "機械\nattention_mask\n\u212bx\n"), leading_space="without")


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_terms_of_other_scripts_are_built_a_character_at_a_time(name: str, tmp_path: Path) -> None:
    terms = ["機械学習", "토크나이저", "分词器", "🤗", "é́x"]
    new, extension = extend(name, write(tmp_path, "\n".join(terms)))
    by_id = {token.id: token.string for token in extension.tokens}
    for term in terms:
        ids = new.encode(f"x {term} y", add_special_tokens=False).ids
        assert term in {by_id[i].strip() for i in ids if i in by_id}
        assert new.decode(new.encode(f"x {term} y").ids, skip_special_tokens=True) == f"x {term} y"


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_added_tokens(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, "conv2d\ntwo words\n")
    new, extension = extend(name, path, as_added_tokens=True, leading_space="without")
    ids = {token.string: token.id for token in extension.tokens}
    assert all(token.pieces == [] for token in extension.tokens)
    encoded = new.encode("x(conv2d, two words) conv2dx", add_special_tokens=False).ids
    assert encoded.count(ids["conv2d"]) == 1 and encoded.count(ids["two words"]) == 1
    assert new.decode(encoded) == "x(conv2d, two words) conv2dx"


@pytest.mark.parametrize("name", ["gpt2", "llama2", "gemma"])
def test_added_tokens_never_stand_over_a_trained_row(name: str, tmp_path: Path) -> None:
    """Vocabularies spell `` return`` with another character for the space, and have no ``return`` without one."""
    old = tiny.sentencepiece_style(name, 520) if name in tiny.SENTENCEPIECE else tiny.byte_level(name, 420)
    assert "return" not in old.get_vocab() and {"\u2581return", "\u0120return"} & set(old.get_vocab())
    for space in ("both", "with", "without"):
        said: list[str] = []
        path, job = write(tmp_path, "return\ninterna\n"), Job(say=said.append)
        new, extension = extend(name, path, job, as_added_tokens=True, leading_space=space)
        assert {token.string.strip() for token in extension.tokens} == {"interna"}
        assert f"{1 + (space == 'both')} terms are one token already and are left out: " in said[0]
        text = "x return return\n    return"
        before = old.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert new.encode(text, add_special_tokens=False).ids == before
        with pytest.raises(TokenizerError, match=r"one token of the old tokenizer already: ' ?return' \(line 1\)"):
            extend(name, write(tmp_path, "return\n"), as_added_tokens=True, leading_space=space)


def test_added_tokens_with_a_space_do_not_cut_longer_words(tmp_path: Path) -> None:
    """A word of the train text (`` at|tent|ion_mask``), and one of the old vocabulary; joints of the old cut may be
    cut (`` ro|ta|r|y|_embedding``).
    """
    said: list[str] = []
    path = write(tmp_path, "atte\nrotary\nretur\n")
    new, extension = extend("gpt2", path, Job(say=said.append), as_added_tokens=True)
    assert [token.string for token in extension.tokens] == ["atte", "rotary", " rotary", "retur"]
    assert said == [
        "2 terms get no token with a space before, as it would cut longer words: "
        "' atte' (line 1) would cut ' attention_mask'; ' retur' (line 3) would cut ' return'."
    ]
    ids = {token.string: token.id for token in extension.tokens}
    assert ids["atte"] in new.encode("x atte y", add_special_tokens=False).ids
    for text in [*TRAIN, "x return y"]:
        encoding = new.encode(text, add_special_tokens=False)
        assert not {ids["atte"], ids["retur"]} & set(encoding.ids) and new.decode(encoding.ids) == text
    with pytest.raises(TokenizerError, match=r"2 terms would cut.*' atte' \(line 1\).*leading_space=both"):
        extend("gpt2", path, as_added_tokens=True, leading_space="with")


@pytest.mark.parametrize("name", ["gpt2", "llama2", "gemma"])
def test_added_tokens_cut_no_word_of_the_old_vocabulary(name: str, tmp_path: Path) -> None:
    """Whatever prefix of an old word becomes a term."""
    old = tiny.sentencepiece_style(name, 520) if name in tiny.SENTENCEPIECE else tiny.byte_level(name, 420)
    words = sorted({old.decode([index]) for token, index in old.get_vocab().items() if token[0] in "\u2581Ġ"})
    words = [f" {word.strip()}" for word in words if len(word) > 4 and word.strip().isalpha()]
    assert len(words) >= 3
    new, _ = extend(name, write(tmp_path, "\n".join({word[1:-1] for word in words})), as_added_tokens=True)
    for word in words:
        before = old.backend_tokenizer.encode(f"x{word}", add_special_tokens=False).ids
        assert new.encode(f"x{word}", add_special_tokens=False).ids == before, word


def test_added_tokens_without_a_space_do_not_cut_longer_words(tmp_path: Path) -> None:
    new, extension = extend("gpt2", write(tmp_path, "interna\n"), as_added_tokens=True, leading_space="without")
    (token,) = extension.tokens
    assert token.id in new.encode("x interna y").ids
    assert token.id not in new.encode("x internal y").ids


def test_files(tmp_path: Path) -> None:
    assert read_terms(Path(write(tmp_path, "\ufeffa\n # no\n\n b \r\na\n#include\n##\n#\n"))) == [
        Term("a", 1),
        Term("b", 4),
        Term("#include", 6),
        Term("##", 7),
    ]
    with pytest.raises(ConfigError, match=r"tokens\.terms=.*cannot be read"):
        read_terms(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="holds no term"):
        read_terms(Path(write(tmp_path, "# nothing\n")))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_terms(tmp_path / "latin.txt")


def test_cut_takes_the_lowest_rank_leftmost_first() -> None:
    ranks = {(1, 2): (0, 9), (0, 1): (1, 8), (0, 9): (2, 7), (1, 1): (3, 6)}
    assert cut([0, 1, 2], ranks) == [7]
    assert cut([1, 1, 1], ranks) == [6, 1]
    assert cut([0, 1, 1], ranks) == [8, 1]
    assert all(pair not in ranks for pair in pairwise(cut([0, 1, 2, 1, 1, 0], ranks)))
