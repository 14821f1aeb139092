"""A GGUF file of an extended model: read back through transformers, cut as llama.cpp cuts, or refused."""

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kldistill.export import gguf_file
from kldistill.model import tiny
from kldistill.model.load import load_original
from kldistill.rows.resize import extend
from kldistill.rows.rows import Rows
from kldistill.runtime.errors import ConfigError, ModelError
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.llama_cpp import LlamaCpp

# Family, tokenizer, tied, and llama.cpp's name of the splitting rule.
KINDS = [
    ("llama", "gpt2", True, "gpt-2"),
    ("llama", "smollm", False, "smollm"),
    ("llama", "llama3", True, "smaug-bpe"),
    ("qwen2", "qwen2", True, "qwen2"),
    ("qwen2", "qwen2", False, "qwen2"),
]
# Code the tokenizers were trained on, with new tokens in it, and all sorts besides.
PROSE = (
    "I'M sure they'Ll  say\tit's 'tween\r\n\r\n  naïve café, Ünïcödé — 日本語のテキスト; "
    "²½٣ 12345 👍🏽\u00a0x\u3000\n\n   end  "
)
CODE = "".join(tiny.training_text())[:200_000]


def make(family: str, kind: str, tied: bool, tiny_model: MakeModel, fake_tokens: MakeTokens) -> tuple:
    """An extended model with rows of its own, and the folder of its tokenizer."""
    folder = tiny_model(family, tokenizer=kind, tied=tied)
    model = load_original(folder)
    made = torch.randn(2, 24, model.config.hidden_size, generator=torch.Generator().manual_seed(5)) * 0.3
    extended = extend(model, Rows(made[0], None if tied else made[1]), 512)
    return extended, fake_tokens(folder) / "tokenizer"


def ids_of(folder: Path, text: str) -> list[int]:
    """What the run's own tokenizer makes of a text."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("family", "kind", "tied", "name"), KINDS)
def test_transformers_reads_back_the_same_ids_and_logits(
    family: str, kind: str, tied: bool, name: str, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model, tokens = make(family, kind, tied, tiny_model, fake_tokens)
    gguf_file.write(model, tokens, tmp_path / "model.gguf", name="a model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    text = CODE[4_000:24_000]
    if kind == "smollm":  # transformers 5 drops this rule's cut between digits; llama.cpp has it (see below)
        text = "".join(char for char in text if not char.isdigit())
    ids = ids_of(tokens, text)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert len({index for index in ids if index >= 512}) >= 10
    batch = torch.tensor([ids[:300], ids[300:600]])
    with torch.no_grad():
        expected, found = model(batch).logits, read(batch).logits
    assert found.shape[-1] == 536
    assert torch.equal(found, expected)
    assert (read.lm_head.weight is read.model.embed_tokens.weight) is tied
    assert tokenizer("a").input_ids == AutoTokenizer.from_pretrained(tokens)("a").input_ids  # begins alike
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


@pytest.mark.parametrize(("family", "kind", "tied", "name"), [kind for kind in KINDS if kind[2]] + [KINDS[1]])
def test_llama_cpp_would_cut_alike(
    family: str, kind: str, tied: bool, name: str, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model, tokens = make(family, kind, tied, tiny_model, fake_tokens)
    gguf_file.write(model, tokens, tmp_path / "model.gguf", name="a model")
    llama_cpp = LlamaCpp(tmp_path / "model.gguf")
    assert llama_cpp.name == name
    for text in (CODE, PROSE, f"<|im_end|>{PROSE}<|endoftext|>"):
        assert llama_cpp.encode(text) == ids_of(tokens, text)


def test_words_that_are_looked_up(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    """Llama-3 proper: a token that merges do not reach is still one token when it is the whole word."""
    model, tokens = make("llama", "llama3", True, tiny_model, fake_tokens)
    spec = json.loads((tokens / "tokenizer.json").read_text())
    words = [[], []]
    for look_up in (False, True):
        spec["model"]["ignore_merges"] = look_up
        spec["model"]["merges"] = spec["model"]["merges"][::2]  # many tokens cannot be reached any more
        out = tmp_path / str(look_up)
        AutoTokenizer.from_pretrained(tokens).save_pretrained(out)
        (out / "tokenizer.json").write_text(json.dumps(spec))
        gguf_file.write(model, out, out / "model.gguf", name="a model")
        words[look_up] = LlamaCpp(out / "model.gguf").encode(CODE[:20_000])
        assert words[look_up] == ids_of(out, CODE[:20_000])
    assert words[0] != words[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(
    dtype: torch.dtype, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model, tokens = make("llama", "gpt2", False, tiny_model, fake_tokens)
    half = model.to(dtype)
    gguf_file.write(half, tokens, tmp_path / "model.gguf", name="a model")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == ("F16" if dtype == torch.float16 else "BF16")
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    for name, tensor in half.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor.float()), name


def test_the_scaled_rotation_of_llama_3_1(fake_tokens: MakeTokens, tiny_model: MakeModel, tmp_path: Path) -> None:
    """transformers does not read the scaling back, so it is put on by hand from what stands in the file."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(
        vocab_size=536,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        rope_parameters=scaling,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    tokens = fake_tokens(tiny_model("llama", tokenizer="gpt2")) / "tokenizer"
    gguf_file.write(model, tokens, tmp_path / "model.gguf", name="a model")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    factors = torch.from_numpy(tensors["rope_freqs.weight"].copy())
    assert factors.shape == (16,)
    assert factors.min() == 1 and factors.max() == pytest.approx(8)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    ids = torch.arange(200).unsqueeze(0)
    with torch.no_grad():
        expected = model(ids).logits
        assert not torch.allclose(read(ids).logits, expected, atol=1e-3)
        read.model.rotary_emb.inv_freq /= factors
        assert torch.allclose(read(ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize("boundary", ["identifier", "dotted"])
def test_a_wider_boundary_is_refused_by_the_configuration_alone(boundary: str) -> None:
    with pytest.raises(ConfigError, match=rf"tokens\.boundary={boundary}.*llama\.cpp.*tokens\.boundary=word"):
        gguf_file.check_tokens(boundary, False)
    with pytest.raises(ConfigError, match="as_added_tokens"):
        gguf_file.check_tokens("word", True)
    assert gguf_file.check_tokens("word", False) is None


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        ("mistral", "auto", "mistral models are not written"),
        ("gemma3", "auto", "gemma3_text models are not written"),
        ("gpt2", "auto", "gpt2 models are not written"),
        ("llama", "llama2", "SentencePiece-style"),
    ],
)
def test_other_models_are_refused_before_training(family: str, kind: str, reason: str, tiny_model: MakeModel) -> None:
    with pytest.raises(ModelError, match=reason):
        gguf_file.check_model(tiny_model(family, tokenizer=kind))


