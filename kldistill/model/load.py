"""The original model of a ``model`` artifact, read again: weights, tokenizer, config and facts."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kldistill.model import adapter
from kldistill.runtime.errors import KldistillError, ModelError
from kldistill.runtime.memory import is_shortage
from kldistill.runtime.progress import without_bars_of_transformers

# Of the size of a model's logits, how far equal ones may be apart: in bfloat16 a number keeps three digits at most.
SAME = 0.02


def load_original(folder: Path, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The frozen original model of a ``model`` artifact: eval mode, no parameter asks for a gradient.

    Attention implementation and everything else are transformers' own defaults, so that an exported model gives the
    same logits when somebody loads it plainly. Raises ``ModelError``.
    """
    facts = read_facts(folder)
    where = where_of(folder, facts)
    load_original_config(folder)
    model = read_whole(where, where, dtype=getattr(torch, facts.get("dtype", "float32")), **_source(facts))
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{where}: {adapter.BESIDE}")
    for merged in facts.get("adapters", []):
        only = facts.get("local_files_only", False)
        model = adapter.merge(model, adapter.local_adapter(merged["path"], merged["revision"], only))
    if facts.get("rows_added"):
        add_rows(model, facts["rows_added"])
    return cast(PreTrainedModel, nn.Module.to(model, device)).eval().requires_grad_(False)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what goes wrong while transformers reads a file into a ``ModelError`` that begins with ``what``: libraries
    in Rust, packages that are not installed and a model's own code raise exceptions of any kind.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, KldistillError) or is_shortage(error):
            raise
        kind = "" if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
        raise ModelError(f"{what} cannot be read: {kind}{error}") from error


