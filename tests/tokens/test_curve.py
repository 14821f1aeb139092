"""Tokens saved against the number of new tokens: the figures of real runs of so many, and where the knee is."""

import json
from pathlib import Path

import pytest

from kldistill.model import tiny
from kldistill.model.load import old_size
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.job import Job
from kldistill.tokens import stage as tokens_stage
from kldistill.tokens.artifact import read_new_tokens
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.curve import Curve, as_table, curves, knee, sizes
from kldistill.tokens.definition import definition
from kldistill.tokens.encoding import reader
from kldistill.tokens.extension import extend_by, rules_of

TEXTS = tiny.training_text()[1:3]


def test_the_curve_is_what_a_run_of_so_many_tokens_saves() -> None:
    tokenizer = tiny.byte_level("gpt2", 420)
    spec, size = definition(tokenizer), old_size(tokenizer)
    found = curves(
        spec,
        size,
        TEXTS,
        lambda wide: rules_of(TokensConfig(), tokenizer, spec, size, wide),
        limit=200,
        min_count=4,
        min_documents=2,
        workers=1,
    )
    assert list(found) == ["word", "identifier", "dotted", "qualified", "line"]
    for boundary, curve in found.items():
        cfg = TokensConfig(n_new=100, boundary=boundary)
        extension = extend_by(cfg, tokenizer, TEXTS, Job())
        old, new = (
            sum(len(reader(which).encode(text, add_special_tokens=False).ids) for text in TEXTS)
            for which in (spec, extension.spec)
        )
        assert curve.tokens == old
        assert curve.share(100) == pytest.approx(1 - new / old)
    assert found["dotted"].share(200) > found["identifier"].share(200) > found["word"].share(200)
    columns, rows = as_table(found, 200, 1_000_000)
    assert columns == ["new tokens", *(f"saved, {boundary}" for boundary in found), "rows, MB"]
    assert [row[0] for row in rows] == sizes(200) == [64, 128, 200]
    assert rows[1][1:] == [*(f"{curve.share(128):.1%}" for curve in found.values()), 128.0]


def test_the_knee_is_the_last_token_that_saves_one_in_100_000() -> None:
    assert knee(Curve(1_000_000, [500, 100, 10, 9, 9])) == 3
    assert knee(Curve(1_000_000, [500, 9, 10, 9])) == 3, "a later one may save more, where prefixes come first"
    assert knee(Curve(1_000_000, [9])) == 1 and knee(Curve(10, [])) == 0


def test_the_stage_takes_the_knee_and_shows_the_curve(tiny_model, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "tokens.partial"
    corpus.mkdir(), out.mkdir()
    for split, text in (("train", TEXTS[0] * 4), ("validation", TEXTS[1]), ("test", TEXTS[1])):
        (corpus / f"{split}.jsonl").write_text(json.dumps({"id": split, "text": text}) + "\n")
    said, tables = list[str](), dict[str, list]()
    job = Job(say=said.append, table=lambda name, columns, rows: tables.update({name: [columns, *rows]}))
    cfg = TokensConfig(n_new="auto", boundary="identifier", curve=128)
    tokens_stage.build(cfg, {"model": tiny_model("gpt2"), "corpus": corpus}, out, job)
    content = json.loads((out / "curve.json").read_text())
    n = len(read_new_tokens(out))
    assert any(f"auto takes {n:,}" in text for text in said) and n > 128
    assert content["row_bytes"] == 4 * 32 and [point[0] for point in content["saved"]["word"]] == [64, 128]
    assert len(tables["tokens_saved"]) == 3 and len(tables["new_tokens"]) == 16
    assert any("train text's tokens" in text for text in said), "the table says of which text it is"
    assert any(text.endswith("tokens/tokenizer") for text in said), "where it will lie"
    cut = [text for text in said if "held-out line" in text]
    assert len(cut) == 2 and cut[0].split(": ", 1)[1].replace("|", "") == cut[1].split(": ", 1)[1].replace("|", "")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", True])
def test_other_numbers_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"tokens\.n_new"):
        TokensConfig(n_new=wrong)
