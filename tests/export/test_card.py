"""The model card: tables of what was measured, settings from the artifacts' records, and no more than is known."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from kldistill.evaluation.table import markdown_table
from kldistill.export import card
from kldistill.rows.rows import Rows
from kldistill.runtime import artifacts
from kldistill.tokens.artifact import NewToken, write_tables

FACTS = {"name": "M-135M", "base_model": "org/M-135M", "license": "apache-2.0"}


def rates(model: str, **values: float) -> dict[str, float]:
    """Figures of one model with intervals of a tenth to both sides."""
    found: dict[str, float] = {}
    for name, value in values.items():
        key = f"eval/{model}/{name.replace('__', '/')}"
        found |= {key: value, f"{key}/low": value - 0.1, f"{key}/high": value + 0.1}
    return found


FIGURES = {
    "tokens/saved": 0.168,
    "eval/original/domain/tokens_per_1000_bytes": 300.0,
    "eval/distilled/domain/tokens_per_1000_bytes": 249.0,
    "eval/original/humaneval/tasks": 164.0,
    "eval/distilled/humaneval/tasks": 164.0,
    **rates("original", domain__bits_per_byte=0.985, general__bits_per_byte=1.25),
    **rates("distilled", domain__bits_per_byte=0.974, general__bits_per_byte=1.26, domain__kl_to_teacher=0.294),
    **{f"{key.replace('pass1', 'pass@1')}": value for key, value in rates("original", humaneval__pass1=0.2).items()},
    **{f"{key.replace('pass1', 'pass@1')}": value for key, value in rates("distilled", humaneval__pass1=0.21).items()},
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """The least that a card is made of."""
    made = {name: tmp_path / name for name in ("out", "tokens", "rows")}
    for folder in made.values():
        folder.mkdir()
    (made["out"] / "config.json").write_text("{}")
    write_tables(made["tokens"], [NewToken(49_152 + i, "ab", "ab", [3, 4], 1) for i in range(512)], 49_152, None)
    Rows(torch.zeros(2, 4), torch.zeros(2, 4), {"input": "last_piece", "output": "subtoken_mean"}).save(made["rows"])
    return made


def text_of(folders: dict[str, Path], figures: dict[str, float] | None = None, license: str | None = "mit") -> str:
    return card.text_of(folders["out"], FACTS, {k: v for k, v in folders.items() if k != "out"}, figures or {}, license)


def row_of(text: str, name: str) -> list[str]:
    """The cells of a table's row."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_header_and_facts(folders: dict[str, Path]) -> None:
    text = text_of(folders, FIGURES)
    data = ModelCard(text).data
    assert (data.base_model, data.license, data.library_name) == ("org/M-135M", "mit", "transformers")
    assert "vocabulary-extension" in (data.tags or [])
    assert "# M-135M with 512 new tokens" in text
    assert "from 49,152 to 49,664 tokens; they save 16.8% of the tokens of held-out domain text." in text
    assert "ids 49,152 to 49,663" in text
    assert "[M-135M](https://huggingface.co/org/M-135M)" in text
    assert "last_piece (input) and subtoken_mean (output)" in text
    assert "\n\n\n" not in text


def test_tables_of_figures(folders: dict[str, Path]) -> None:
    text = text_of(folders, FIGURES)
    assert row_of(text, "original")[1:5] == ["300.0", "–", "0.985 [0.89,1.08]", "1.250 [1.15,1.35]"]
    assert row_of(text, "distilled")[1:] == [
        "249.0",
        "17.0%",
        "0.974 [0.87,1.07]",
        "1.260 [1.16,1.36]",
        "0.294 [0.19,0.39]",
        "–",
    ]
    assert row_of(text, "suite") == ["suite", "figure", "original", "distilled"]
    assert row_of(text, "humaneval") == ["humaneval", "pass@1", "0.200 [0.10,0.30]", "0.210 [0.11,0.31]"]
    assert text.count("## Figures") == 1
    assert "figures.json" in text


def test_without_figures_or_licence_nothing_is_made_up(folders: dict[str, Path]) -> None:
    text = text_of(folders, license=None)
    assert ModelCard(text).data.license is None
    assert "Licence: not known" in text
    assert "to 49,664 tokens.\n" in text
    for absent in ("Figures", "figures.json", "| setting", "gguf", "tokenization_extended"):
        assert absent not in text


