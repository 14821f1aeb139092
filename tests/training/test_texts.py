"""General text beside the domain's: how much, of which kinds, and that nothing of it is evaluated."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from kldistill.corpus.documents import Document, read_documents
from kldistill.corpus.stage import _share_out
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.files import read_summary
from kldistill.runtime.job import Job
from kldistill.training import finetune, states, teacher, texts
from kldistill.training.config import DistillConfig, TeacherConfig
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.setting import documents


def write(folder: Path, split: str, found: list[Document]) -> None:
    lines = [json.dumps(document._asdict()) + "\n" for document in found]
    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus with two kinds of general text, each with a part for training and a part for validation."""
    for at, (split, n) in enumerate({"train": 20, "validation": 4, "general": 2, "general_code": 2}.items()):
        write(tmp_path, split, documents(n, start=20 * at))
    for kind in ("prose", "code"):
        name = "general" if kind == "prose" else "general_code"
        for part, n in {"train": 12, "validation": 3}.items():
            write(tmp_path, f"{name}_{part}", [Document(f"{kind}/{i}", f"{kind} {part} {i}\n" * 20) for i in range(n)])
    return tmp_path


@pytest.fixture(scope="module")
def model(tiny_model: MakeModel) -> Path:
    return tiny_model(tied=False)


@pytest.fixture(scope="module")
def tokens(fake_tokens: MakeTokens, model: Path) -> Path:
    return fake_tokens(model)


@pytest.mark.parametrize("share, n", [(0.0, 7), (0.3, 44), (0.3, 1), (0.5, 8), (0.9, 40)])
def test_general_documents_are_shared_out(share: float, n: int):
    every = [Document(str(number), "text") for number in range(n)]
    parts = _share_out("general", every, share)
    assert sorted(itertools.chain(*parts.values())) == sorted(every), "each is in one part"
    assert parts["general"][0] == every[0], "the evaluation has one in any case"
    held = {name: len(members) for name, members in parts.items()}
    kept = held.get("general_train", 0) + held.get("general_validation", 0)
    assert kept == int(n * share)
    assert held.get("general_validation", 0) == kept // 4
    assert all(parts.values()), "no empty part"


def test_more_general_text_leaves_every_document_in_its_part():
    every = [Document(str(number), "text") for number in range(50)]
    few, many = (_share_out("general", every[:n], 0.3) for n in (20, 50))
    assert all(many[name][: len(members)] == members for name, members in few.items())


def test_kinds_are_equal_and_a_seed_draws_others(corpus: Path):
    found = texts.general(corpus, "train", 100, n=9)
    kinds = [snippet.document.split("/")[0] for snippet in found]
    assert (kinds.count("prose"), kinds.count("code")) == (4, 5)
    assert all(" train " in snippet.text for snippet in found)
    assert texts.general(corpus, "train", 100, n=9, seed=1) != found
    held_out = texts.general(corpus, "validation", 100, n_bytes=500)
    sizes = {kind: sum(s.n_bytes for s in held_out if s.document.startswith(kind)) for kind in ("prose", "code")}
    assert all(250 <= size < 500 for size in sizes.values()), sizes
    assert all(" validation " in snippet.text for snippet in held_out)


@pytest.mark.parametrize("short, other", [("general", "general_code"), ("general_code", "general")])
def test_a_kind_that_is_too_small_is_made_up_for_by_the_other(corpus: Path, short: str, other: str):
    of = {"general": "prose", "general_code": "code"}
    write(corpus, f"{short}_train", [Document(f"{of[short]}/0", f"{of[short]} train 0\n" * 20)])
    write(corpus, f"{short}_validation", [Document(f"{of[short]}/1", "short\n")])
    said: list[str] = []
    found = texts.general(corpus, "train", 100, n=20, say=said.append)
    kinds = [snippet.document.split("/")[0] for snippet in found]
    n_short = kinds.count(of[short])
    assert len(found) == 20 and 0 < n_short < 10, "the share that was asked for"
    assert said == [
        f"General text for train: corpus.{short} has {n_short} of its 10 snippets, so more of corpus.{other} takes "
        "their place."
    ]
    held_out = texts.general(corpus, "validation", 100, n_bytes=400, say=said.append)
    assert 400 <= sum(snippet.n_bytes for snippet in held_out) < 600 and len(said) == 2
    assert f"corpus.{short} has 6 of its 200 bytes" in said[1]
    chosen, share = texts.with_general(found, corpus, 0.5, 100, 0, "distill.general", said.append)
    assert len(chosen) == 40 and share == 0.5, "the real share is the one asked for"
    assert not any(text.startswith("Warning") for text in said)


