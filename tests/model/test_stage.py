"""Where models come from and how they are read again."""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BertConfig, PreTrainedModel, T5Config
from transformers.utils import logging

from kldistill.model import stage as model_stage
from kldistill.model import tiny
from kldistill.model.config import HfModelConfig, SmolLM2Config, TinyModelConfig
from kldistill.model.hub import hf, identity
from kldistill.model.load import check_causal, load_original, load_original_tokenizer, old_size, read_facts
from kldistill.runtime.errors import ModelError
from kldistill.runtime.hub_errors import HTTP_ERROR
from kldistill.runtime.job import Job
from tests.helpers.artifacts import FAMILIES, MakeModel

ENCODERS = ["bert", "roberta", "electra", "megatron-bert"]
TEXT = 'def attention_mask(self, x1=123):\n\treturn "héllo 你"  # ok'


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_family_is_built_as_asked(family: str, tied: bool, tiny_model: MakeModel) -> None:
    folder = tiny_model(family, tied=tied)
    model, tokenizer = load_original(folder), load_original_tokenizer(folder)
    assert model.config.model_type.startswith(family)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    assert model.get_input_embeddings().weight.shape == (576, 32)  # 512 padded to a multiple of 96
    assert 1 + max(tokenizer.get_vocab().values()) == 512
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.decode(ids) == TEXT
    assert model(torch.tensor([ids])).logits.std() > 0.1
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert json.loads((folder / "summary.json").read_text())["model/tied"] == int(tied)


def test_the_same_settings_give_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        model_stage.build(TinyModelConfig(family="gemma3", seed=seed), {}, tmp_path / name, Job())
    same = [(tmp_path / "a" / name).read_bytes() for name in ("model.safetensors", "tokenizer.json", "model.json")]
    assert same == [(tmp_path / "b" / n).read_bytes() for n in ("model.safetensors", "tokenizer.json", "model.json")]
    assert same[0] != (tmp_path / "c" / "model.safetensors").read_bytes()


def test_transformers_draws_no_bars_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.enable_progress_bar()
    model_stage.build(TinyModelConfig(), {}, tmp_path, Job())
    load_original(tmp_path)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled(), "what the user has chosen stays"


@pytest.mark.parametrize("kind", ["gpt2", "smollm", "llama3", "qwen2", "llama2", "gemma"])
def test_every_kind_of_tokenizer_round_trips(kind: str, tiny_model: MakeModel) -> None:
    tokenizer = load_original_tokenizer(tiny_model(tokenizer=kind, vocab_size=640))
    assert len(tokenizer) == 640
    for text in (TEXT, "  1 12  x", "\n\n  a\r\n", "日本"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_smollm_cuts_single_digits_before_anything_else(tiny_model: MakeModel) -> None:
    tokenizer = load_original_tokenizer(tiny_model(tokenizer="smollm"))
    assert tokenizer.tokenize("  1 12") == ["ĠĠ", "1", "Ġ", "1", "2"]


def test_a_vocabulary_that_the_text_cannot_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vocab_size.*below"):
        tiny.build(tmp_path, vocab_size=90_000)


def test_hf_points_to_a_local_folder_and_copies_nothing(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("qwen3", tied=False)
    model_stage.build(HfModelConfig(path=str(source), dtype="bfloat16", license="mit"), {}, tmp_path, Job())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "summary.json"]
    facts = read_facts(tmp_path)
    assert (facts["path"], facts["name"], facts["license"]) == (str(source.resolve()), source.name, "mit")
    model = load_original(tmp_path)
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.lm_head.weight, load_original(source).lm_head.weight.bfloat16())
    assert load_original_tokenizer(tmp_path).get_vocab() == load_original_tokenizer(source).get_vocab()


def test_the_card_beside_a_local_model_names_its_licence(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_model(), tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# x\n")
    assert hf(tmp_path, path=str(source))["license"] == "cc-by-4.0"


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"model\.path='{path}'"):
        model_stage.build(HfModelConfig(path=path), {}, tmp_path, Job())


def test_a_hub_id_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nobody/nothing"):
        model_stage.build(HfModelConfig(path="nobody/nothing", local_files_only=True), {}, tmp_path, Job())