def test_tasks_alone(folders: dict[str, Path]) -> None:
    figures = {key: value for key, value in FIGURES.items() if "humaneval" in key}
    text = text_of(folders, figures)
    assert text.count("## Figures") == 1 and "Held-out text" not in text
    assert row_of(text, "humaneval")[1] == "pass@1"


@pytest.mark.parametrize(
    ("summary", "method", "wanted"),
    [
        (None, None, "nothing"),
        ({"init/tied": 1}, None, "nothing"),
        ({"distill/seconds": 9.0}, None, "the new rows alone, by self-distillation;"),
        ({"distill/seconds": 9.0}, "lora", "a low-rank update of the body \\(merged\\), together"),
        ({"finetune/seconds": 9.0}, "lora", "low-rank update of the body|low-rank update \\(merged\\)"),
        ({"finetune/seconds": 9.0}, "full", "then all weights by fine-tuning"),
        ({"finetune/seconds": 9.0}, "rows", "by self-distillation and then by fine-tuning"),
    ],
)
def test_what_was_trained(
    summary: dict[str, float] | None, method: str | None, wanted: str, folders: dict[str, Path]
) -> None:
    if summary is not None:
        (folders["rows"] / "summary.json").write_text(json.dumps(summary))
    if method is not None:
        (folders["rows"] / "body.json").write_text(json.dumps({"method": method}))
    line = next(line for line in text_of(folders).splitlines() if line.startswith("- Trained:"))
    assert re.search(wanted, line)


def test_what_the_folder_holds_besides(folders: dict[str, Path]) -> None:
    (folders["out"] / "model.gguf").touch()
    (folders["out"] / "tokenization_extended.py").touch()
    text = text_of(folders)
    assert "`model.gguf` is the same model for llama.cpp" in text
    assert "`trust_remote_code` off for the tokenizer" in text
    assert "no code of the model's own" in text and "trust_remote_code=True" not in text
    (folders["out"] / "config.json").write_text('{"auto_map": {}}')
    text = text_of(folders)
    assert 'from_pretrained("path/to/this/folder", trust_remote_code=True)' in text
    assert "no code of the model's own" not in text


def test_added_tokens_have_no_exact_pieces(folders: dict[str, Path]) -> None:
    assert "one fixed sequence of old tokens" in text_of(folders)
    write_tables(folders["tokens"], [NewToken(49_152, "ab", "ab", [], 1)], 49_152, None)
    text = text_of(folders)
    assert "one fixed sequence of old tokens" not in text and "added tokens" in text


def test_settings_come_from_the_records_and_name_no_path(folders: dict[str, Path], tmp_path: Path) -> None:
    configs = {
        "tokens": {"method": "list", "boundary": "word", "n_new": None, "terms": "/home/me/secret.txt"},
        "distill": {
            "steps": 150,
            "lr": 0.004,
            "loss": {"name": "kl_ce", "terms": {"kl": {"weight": 1.0}, "ce": {"weight": 0.3}}},
        },
        "finetune": {"method": "lora", "lora": {"r": 16}, "train_rows": False},
    }
    store = artifacts.Store(tmp_path / "store")
    made = []
    for stage, config in configs.items():
        made.append(store.build(stage, "0" * 16, lambda out: (out / "x").touch(), meta={"config": config}))
    rows = dict(card.settings([tmp_path, *made]))
    assert rows == {
        "`tokens.method`": "`list`",
        "`tokens.boundary`": "`word`",
        "`loss`": "`kl_ce = 0.3 ce + 1 kl`",
        "`distill.steps`": "`150`",
        "`distill.lr`": "`0.004`",
        "`finetune.method`": "`lora`",
        "`finetune.lora.r`": "`16`",
        "`finetune.train_rows`": "`false`",
    }
    text = card.text_of(folders["out"], FACTS, {**folders, "distill": made[1]}, {}, None)
    assert row_of(text, "`loss`")[1] == "`kl_ce = 0.3 ce + 1 kl`"
    assert "secret" not in text


def test_cells_cannot_break_a_table() -> None:
    assert markdown_table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"
