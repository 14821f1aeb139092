"""The stage as a whole, on a tiny model of every family."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from kldistill.model import tiny
from kldistill.model.load import load_original_tokenizer, old_size
from kldistill.runtime.errors import ConfigError, TokenizerError
from kldistill.runtime.job import Job
from kldistill.tokens import stage as tokens_stage
from kldistill.tokens.artifact import read_new_tokens
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.extension import segments_alone
from kldistill.tokens.merges import Entry
from kldistill.tokens.texts import up_to
from tests.helpers.interpreter import python

SPLITS = {"train": slice(0, 3), "validation": slice(3, 4), "test": slice(4, 5)}
SIZE = 15_000  # bytes of each document
FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")
UNSEEN = "def attention_mask(self):\n    return self.__init__ + naïve_中文 - 'don't' * 128  # 😀\n"


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    documents = ["".join(up_to(text.splitlines(keepends=True), SIZE)) for text in tiny.training_text()]
    for split, part in SPLITS.items():
        lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(documents[part])]
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return out


Build = Callable[..., Path]


@pytest.fixture
def build(tiny_model, corpus_folder: Path, tmp_path: Path) -> Build:
    def run(family: str = "gpt2", job: Job | None = None, **settings: object) -> Path:
        out = tmp_path / f"tokens{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        cfg = TokensConfig(**{"n_new": 40, "curve": 0, **settings})  # type: ignore[arg-type]
        tokens_stage.build(cfg, {"model": tiny_model(family), "corpus": corpus_folder}, out, job or Job())
        return out

    return run


def texts_of(folder: Path, split: str) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, build: Build, tiny_model, corpus_folder: Path) -> None:
    out = build(family, curve=64)
    assert (out / "curve.json").is_file()
    old = load_original_tokenizer(tiny_model(family))
    size = old_size(old)
    new_tokens = read_new_tokens(out)
    assert [token.id for token in new_tokens] == list(range(size, size + 40))
    new = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    pieces = [[i] for i in range(size)] + [token.pieces for token in new_tokens]
    used = 0
    for text in [*texts_of(corpus_folder, "train"), *texts_of(corpus_folder, "test"), UNSEEN]:
        before = old.backend_tokenizer.encode(text).ids
        after = new.encode(text).ids
        used += sum(i >= size for i in after)
        assert [piece for i in after for piece in pieces[i]] == before
        assert new.decode(after) == old.backend_tokenizer.decode(before)
    assert used > 100
    counts = [0] * 40
    for text in texts_of(corpus_folder, "train"):
        for i in new.encode(text).ids:
            if i >= size:
                counts[i - size] += 1
    assert [token.count for token in new_tokens] == counts
    summary = json.loads((out / "summary.json").read_text())
    assert summary["tokens/saved"] > 0.005 and summary["tokens/refinement_violations"] == 0
    assert json.loads((out / "vocabulary.json").read_text())["new_size"] == size + 40
    for token in new_tokens:
        assert token.string == old.backend_tokenizer.decode(token.pieces) or family in ("mistral",)


STRANGER = """
import json, sys
from transformers import AutoTokenizer
for line in sys.stdin:
    folder, text = json.loads(line)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = [tokenizer(text)["input_ids"], tokenizer.eos_token, bool(tokenizer.chat_template), len(tokenizer)]
    print(json.dumps(facts))