@pytest.mark.parametrize(
    "setting",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ],
)
def test_options_that_are_not_written_are_refused(setting: dict[str, object]) -> None:
    assert gguf_file.check_config(LlamaConfig()) is None
    with pytest.raises(ModelError, match=next(iter(setting)).replace("rope_parameters", "rope_type=linear")):
        gguf_file.check_config(LlamaConfig(**setting))


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [
        ({"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, None),
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}, None),
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, {"type": "Lowercase"}),
    ],
)
def test_splitting_rules_without_a_name_are_refused(
    pre_tokenizer: dict[str, object], normalizer: dict[str, object] | None
) -> None:
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    spec = {"model": {"type": "BPE", "merges": [], "vocab": {}}, "pre_tokenizer": plain, "normalizer": None}
    assert gguf_file.splitting_rule(spec) == "gpt-2"
    with pytest.raises(ModelError, match=r"llama\.cpp"):
        gguf_file.splitting_rule(spec | {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer})


def test_a_widened_tokenizer_is_refused_even_when_nobody_checked_the_configuration(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    from kldistill.tokens.boundaries import widen

    model, tokens = make("llama", "gpt2", True, tiny_model, fake_tokens)
    AutoTokenizer.from_pretrained(tokens).save_pretrained(tmp_path)
    spec = json.loads((tokens / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(widen(spec, "identifier")))
    with pytest.raises(ModelError, match="no name"):
        gguf_file.write(model, tmp_path, tmp_path / "model.gguf", name="a model")
    assert not (tmp_path / "model.gguf").exists()


def test_unused_ids_and_added_tokens(tiny_model: MakeModel, fake_tokens: MakeTokens) -> None:
    tokens = fake_tokens(tiny_model("llama", tokenizer="gpt2")) / "tokenizer"
    spec = json.loads((tokens / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    spec["added_tokens"].append({"id": 540, "content": "<tool>", **flags})
    names, types = gguf_file.vocabulary(spec, 541)
    assert names[537] == "[PAD537]" and types[537] == gguf.TokenType.UNUSED
    assert names[540] == "<tool>" and types[540] == gguf.TokenType.USER_DEFINED
    assert names[0] == "<|endoftext|>" and types[0] == gguf.TokenType.CONTROL
    assert types[100] == gguf.TokenType.NORMAL
    spec["added_tokens"][-1]["single_word"] = True
    with pytest.raises(ModelError, match="<tool>"):
        gguf_file.vocabulary(spec, 541)


def test_every_chat_template_is_in_the_file(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    model, tokens = make("llama", "gpt2", True, tiny_model, fake_tokens)
    copy = tmp_path / "tokenizer"
    shutil.copytree(tokens, copy)
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "tool_use.jinja").write_text("a tool")
    gguf_file.write(model, copy, tmp_path / "model.gguf", name="a model")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tiny.CHAT_TEMPLATE
    assert fields["tokenizer.chat_template.tool_use"].contents() == "a tool"
