"""scripts/measure_tokenizers.py: what new tokens save with a tokenizer, a record each; the page's table is theirs."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kldistill.model import tiny
from kldistill.model.load import load_original_tokenizer
from kldistill.tokens.encoding import text_ids
from tests.helpers import scripts
from tests.helpers.artifacts import MakeModel
from tests.helpers.interpreter import python
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return scripts.script("measure_tokenizers")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, documents = tmp_path_factory.mktemp("corpus"), tiny.training_text()
    for split, part in (("train", [documents[0][:40_000]]), ("test", documents[4:5])):
        (out / f"{split}.jsonl").write_text(
            "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(part))
        )
    return out


@pytest.mark.parametrize("kind", ["llama3", "llama2"])
def test_the_figures_are_those_of_the_extended_tokenizer(
    kind: str, script: ModuleType, corpus: Path, tiny_model: MakeModel
) -> None:
    folder = tiny_model("llama", tokenizer=kind)
    train, test = script.texts_of(corpus, "train"), script.texts_of(corpus, "test")
    record = script.measure(folder / "tokenizer.json", train, test, (16, 64))
    assert record["saved"]["64"] > record["saved"]["16"] > 0
    if kind == "llama3":
        assert script.measure(folder / "tokenizer.json", train, test, (16,))["saved"]["16"] == record["saved"]["16"]
    assert (record["boundary"], record["refused"], record["added"]) == ("qualified", [], 64)
    assert set(record["faults"].values()) == {0}
    old = sum(map(len, text_ids(load_original_tokenizer(folder), test)))
    size = sum(len(text.encode()) for text in test)
    assert record["old_per_1000_bytes"] == pytest.approx(1000 * old / size, abs=0.05)
    # The seconds are rounded to a tenth, which a quick machine need not take.
    assert record["memory_mb"] > 50 and record["seconds"] >= 0


def test_a_tokenizer_that_cannot_be_extended_is_a_record_too(script: ModuleType, corpus: Path, tmp_path: Path) -> None:
    pieces = [["<unk>", 0.0], ["▁a", -1.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    steps = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"))
    spec = {"version": "1.0", "added_tokens": [], "model": model, **steps}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    record = script.measure(tmp_path / "tokenizer.json", ["a"], ["a"])
    assert record["error"].startswith("This is a Unigram tokenizer")
    assert "| T5 | 2 |  | refused |" in script.table([{"name": "T5", **record}])


def test_records_are_kept_and_the_table_is_written_between_its_marks(
    script: ModuleType, corpus: Path, tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, records, page = tiny_model("llama", tokenizer="gpt2"), tmp_path / "all.jsonl", tmp_path / "page.md"
    page.write_text(f"above\n{script.BEGIN}an old table\n{script.END}below\n")
    where = ["--corpus", str(corpus), "--records", str(records), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["measure", *where, f"one={folder}"])
    monkeypatch.setattr(sys, "executable", python())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script.main()
    (first,) = [json.loads(line) for line in records.read_text().splitlines()]
    assert (first["name"], first["boundary"]) == ("one", "qualified")

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("a record that is there is kept")

    monkeypatch.setattr(script.subprocess, "run", measured_again)
    script.main()
    assert page.read_text() == f"above\n{script.BEGIN}{script.table([first])}{script.END}below\n"
    (corpus_two := tmp_path / "other").mkdir()
    for split in ("train", "test"):
        (corpus_two / f"{split}.jsonl").write_text((corpus / f"{split}.jsonl").read_text() * 2)
    monkeypatch.setattr(sys, "argv", ["measure", *where, "--corpus", str(corpus_two), f"one={folder}"])
    with pytest.raises(AssertionError, match="is kept"):  # another text is another record
        script.main()


def test_the_pages_have_the_tables_of_the_committed_records(script: ModuleType) -> None:
    for file, page, least in (
        (script.RECORDS, script.PAGE, 12),
        (script.RECORDS.with_name("boundaries.jsonl"), script.DOCS / "choosing.md", 6),
    ):
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(records) >= least
        assert f"{script.BEGIN}{script.table(records)}{script.END}" in page.read_text(encoding="utf-8")