def read_whole(where: object, path: str, **settings: Any) -> PreTrainedModel:
    """The model that ``from_pretrained`` reads at ``path`` with these settings; ``where`` names it in errors.

    Raises:
        ModelError: it cannot be read, or some of its weights stand in no file: transformers draws such at random, anew
            at each reading. (Buffers that are missing are computed.)
    """
    read: Any = AutoModelForCausalLM.from_pretrained
    with reading(f"{where}: the model"), without_bars_of_transformers():
        model, told = read(path, output_loading_info=True, **settings)
    drawn = sorted(set(told["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if drawn:
        raise ModelError(
            f"{where}: {len(drawn)} of the weights that its config asks for are missing, such as {drawn[0]}; random "
            "ones would take their place. Fetch or save the model again, whole. (Where only lm_head is missing and the "
            "model has one matrix for both ends, its config.json needs tie_word_embeddings: true.)"
        )
    return model


@torch.no_grad()
def add_rows(model: PreTrainedModel, n: int) -> None:
    """Give ``n`` special tokens beyond the matrix (Gemma 3's ``<image_soft_token>``) rows, so that every id has one.

    The rows are copies of the padding token's (of id 0's where there is none), which stands in no text and which no
    text is predicted to go on with: the probabilities of all other tokens stay what they were, up to that of padding.
    """
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding), "checked when the model was fetched"
    height = embedding.weight.shape[0]
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    model.resize_token_embeddings(height + n, mean_resizing=False)
    for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
        for weight in (getattr(matrix, "weight", None), getattr(matrix, "bias", None)):
            if isinstance(weight, Tensor):
                weight[height:] = weight[padding if isinstance(padding, int) and 0 <= padding < height else 0].clone()


def load_original_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The original tokenizer of a ``model`` artifact. Raises ``ModelError`` for one without a ``tokenizer.json``."""
    facts = read_facts(folder)
    where = where_of(folder, facts)
    with reading(f"{where}: the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(where, **_source(facts))
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{where}: its tokenizer is a slow one ({type(tokenizer).__name__}); kldistill extends tokenizer.json. "
            "Convert it (transformers.convert_slow_tokenizer) and save it beside the model."
        )
    if (first := facts.get("first_token")) is not None:
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        if first not in special:
            shown = ", ".join(sorted(special)) or "none"
            raise ModelError(f"model.first_token={first!r}: is no special token of this tokenizer; those are {shown}.")
        tokenizer.bos_token = first
    return tokenizer


def load_original_config(folder: Path) -> PretrainedConfig:
    """The original model's config. Raises ``ModelError`` when it is no decoder-only language model."""
    facts = read_facts(folder)
    return read_config(facts, where_of(folder, facts))


def read_config(facts: Mapping[str, Any], where: str) -> PretrainedConfig:
    """The config at ``where``, checked to be one that kldistill can extend."""
    with reading(f"{where}: the model config"):
        config = AutoConfig.from_pretrained(where, **_source(facts))
    if config.is_encoder_decoder:
        raise ModelError(f"{where}: {config.model_type} is an encoder-decoder model; kldistill extends causal ones.")
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping and "AutoModelForCausalLM" not in getattr(config, "auto_map", {}):
        raise ModelError(
            f"{where}: transformers knows no causal language model of type {config.model_type!r}.{_parts(config)}"
        )
    # BERT and its kin, whose causal classes only warn of it.
    if type(config) in AutoModelForMaskedLM._model_mapping and getattr(config, "is_decoder", None) is False:
        raise ModelError(
            f"{where}: {config.model_type} with is_decoder=false in its config.json is an encoder: each token sees "
            "those behind it. kldistill extends causal models, which were trained to predict the next token."
        )
    return config


@torch.no_grad()
def check_causal(model: PreTrainedModel, where: str) -> None:
    """Run two texts that have nothing but their first token in common: a causal model says the same after it, up to
    rounding. No config tells that of every family (XLM, Gemma 3 with ``use_bidirectional_attention``, code of others).

    Raises:
        ModelError: what the model predicts after a token depends on the tokens behind it.
    """
    ids_BT = torch.tensor([[first, *7 * [behind]] for first, behind in ((2, 3), (2, 4))], device=model.device)
    logits_BW = model(ids_BT, use_cache=False).logits[:, 0].float()
    apart = (logits_BW[0] - logits_BW[1]).norm() / (logits_BW[0] - logits_BW[0].mean()).norm()
    if not apart < SAME:
        raise ModelError(
            f"{where}: what this model ({model.config.model_type}) predicts after a token depends on the tokens behind "
            "it. kldistill extends causal models, which were trained to predict the next token."
        )


def _parts(config: PretrainedConfig) -> str:
    """What a model without a causal class is made of, and what its user can do; empty where it has one part only."""
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    types = {name: part.model_type for name, part in parts.items() if isinstance(part, PretrainedConfig)}
    if not types:
        return ""
    told = f" It is a model of several parts ({', '.join(f'{name}: {kind}' for name, kind in types.items())})"
    text = parts.get("text_config")
    if isinstance(text, PretrainedConfig) and type(text) in AutoModelForCausalLM._model_mapping:
        return (
            f"{told}; kldistill extends the text part alone. Save that one as a model of its own ({text.model_type!r}, "
            "with the tokenizer beside it), and give its folder as model.path."
        )
    return f"{told}, of which kldistill extends none."


def read_facts(folder: Path) -> dict[str, Any]:
    """``model.json`` of a ``model`` artifact."""
    file = folder / "model.json"
    if not file.is_file():
        raise ModelError(f"{file}: missing; this folder is no model artifact.")
    return json.loads(file.read_text())


def where_of(folder: Path, facts: Mapping[str, Any]) -> str:
    """Where the weights and the tokenizer of a ``model`` artifact lie: a folder, or a hub id."""
    return str((folder / facts["path"]).resolve()) if in_artifacts(facts) else facts["path"]


def in_artifacts(facts: Mapping[str, Any]) -> bool:
    """Whether the weights lie in this artifact or in one beside it, rather than where the user has them."""
    return facts["path"].startswith(".")


def _source(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``from_pretrained`` that ``model.json`` fixes."""
    return {
        "revision": facts["revision"] or "main",
        "trust_remote_code": facts["trust_remote_code"],
        "local_files_only": facts.get("local_files_only", False) or in_artifacts(facts),
    }


def vocabulary_size(folder: Path) -> int:
    """V of a ``model`` artifact, as its stage has written it: no tokenizer is loaded for one number."""
    return read_facts(folder)["vocabulary"]


def old_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """V: one more than the largest id over vocabulary and added tokens (not the height of a padded embedding)."""
    return max(tokenizer.get_vocab().values()) + 1
