"""Write an extended model as one GGUF file, where llama.cpp can cut text as its tokenizer does; refuse elsewhere.

A GGUF file holds the tokens and the merges, but of the splitting rule only a *name*: the rules themselves are compiled
into llama.cpp. So ``tokens.boundary=word``, which keeps the base model's rule, can be expressed where that rule has a
name there; the wider ones are rules of ours and cannot.

llama.cpp's own converter does not know an extended tokenizer: it recognises the splitting rule by the ids of one fixed
text, and the new tokens change these. Here the rule is read from ``tokenizer.json`` itself.
"""

import json
from pathlib import Path
from typing import Any, cast

import gguf
import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from kldistill.model.load import load_original_config, load_original_tokenizer
from kldistill.model.tiny import LLAMA3_RULE, QWEN2_RULE
from kldistill.rows.student import body_of, embedding_of, head_of
from kldistill.runtime.errors import ConfigError, ModelError
from kldistill.tokens.definition import BYTE_LEVEL, definition, kind, parts
from kldistill.tokens.joints import GPT2

FILE = "model.gguf"
# Model types whose tensors are written here, and llama.cpp's name of the architecture.
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
_DIGITS = "digits apart"
# A splitting rule step by step, whether whole words are looked up before merging, and llama.cpp's name of both (struct
# llm_tokenizer_bpe in its src/llama-vocab.cpp). "smaug-bpe" is Llama-3's regex without the look-up.
NAMES = {
    ((GPT2,), False): "gpt-2",
    ((_DIGITS, GPT2), False): "smollm",
    ((LLAMA3_RULE,), True): "llama-bpe",
    ((LLAMA3_RULE,), False): "smaug-bpe",
    ((QWEN2_RULE,), False): "qwen2",
}
ELSEWHERE = "Use export.gguf=false; the Hugging Face folder is exact."
_TYPES = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


def check_tokens(boundary: str, as_added_tokens: bool) -> None:
    """Refuse what the configuration alone tells cannot become GGUF. Raises ``ConfigError``."""
    if boundary != "word":
        raise ConfigError(
            f"export.gguf=true with tokens.boundary={boundary}: llama.cpp knows splitting rules by name only, and has "
            "none that keeps identifiers whole, so it would cut text otherwise than this tokenizer. Use "
            "tokens.boundary=word, or export.gguf=false."
        )
    if as_added_tokens:
        raise ConfigError(
            "export.gguf=true with tokens.as_added_tokens=true: llama.cpp finds such tokens inside longer words too, "
            "where this tokenizer does not. Use tokens.as_added_tokens=false, or export.gguf=false."
        )


def check_model(folder: Path) -> None:
    """Refuse an original model that cannot become GGUF, before anything is trained.

    Args:
        folder: a ``model`` artifact.

    Raises:
        ModelError: the family, one of its options, or the tokenizer cannot be expressed.
    """
    check_config(load_original_config(folder))
    splitting_rule(definition(load_original_tokenizer(folder)))


def check_config(config: PretrainedConfig) -> None:
    """Refuse a model whose tensors are not written here. Raises ``ModelError``."""
    family = config.model_type
    if family not in ARCHITECTURES:
        raise ModelError(
            f"export.gguf=true: {family} models are not written as GGUF ({', '.join(ARCHITECTURES)} are). {ELSEWHERE}"
        )
    rope = config.rope_parameters["rope_type"]
    refused = {
        f"rope_type={rope}": rope not in ("default", "llama3"),
        "attention_bias": family == "llama" and config.attention_bias,
        "mlp_bias": family == "llama" and config.mlp_bias,
        "use_sliding_window": family == "qwen2" and config.use_sliding_window,
        f"hidden_act={config.hidden_act}": config.hidden_act != "silu",
    }
    for option, present in refused.items():
        if present:
            raise ModelError(f"export.gguf=true: {family} with {option} is not written as GGUF. {ELSEWHERE}")


def splitting_rule(spec: dict[str, Any]) -> str:
    """llama.cpp's name of the splitting rule of a tokenizer's definition. Raises ``ModelError``."""
    if kind(spec) != BYTE_LEVEL:
        raise ModelError(
            "export.gguf=true: this is a SentencePiece-style tokenizer. llama.cpp merges those by the scores of tokens "
            f"and knows no list of merges, so it would cut text otherwise. {ELSEWHERE}"
        )
    *before, last = parts(spec["pre_tokenizer"], "pretokenizers")
    bytes_last = last["type"] == "ByteLevel" and not last.get("add_prefix_space")
    rule = (*map(_step, before), *([GPT2] if last.get("use_regex", True) else []))
    name = NAMES.get((rule, bool(spec["model"].get("ignore_merges"))))
    if name is None or not bytes_last:
        raise ModelError(
            f"export.gguf=true: llama.cpp has no name that kldistill knows for the splitting rule {rule} with "
            f"ignore_merges={spec['model'].get('ignore_merges')}. {ELSEWHERE}"
        )
    steps = [step["type"] for step in parts(spec["normalizer"], "normalizers")]
    if steps not in ([], ["NFC"]):  # llama.cpp leaves Qwen's NFC out too: its text is taken as it comes
        raise ModelError(
            f"export.gguf=true: llama.cpp does not normalise text, this tokenizer does {steps}. {ELSEWHERE}"
        )
    return name