def test_a_hub_that_does_not_answer_leaves_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's own error of a connection that is refused, whatever library it speaks with."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9"))
    with pytest.raises(HTTP_ERROR):
        huggingface_hub.HfApi().model_info("nobody/nothing", timeout=10)
    assert identity(path="nobody/nothing")["commit"] is None
    assert not huggingface_hub.is_offline_mode()
    cached = tmp_path / "models--nobody--nothing" / "snapshots" / ("a" * 40) / "config.json"
    monkeypatch.setattr("kldistill.model.hub.try_to_load_from_cache", lambda *_, **__: str(cached))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with caplog.at_level("WARNING"):
        assert identity(path="nobody/nothing")["commit"] == "a" * 40
    assert "nobody/nothing is taken from the local cache" in caplog.text
    assert huggingface_hub.is_offline_mode(), "it would ask again, and wait, for each file in every stage"
    assert os.environ["HF_HUB_OFFLINE"] == "1", "nor do the processes that this one starts"


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        hf(tmp_path, path=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(d_model=8), "encoder-decoder"),
        (AutoConfig.for_model("vit"), r"no causal language model of type 'vit'\.$"),
        (AutoConfig.for_model("llava"), r"of type 'llava'.*text_config: llama.* Save that one .*'llama'.* model\.path"),
        (AutoConfig.for_model("qwen2_vl"), r"of type 'qwen2_vl'.*several parts \(.*vision_config: .*text_config: "),
        (AutoConfig.for_model("clip"), r"of type 'clip'.* of which kldistill extends none"),
        *((AutoConfig.for_model(kind), f"{kind} with is_decoder=false .* is an encoder") for kind in ENCODERS),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_models_that_are_not_causal_are_refused(config: BertConfig, reason: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=reason):
        hf(tmp_path, path=str(tmp_path))


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 32, "initializer_range": 0.2,
}  # fmt: skip
GEMMA = {"head_dim": 8, "num_key_value_heads": 2}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 64}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "one_way", "both_ways"),
    [
        *((kind, {"is_decoder": True}, {}) for kind in [*ENCODERS, "bert-generation"]),
        ("gemma3_text", GEMMA, {**GEMMA, "use_bidirectional_attention": True}),
        ("xlm", {**XLM, "causal": True}, XLM),
        ("mamba", {"state_size": 4}, None),
        ("mixtral", {"num_key_value_heads": 2}, None),
    ],
)
def test_a_model_that_looks_ahead_is_told_by_what_it_does(
    family: str, one_way: dict[str, Any], both_ways: dict[str, Any] | None, dtype: str
) -> None:
    """Whatever its config says: a family may look one way or both."""

    def made(settings: dict[str, Any]) -> PreTrainedModel:
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **SMALL, **settings)
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()

    check_causal(made(one_way), "here")
    if both_ways is not None:
        with pytest.raises(
            ModelError, match=rf"^here: what this model \({family}\) predicts after .* tokens behind it"
        ):
            check_causal(made(both_ways), "here")


