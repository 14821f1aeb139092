"""Held-out lines completed by both models."""

import json
from pathlib import Path

from kldistill.corpus.documents import read_documents
from kldistill.evaluation.generation.batching import Completion
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.interpret.completions import draw, write, written
from kldistill.model.load import load_original_tokenizer
from kldistill.runtime.job import Job
from kldistill.tokens.pieces import PieceTable
from kldistill.training.load import load_tokenizer
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.interpreted import write_corpus, write_rows


def test_lines_are_completed_and_their_tokens_told_apart(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model = tiny_model()
    tokens = fake_tokens(model)
    documents = read_documents(write_corpus(tmp_path), "test")
    extended, size = load_tokenizer(model, tokens), PieceTable.load(tokens).old_size
    lines = draw(documents, extended, size, 3, seed=0)
    assert 1 <= len(lines) <= 3 and len({line.document for line in lines}) == len(lines)
    assert draw(documents, extended, size, 3, seed=0) == lines
    for line in lines:
        text = next(document.text for document in documents if document.id == line.document)
        assert line.prompt.splitlines()[-1] + line.reference in text.splitlines()
    inputs = {"model": model, "rows": write_rows(model, tmp_path / "rows", 24, seed=1)}
    tokenizers = {"original": load_original_tokenizer(model), "extended": extended}
    tables = []
    job = Job(table=lambda *table: tables.append(table))
    write(tmp_path / "completions.jsonl", lines, inputs, tokenizers, size, job)
    records = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [record["reference"] for record in records] == [line.reference for line in lines]
    for record in records:
        assert [answer["model"] for answer in record["answers"]] == ["original", "extended"]
        original, _ = record["answers"]
        assert not any(token["new"] for token in original["tokens"])
    ((name, columns, rows),) = tables
    assert name == "samples" and columns[2:] == [
        "in the text",
        *(f"{m}{t}" for m in tokenizers for t in ("", " tokens")),
    ]
    for record, row in zip(records, rows, strict=True):
        assert row[:3] == [record["document"], record["prompt"].splitlines()[-1].strip(), record["reference"]]
        for answer, text, count in zip(record["answers"], row[3::2], row[4::2], strict=True):
            written_text = "".join(token["text"] for token in answer["tokens"])
            assert text == written_text, "the console spells what a terminal obeys, not its callers"
            new = sum(token["new"] for token in answer["tokens"])
            assert count == f"{len(answer['tokens'])} ({new})" if new else f"{len(answer['tokens'])}"


def test_what_spells_the_prompt_again_or_lies_beyond_the_cut_is_not_shown(
    tiny_model: MakeModel, fake_tokens: MakeTokens
) -> None:
    model = tiny_model()
    spelling = Spelling(load_tokenizer(model, fake_tokens(model)))
    size = PieceTable.load(fake_tokens(model)).old_size
    ids = spelling.tokenizer.backend_tokenizer.encode("self.model", add_special_tokens=False).ids
    whole = Completion("", token_ids=ids, healed=0, n_bytes=10)
    assert "".join(token.text for token in written(whole, spelling, size)) == "self.model"
    cut = Completion("", token_ids=ids, healed=5, n_bytes=3)
    assert "".join(token.text for token in written(cut, spelling, size)) == "mod"