assert not any(name.startswith("kldistill") for name in sys.modules)
"""


def test_a_stranger_gets_the_same_ids(build: Build, tiny_model) -> None:
    """Also beside a model's config: transformers picks a class by the model's type, and some bring their own rule."""
    cases = []
    for family in ("gpt2", "llama", "qwen2", "mistral", "gemma2"):
        alone = build(family) / "tokenizer"
        assert (alone / "tokenization_extended.py").exists() == (family == "qwen2")
        beside = alone.parent / "beside"
        shutil.copytree(alone, beside)
        (beside / "config.json").write_bytes((tiny_model(family) / "config.json").read_bytes())
        text = UNSEEN + " ".join(token.string for token in read_new_tokens(alone.parent))
        cases += [(family, alone, text), (family, beside, text)]
    lines = "".join(json.dumps([str(folder), text]) + "\n" for _, folder, text in cases)
    command = [python(), "-c", STRANGER]
    run = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, cwd="/")
    for (family, folder, text), line in zip(cases, run.stdout.splitlines(), strict=True):
        old = load_original_tokenizer(tiny_model(family))
        expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
        assert json.loads(line) == [expected, old.eos_token, True, old_size(old) + 40], (family, folder)


def test_building_twice_gives_the_same_files(build: Build) -> None:
    first, second = build(), build()
    for name in ("new_tokens.jsonl", "tokenizer/tokenizer.json", "preflight.json", "summary.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_boundaries_widen(family: str, build: Build) -> None:
    strings, saved = {}, {}
    for boundary in ("word", "identifier", "dotted", "line"):
        out = build(family, boundary=boundary, n_new=300, min_documents=1)
        found = read_new_tokens(out)
        strings[boundary] = [token.string for token in found]
        saved[boundary] = sum(token.count * (len(token.pieces) - 1) for token in found)
    assert any("_" in string.strip("_ ") for string in strings["identifier"])
    assert any("self." in string for string in strings["dotted"])
    assert not any("self." in string for string in strings["word"] + strings["identifier"])
    assert any(" " in string.strip() for string in strings["line"])
    assert saved["line"] > saved["dotted"] > saved["word"]


def test_a_folder_with_two_chat_templates(tiny_model, corpus_folder: Path, tmp_path: Path) -> None:
    """transformers keeps all but the first in a subfolder."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), model)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages[0]['content'] }}")
    out = tmp_path / "out"
    out.mkdir()
    tokens_stage.build(TokensConfig(n_new=10, curve=0), {"model": model, "corpus": corpus_folder}, out, Job())
    templates = AutoTokenizer.from_pretrained(out / "tokenizer").chat_template
    assert templates == AutoTokenizer.from_pretrained(model).chat_template
    assert set(templates) == {"default", "tool_use"}