def change_json(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def drop(weights: Path, part: str) -> None:
    save_file({k: v for k, v in load_file(weights).items() if part not in k}, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda f: drop(f / "model.safetensors", "lm_head"),
            r"1 of the weights .* are missing, such as lm_head\.weight",
        ),
        (lambda f: drop(f / "model.safetensors", "layers.1."), r"9 of the weights .* such as model\.layers\.1\."),
        (lambda f: os.truncate(f / "model.safetensors", 20_000), "the model cannot be read: SafetensorError"),
        (lambda f: (f / "model.safetensors").unlink(), r"the model cannot be read: .*no file named model\.safetensors"),
        (lambda f: change_json(f / "config.json", intermediate_size=128), "the model cannot be read: RuntimeError"),
        (
            lambda f: change_json(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
            "the model cannot be read: .*GPTQ",
        ),
        (lambda f: change_json(f / "tokenizer.json", pre_tokenizer={"type": "New"}), "the tokenizer cannot be read"),
        (lambda f: os.truncate(f / "tokenizer.json", 9_000), "the tokenizer cannot be read"),
        (lambda f: os.truncate(f / "config.json", 99), "the model config cannot be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    damage: Callable[[Path], object], reason: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    """transformers draws weights that are missing at random, and raises what it likes for files that are damaged."""
    folder = shutil.copytree(tiny_model(tied=False), tmp_path / "broken")
    damage(folder)
    with pytest.raises(ModelError, match=f"^{re.escape(str(folder))}: .*{reason}"):
        model_stage.build(HfModelConfig(path=str(folder)), {}, tmp_path, Job())
        load_original(tmp_path)


def test_a_tied_model_has_no_head_in_its_file(tiny_model: MakeModel) -> None:
    folder = tiny_model(tied=True)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    load_original(folder)


def test_a_slow_tokenizer_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model(), tmp_path / "slow")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    with pytest.raises(ModelError, match=r"CanineTokenizer.*tokenizer\.json"):
        load_original_tokenizer(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model(), tmp_path / "small")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(500)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"ids up to 511.*500 rows"):
        model_stage.build(HfModelConfig(path=str(folder)), {}, tmp_path, Job())


def test_a_tokenizer_without_a_beginning_is_refused_at_once(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model(), tmp_path / "bare")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = tokenizer.bos_token
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ModelError, match=rf"neither a BOS nor an EOS: say which one with model.first_token \(.*{special}"
    ):
        model_stage.build(HfModelConfig(path=str(folder)), {}, tmp_path, Job())
    model_stage.build(HfModelConfig(path=str(folder), first_token=special), {}, tmp_path, Job())
    assert load_original_tokenizer(tmp_path).bos_token == special


def test_identity_follows_content(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model(), tmp_path / "model")
    cfg = HfModelConfig(path=str(folder))
    before = model_stage.identity(cfg)
    assert before == model_stage.identity(cfg)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert model_stage.identity(cfg) != before
    assert model_stage.identity({"_target_": "kldistill.model.smollm2.smollm2_135m"}) == model_stage.identity(
        SmolLM2Config()
    )
    assert "sha256" in model_stage.identity(SmolLM2Config())
    assert model_stage.identity(HfModelConfig(path="nobody/nothing", local_files_only=True))["commit"] is None


def test_results_in_the_models_folder_make_no_other_model(tiny_model: MakeModel, tmp_path: Path) -> None:
    """``cd MODEL; kldistill model.path=.``: or the same command would build all anew, each time."""
    folder = shutil.copytree(tiny_model(), tmp_path / "model")
    before = identity(path=str(folder))
    for name in ("artifacts/model/1.lock", "artifacts/model/1/model.json", "runs/default/a/.hydra/config.yaml",
                 "runs/default/a/run.json", "runs/default/a/kldistill.log", "runs/default/report.html"):  # fmt: skip
        (folder / "outputs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "outputs" / name).write_text("{}")
    assert identity(path=str(folder)) == before
    (folder / "outputs" / "code.py").write_text("mine")
    assert identity(path=str(folder)) != before


def test_special_tokens_beyond_the_matrix_get_the_row_of_padding(tmp_path: Path) -> None:
    """Gemma 3 1B and 270M: the tokenizer has a token for images, numbered after the last row of the matrix."""
    source, out = tmp_path / "gemma", tmp_path / "model"
    source.mkdir(), out.mkdir()
    tiny.build(source, family="gemma3", pad_to=1)
    before = load_plainly(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(source)
    said: list[str] = []
    model_stage.build(HfModelConfig(path=str(source)), {}, out, Job(say=said.append))
    assert any("1 special tokens have no row" in text for text in said)
    model, ids = load_original(out), torch.tensor([tokenizer.encode(TEXT, add_special_tokens=False)])
    assert old_size(load_original_tokenizer(out)) == 513 == model.config.vocab_size
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert torch.equal(model(ids).logits[..., :512], before(ids).logits)
    assert torch.equal(model(ids).logits[..., 512], before(ids).logits[..., 0])
    tokenizer.add_tokens(["no special one"])
    tokenizer.save_pretrained(source)
    with pytest.raises(ModelError, match=r"ids up to 513.*512 rows"):
        model_stage.build(HfModelConfig(path=str(source)), {}, out, Job())


def load_plainly(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder).eval()