def test_training_says_how_often_it_goes_over_text_that_is_too_little():
    said: list[str] = []
    enough = DistillConfig(loss=None, steps=10, batch_size=4, snippets=20)  # type: ignore[arg-type]
    assert texts.passes(enough, "distill", 20, "More text.", said.append) == 2 and not said
    assert texts.passes(enough, "distill", 16, "More text.", said.append) == 2.5
    one_each = dataclasses.replace(enough, snippets=None)
    assert texts.passes(one_each, "finetune", 16, "More text.", said.append) == 2.5
    assert said == [
        "Warning: distill.snippets=20 asks for 20 snippets, and there are 16: distill.steps=10 trains on each 2.5 "
        "times in the mean. More text.",
        "Warning: finetune.snippets=null asks for 40 snippets, one for each step and place in the batch, and there are "
        "16: finetune.steps=10 trains on each 2.5 times in the mean. More text.",
    ]


@pytest.mark.parametrize("draw", ["hash", "cover"])
@pytest.mark.parametrize("general, wanted", [(0.0, 0), (0.25, 5), (0.5, 10)])
def test_the_teacher_reads_the_share_that_is_asked_for(
    corpus: Path, model: Path, tokens: Path, tmp_path: Path, draw: str, general: float, wanted: int
):
    out = tmp_path / "teacher"
    out.mkdir()
    cfg = TeacherConfig(200, 20, 600, states="none", draw=draw, general=general)
    teacher.build(cfg, {"model": model, "corpus": corpus, "tokens": tokens}, out, Job(RuntimeConfig(device="cpu")))
    drawn = states.read(out, "train").snippets
    assert len(drawn) == 20
    assert sum(snippet.document.startswith(("prose/", "code/")) for snippet in drawn) == wanted
    held_out = states.read(out, "general").snippets
    assert {snippet.document.split("/")[0] for snippet in held_out} == {"prose", "code"}


def test_fresh_text_of_fine_tuning_has_its_share_too(corpus: Path, model: Path):
    tokenizer, config = finetune.load_original_tokenizer(model), finetune.load_original_config(model)
    said: list[str] = []
    for general, wanted in ((0.0, 0), (0.25, 4)):
        text, had = finetune.fresh(corpus, tokenizer, [], 16, 200, config, general, said.append)
        found = text.snippets
        assert len(found) == 16 and had == wanted / 16
        assert sum(snippet.document.startswith(("prose/", "code/")) for snippet in found) == wanted
    assert not said, "as much as was asked for"
    text, had = finetune.fresh(corpus, tokenizer, [], 160, 200, config, 0.75, said.append)
    n = sum(snippet.document.startswith(("prose/", "code/")) for snippet in text.snippets)
    assert 0.3 < had == n / len(text.snippets) < 0.75
    n_wanted = round(3 * (len(text.snippets) - n))  # beside what there is of the domain
    assert n < n_wanted and said == [
        f"Warning: finetune.general=0.75 asks for {n_wanted} snippets of general text, and there are {n}: {had:.1%} of "
        "all. Raise corpus.general_max_bytes or corpus.general_train, or give corpus.general more documents."
    ]


def test_a_share_of_text_that_is_not_there_is_said_and_the_real_one_recorded(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    written, said = tmp_path / "written", list[str]()
    written.mkdir()
    write(written, "written", documents(3, start=400))
    for name, n_snippets, warnings in (("enough", 12, 0), ("short", 120, 2)):
        (out := tmp_path / name).mkdir()
        cfg = TeacherConfig(200, n_snippets, 600, states="none", general=0.5, self_written=0.25)
        inputs = {"model": model, "corpus": corpus, "written": written}
        teacher.build(cfg, inputs, out, Job(RuntimeConfig(device="cpu"), say=said.append))
        drawn = states.read(out, "train").snippets
        n_general = sum(snippet.document.startswith(("prose/", "code/")) for snippet in drawn)
        figures = read_summary(out)
        assert figures["teacher/train/general_share"] == n_general / len(drawn)
        assert figures["teacher/train/self_written_share"] == 3 / len(drawn)
        assert len(said) == warnings
        if name == "enough":
            assert (n_general, len(drawn)) == (6, 12)
    wanted = f"Warning: distill.general=0.5 asks for {len(drawn) - n_general} snippets of general text, and there are "
    assert said[0].startswith(f"{wanted}{n_general}: {n_general / len(drawn):.1%} of all. Raise corpus.general_max")
    assert said[1].startswith("Warning: distill.self_written=0.25 asks for 30 snippets that the original model wrote,")


def test_general_text_that_the_corpus_has_not_kept_is_an_error(corpus: Path, model: Path, tokens: Path, tmp_path: Path):
    for split in ("general_train", "general_code_train"):
        (corpus / f"{split}.jsonl").unlink()
    out = tmp_path / "teacher"
    out.mkdir()
    cfg = TeacherConfig(200, 20, 600, states="none", general=0.2)
    with pytest.raises(
        ConfigError, match=r"^distill\.general=0\.2: the corpus has kept no general text.*general_train"
    ):
        teacher.build(cfg, {"model": model, "corpus": corpus}, out, Job(RuntimeConfig(device="cpu")))
    assert len(read_documents(corpus, "general")) == 2
