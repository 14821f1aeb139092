"""The init stage: methods for input and output, tied and untied models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kldistill.model.load import load_original
from kldistill.rows import inits
from kldistill.rows import stage as rows_stage
from kldistill.rows.config import InitConfig
from kldistill.rows.rows import Rows
from kldistill.runtime.errors import ConfigError, ModelError
from kldistill.runtime.job import Job
from kldistill.tokens.artifact import NewToken, read_new_tokens, read_vocabulary, write_tables
from tests.helpers.artifacts import MakeModel, MakeTokens


def node(name: str, **settings: Any) -> dict[str, Any]:
    return {"_target_": f"kldistill.rows.inits.{name}", **settings}


def run(cfg: InitConfig, model: Path, tokens: Path, out: Path) -> Rows:
    out.mkdir(exist_ok=True)
    rows_stage.build(cfg, {"model": model, "tokens": tokens}, out, Job())
    return Rows.load(out)


@pytest.fixture
def tied(tiny_model: MakeModel) -> Path:
    return tiny_model("llama")


@pytest.fixture
def untied(tiny_model: MakeModel) -> Path:
    return tiny_model("llama", tied=False)


def pieces_of(tokens: Path) -> list[list[int]]:
    return [token.pieces for token in read_new_tokens(tokens)]


def test_untied_input_and_output_come_from_their_own_matrix(
    untied: Path, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    tokens = fake_tokens(untied)
    rows = run(InitConfig(node("last_piece"), node("subtoken_mean")), untied, tokens, tmp_path)
    model, pieces = load_original(untied), pieces_of(tokens)
    assert torch.equal(rows.input, model.get_input_embeddings().weight[[p[-1] for p in pieces]])
    expected = torch.stack([model.get_output_embeddings().weight[p].mean(0) for p in pieces])
    assert rows.output is not None
    assert torch.allclose(rows.output, expected, atol=1e-6)
    assert rows.made_by == {"input": "last_piece", "output": "subtoken_mean"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["init/tied"] == 0
    assert summary["init/old_input_norm"] == pytest.approx(
        float(model.get_input_embeddings().weight[:512].norm(dim=1).median())
    )


def test_padding_rows_are_no_old_rows(untied: Path, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    rows = run(InitConfig(node("mean"), node("mean")), untied, fake_tokens(untied), tmp_path)
    weight = load_original(untied).get_input_embeddings().weight
    assert torch.allclose(rows.input[0], weight[:512].mean(0), atol=1e-7)
    assert not torch.allclose(rows.input[0], weight.mean(0), atol=1e-7)


def test_tied_rows_are_the_mean_of_two_methods(tied: Path, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    tokens = fake_tokens(tied)
    rows = run(InitConfig(node("last_piece"), node("subtoken_mean")), tied, tokens, tmp_path)
    weight = load_original(tied).get_input_embeddings().weight
    expected = torch.stack([(weight[p[-1]] + weight[p].mean(0)) / 2 for p in pieces_of(tokens)])
    assert rows.tied
    assert torch.allclose(rows.input, expected, atol=1e-6)


def test_one_random_method_for_tied_rows_is_one_draw(tied: Path, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    tokens = fake_tokens(tied)
    rows = run(InitConfig(node("random"), node("random"), seed=5), tied, tokens, tmp_path / "a")
    weight = load_original(tied).get_input_embeddings().weight[:512]
    expected = inits.random(weight, pieces_of(tokens), torch.Generator().manual_seed(5))
    assert torch.equal(rows.input, expected)
    apart = run(InitConfig(node("random"), node("random"), tie=False, seed=5), tied, tokens, tmp_path / "b")
    assert torch.equal(apart.input, expected)
    assert not torch.equal(apart.head, expected)


def test_a_tied_model_is_untied_on_request(tied: Path, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    tokens = fake_tokens(tied)
    rows = run(InitConfig(node("first_piece"), node("last_piece"), tie=False), tied, tokens, tmp_path)
    weight = load_original(tied).get_input_embeddings().weight
    assert not rows.tied
    assert torch.equal(rows.input, weight[[p[0] for p in pieces_of(tokens)]])
    assert torch.equal(rows.head, weight[[p[-1] for p in pieces_of(tokens)]])


def test_an_untied_model_cannot_be_tied(untied: Path, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init\.tie=true"):
        run(InitConfig(node("mean"), node("mean"), tie=True), untied, fake_tokens(untied), tmp_path)


@pytest.mark.parametrize("tie", [None, False])
def test_calibrated_rows_have_the_median_norm(
    tie: bool | None, tied: Path, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    cfg = InitConfig(node("subtoken_mean"), node("first_piece"), tie=tie, calibrate=True)
    rows = run(cfg, tied, fake_tokens(tied), tmp_path)
    median = load_original(tied).get_input_embeddings().weight[:512].norm(dim=1).median()
    assert torch.allclose(rows.input.norm(dim=1), median)
    assert torch.allclose(rows.head.norm(dim=1), median)


def test_settings_of_a_method_reach_it_and_its_name(untied: Path, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    tokens = fake_tokens(untied)
    cfg = InitConfig(node("weighted_mean", rate=50.0), node("weighted_mean", rate=-50.0))
    rows = run(cfg, untied, tokens, tmp_path)
    weight = load_original(untied).get_input_embeddings().weight
    assert torch.allclose(rows.input, weight[[p[-1] for p in pieces_of(tokens)]])
    assert rows.made_by["output"] == "weighted_mean(rate=-50.0)"


def test_added_tokens_want_a_method_without_pieces(tied: Path, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    old_size = read_vocabulary(fake_tokens(tied)).old_size
    write_tables(tokens, [NewToken(old_size + i, str(i), str(i), [], 1) for i in range(2)], old_size, None)
    with pytest.raises(ConfigError, match="AddedTokens"):
        run(InitConfig(node("mean"), node("last_piece")), tied, tokens, tmp_path / "a")
    assert run(InitConfig(node("mean"), node("random")), tied, tokens, tmp_path / "b").input.shape == (2, 32)


def test_only_this_package_gives_methods(tied: Path, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init\.output\._target_"):
        run(InitConfig(node("mean"), {"_target_": "torch.zeros"}), tied, fake_tokens(tied), tmp_path)


def test_a_model_that_looks_ahead_is_refused_before_rows_are_made(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    source = tiny_model("gemma3")
    model = shutil.copytree(source, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "use_bidirectional_attention": True}))
    cfg = InitConfig(node("mean"), node("mean"))
    run(cfg, source, fake_tokens(source), tmp_path / "out")
    with pytest.raises(ModelError, match=r"gemma3_text\) predicts after a token depends on the tokens behind it"):
        run(cfg, model, fake_tokens(source), tmp_path / "other")