def _step(step: dict[str, Any]) -> str:
    """A step of a pre-tokenizer as ``NAMES`` spells it; its type where that is not known."""
    if step["type"] == "Digits" and step["individual_digits"]:
        return _DIGITS
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return step["pattern"].get("Regex", "Split at a string")
    return step["type"]


def write(model: PreTrainedModel, tokenizer_folder: Path, file: Path, *, name: str) -> None:
    """Write ``model`` with its tokenizer to ``file``, in the type of its weights (norms and biases in float32).

    Args:
        model: extended, its embedding exactly as high as the tokenizer.
        tokenizer_folder: the folder of the extended tokenizer.
        name: what programs show for the model.

    Raises:
        ModelError: as ``check_model``, or if what stands in the written file is not what was meant.
    """
    config = model.config.get_text_config()
    check_config(config)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    spec = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    dtype = embedding_of(model).weight.dtype
    tensors = named_tensors(model)
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    writer.add_name(name)
    writer.add_file_type(_TYPES[dtype][1])
    add_sizes(writer, config)
    add_tokenizer(writer, tokenizer, spec, config.vocab_size)
    for key, tensor in tensors.items():
        wanted = _TYPES[dtype][0] if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = tensor.float().numpy()
        # Same type: no copy. numpy has no bfloat16, so all pass through float32, which holds both others exactly.
        writer.add_tensor(key, gguf.quants.quantize(data, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_file(file, spec, tensors)


def add_sizes(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    """Add the model's shape, as llama.cpp reads it."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, spec: dict[str, Any], size: int) -> None:
    """Add tokens, merges, the name of the splitting rule, special ids and chat templates.

    ``size`` is the number of rows of the embedding.
    """
    tokens, types = vocabulary(spec, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting_rule(spec))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges(spec)])
    # Said outright, since llama.cpp's defaults go by the name of the rule.
    ids = list(tokenizer("a")["input_ids"])
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    for token in ("bos", "eos", "pad", "unk"):
        index = getattr(tokenizer, f"{token}_token_id")
        if index is not None:
            getattr(writer, f"add_{token}_token_id")(index)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name; the writer keeps ``default`` apart
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def vocabulary(spec: dict[str, Any], size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """The token and its type for every id; ids that the tokenizer leaves out become unused ones."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, index in spec["model"]["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in spec["added_tokens"]:
        if added["single_word"]:
            raise ModelError(f"export.gguf=true: llama.cpp finds {added['content']!r} inside words too. {ELSEWHERE}")
        tokens[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    return tokens, types


def merges(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges as pairs, whatever version of the library wrote them."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in spec["model"]["merges"])
    return [(left, right) for left, right in pairs]


@torch.no_grad()
def named_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights under llama.cpp's names, in its order of rows. A tied head is left out: it has no tensor there."""
    config = model.config.get_text_config()
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    tied = head_of(model).weight is embedding_of(model).weight
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"export.gguf=true: llama.cpp has no name for the tensor {key}. {ELSEWHERE}")
        if config.model_type == "llama" and ".attn_q." in name:
            tensor = interleaved(tensor, config.num_attention_heads)
        elif config.model_type == "llama" and ".attn_k." in name:
            tensor = interleaved(tensor, config.num_key_value_heads)
        tensors[name] = tensor
    if (factors := rope_factors(model)) is not None:
        tensors["rope_freqs.weight"] = factors
    return tensors


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix as Llama's own code and llama.cpp have them: pairs that rotate together adjoin.

    transformers keeps the two halves of every head apart instead (``permute`` of llama.cpp's converter).
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def rope_factors(model: PreTrainedModel) -> torch.Tensor | None:
    """What Llama-3.1's scaling divides every rotary frequency by, shape (head width / 2,); None without scaling."""
    config = model.config.get_text_config()
    if config.rope_parameters["rope_type"] == "default":
        return None
    scaled = cast(torch.Tensor, cast(Any, body_of(model)).rotary_emb.inv_freq).float()
    width = 2 * len(scaled)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    return plain / scaled


def check_file(file: Path, spec: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Read the file's tokens, merges and shapes again. Raises ``ModelError`` where they are not what was written."""
    reader = gguf.GGUFReader(file)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    listed = [tuple(pair.split(" ")) for pair in reader.fields["tokenizer.ggml.merges"].contents()]
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    same = (
        all(tokens[index] == token for token, index in spec["model"]["vocab"].items())
        and listed == merges(spec)
        and shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        and shapes["token_embd.weight"][0] == len(tokens)
    )
    if not same:
        raise ModelError(f"{file}: what stands in the file is not what was written to it. {ELSEWHERE}")