def test_added_tokens_beyond_the_vocabulary_keep_their_ids(tiny_model, corpus_folder: Path, tmp_path: Path) -> None:
    """Qwen's special tokens are not in the model's vocabulary; new ids must come after them, theirs must not move."""
    old = load_original_tokenizer(tiny_model("qwen2"))
    old.add_tokens(["<|tool|>", "<|box|>"], special_tokens=True)
    model = tmp_path / "model"
    old.save_pretrained(model)
    (model / "config.json").write_bytes((tiny_model("qwen2") / "config.json").read_bytes())
    facts = json.loads((tiny_model("qwen2") / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(facts))
    out = tmp_path / "out"
    out.mkdir()
    tokens_stage.build(TokensConfig(n_new=10, curve=0), {"model": model, "corpus": corpus_folder}, out, Job())
    new = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    size = old_size(old)
    assert [token.id for token in read_new_tokens(out)] == list(range(size, size + 10))
    text = "a <|box|> b <|tool|>"
    assert new.encode(text).ids == old.backend_tokenizer.encode(text).ids


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_prefix_closed(family: str, build: Build) -> None:
    out = build(family, prefix_closed=True)
    known = {tuple(token.pieces) for token in read_new_tokens(out)}
    assert all(p[:n] in known for p in known for n in range(2, len(p)))
    assert json.loads((out / "summary.json").read_text())["tokens/prefix_closed"] == 1


def test_vocab_size_is_the_total(build: Build, tiny_model) -> None:
    size = old_size(load_original_tokenizer(tiny_model("gpt2")))
    assert len(read_new_tokens(build(vocab_size=size + 7))) == 7
    for wrong in (size, size - 1):
        with pytest.raises(ConfigError, match=rf"tokens\.vocab_size={wrong}.*{size}"):
            build(vocab_size=wrong)


def test_few_pairs_give_fewer_tokens_and_say_so(build: Build) -> None:
    said: list[str] = []
    out = build(job=Job(say=said.append), n_new=100_000, min_count=40)
    found = read_new_tokens(out)
    assert 0 < len(found) < 2_000
    assert any(f"only {len(found)} of the 100000" in text for text in said)


def test_no_pair_is_an_error(build: Build) -> None:
    with pytest.raises(TokenizerError, match=r"min_count=1000000"):
        build(min_count=1_000_000)


def test_max_bytes_limits_what_is_counted() -> None:
    texts = ["é" * 10, "b" * 10, "c"]
    assert list(up_to(texts, None)) == texts
    assert list(up_to(texts, 30)) == texts[:2]
    assert list(up_to(texts, 5)) == texts[:1]


def test_whole_word_lookup_takes_no_token_that_lies(
    build: Build, tiny_model, corpus_folder: Path, tmp_path: Path
) -> None:
    """Llama-3 emits a word that is in the vocabulary without merging: its pieces must be those of the word alone."""
    old = load_original_tokenizer(tiny_model("llama"))
    spec = json.loads(old.backend_tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    model = tmp_path / "model"
    old.save_pretrained(model)
    (model / "tokenizer.json").write_text(json.dumps(spec))
    (model / "config.json").write_bytes((tiny_model("llama") / "config.json").read_bytes())
    (model / "model.json").write_bytes((tiny_model("llama") / "model.json").read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    tokens_stage.build(TokensConfig(n_new=200, curve=0), {"model": model, "corpus": corpus_folder}, out, Job())
    before = Tokenizer.from_str(json.dumps(spec))
    new = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    for token in read_new_tokens(out):
        ids = new.encode(token.string, add_special_tokens=False).ids
        if ids == [token.id]:
            assert before.encode(token.string, add_special_tokens=False).ids == token.pieces


def test_segments_alone() -> None:
    """``a|bc`` inside a longer word is no token where the word ``abc`` alone is ``ab|c``."""
    tokenizer = tiny.byte_level("gpt2", 420)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab, size = spec["model"]["vocab"], len(spec["model"]["vocab"])
    vocab |= {"qx": size, "xw": size + 1}
    spec["model"]["merges"] = [["q", "x"], ["x", "w"]]
    same = segments_alone(spec)
    q, x, w = (vocab[letter] for letter in "qxw")
    assert same(Entry("qxw", b"qxw", (size, w)))
    assert not same(Entry("qxw", b"qxw", (q, size + 1)))
    assert same(Entry("q(x", b"q(x", (q, x)))  # never a word of its own


def test_truncation_and_padding_left_in_the_folder_change_nothing(
    tiny_model, corpus_folder: Path, tmp_path: Path
) -> None:
    """As training scripts leave them in ``tokenizer.json``."""
    source, outs = tmp_path / "model", []
    shutil.copytree(tiny_model("gpt2"), source)
    for name in ("plain", "left"):
        if name == "left":
            path = source / "tokenizer.json"
            spec = json.loads(path.read_text())
            spec["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
            spec["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_id": 0, "pad_type_id": 0}
            spec["padding"] |= {"pad_to_multiple_of": None, "pad_token": "<|endoftext|>"}
            path.write_text(json.dumps(spec))
        outs.append(tmp_path / name)
        outs[-1].mkdir()
        tokens_stage.build(TokensConfig(n_new=20, curve=0), {"model": source, "corpus": corpus_folder}, outs[-1], Job())
    plain, left = (read_new_tokens(out) for out in outs)
    assert plain == left
    exported = json.loads((outs[1] / "tokenizer" / "tokenizer.json").read_text())
    assert exported["truncation"]["max_length"] == 8, "the folder's own settings stay"


def test_extending_an_extended_tokenizer(build: Build, tiny_model, corpus_folder: Path, tmp_path: Path) -> None:
    first = build("qwen2", boundary="identifier")
    source = tmp_path / "again"
    shutil.copytree(tiny_model("qwen2"), source)
    for file in (first / "tokenizer").iterdir():
        shutil.copy(file, source / file.name)
    said: list[str] = []
    out = tmp_path / "second"
    out.mkdir()
    cfg = TokensConfig(n_new=10, boundary="identifier", curve=0)
    tokens_stage.build(cfg, {"model": source, "corpus": corpus_folder}, out, Job(say=said.append))
    old, found = read_new_tokens(first), read_new_tokens(out)
    assert [token.id for token in found] == list(range(old[-1].id + 1, old[-1].id + 11))
    assert any(f"ids {old[0].id} to {old[-1].id}" in text for text in said)
    settings = json.loads((out / "tokenizer" / "tokenizer_config.json").read_text())
    assert [(e["first_id"], e["tokens"]) for e in settings["kldistill_extensions"]] == [
        (old[0].id, 40),
        (found[0].id, 10),
    ]
    tokenizer = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(UNSEEN).ids) == UNSEEN
