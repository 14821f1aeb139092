"""Random models of real families, each with a small tokenizer of the family's own kind, trained on the spot.

They know nothing, but they have every trait that the rest must cope with: tied and untied heads, padded embeddings,
scaled embeddings and soft-capped logits (Gemma), learned positions (GPT-2), byte-level and SentencePiece-style BPE.
"""

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from kldistill.runtime.components import component
from kldistill.runtime.errors import ModelError
from kldistill.runtime.progress import without_bars_of_transformers

# The splitting rules of Llama-3's and Qwen2's tokenizer.json.
LLAMA3_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_RULE = LLAMA3_RULE.replace(r"\p{N}{1,3}", r"\p{N}")

KIND_OF_FAMILY = {
    "llama": "llama3",
    "mistral": "llama2",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "gpt2": "gpt2",
    "gpt_neox": "gpt2",
}
SENTENCEPIECE = ("llama2", "gemma")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"


def identity(**settings: object) -> dict[str, object]:
    """What the tokenizer is trained on right now: the text is that of whatever version is installed."""
    return {"text": hashlib.sha256("".join(training_text()).encode()).hexdigest()}


@component("model", identity)
def build(
    out: Path,
    *,
    family: str = "llama",
    tokenizer: str = "auto",
    vocab_size: int = 512,
    hidden_size: int = 32,
    layers: int = 2,
    tied: bool = True,
    pad_to: int = 96,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """Write a random model of ``family`` and its tokenizer to ``out``; the same arguments give the same bytes.

    ``vocab_size`` counts the tokenizer's tokens; the embedding height is that, rounded up to a multiple of ``pad_to``.
    Returns what ``model.json`` says of it.
    """
    kind = KIND_OF_FAMILY[family] if tokenizer == "auto" else tokenizer
    fast = sentencepiece_style(kind, vocab_size) if kind in SENTENCEPIECE else byte_level(kind, vocab_size)
    height = -(-vocab_size // pad_to) * pad_to
    config = model_config(family, height, hidden_size, layers, tied, fast)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.max_new_tokens = 16  # something of its own, so that a test can see it survive
    with without_bars_of_transformers():
        model.save_pretrained(out)
    fast.save_pretrained(out)
    return {"path": ".", "license": "apache-2.0", "base_model": None}


def training_text() -> list[str]:
    """About 200 kB of Python source, in documents: modules of omegaconf, which differ between its versions alone."""
    names = ("omegaconf", "basecontainer", "base", "_utils", "dictconfig", "listconfig", "nodes")
    return [inspect.getsource(importlib.import_module(f"omegaconf.{name}")) for name in names]


def model_config(
    family: str,
    height: int,
    hidden_size: int,
    layers: int,
    tied: bool,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> PretrainedConfig:
    """The family's config at a tiny size. The wide ``initializer_range`` keeps logits from being all alike."""
    ids = {"pad_token_id": None}
    if tokenizer is not None:
        ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    common = {"vocab_size": height, "tie_word_embeddings": tied, "initializer_range": 0.2, **ids}
    if family == "gpt2":
        sizes = {"n_embd": hidden_size, "n_layer": layers, "n_head": 4, "n_positions": 2048}
    else:
        sizes = {
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 2 * hidden_size,
            "max_position_embeddings": 2048,
        }
    if family not in ("gpt2", "gpt_neox"):
        sizes |= {"num_key_value_heads": 2, "head_dim": hidden_size // 4}
    if family == "gemma2":
        sizes |= {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": hidden_size // 4}
    if family == "gemma3":
        common["model_type"] = "gemma3_text"
        sizes |= {"query_pre_attn_scalar": hidden_size // 4}
    model_type = str(common.pop("model_type", family))
    return AutoConfig.for_model(model_type, **common, **sizes)


def byte_level(kind: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the splitting rule of ``kind`` (gpt2, smollm, llama3, qwen2)."""
    tokenizer = Tokenizer.from_str(_byte_level(kind, vocab_size))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@cache
def _byte_level(kind: str, vocab_size: int) -> str:
    """tokenizer.json of such a tokenizer: training takes long beside all else that is tiny here."""
    tokenizer = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == "gpt2":
        tokenizer.pre_tokenizer = whole
    elif kind == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    else:
        rule = pre_tokenizers.Split(Regex(LLAMA3_RULE if kind == "llama3" else QWEN2_RULE), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([rule, bytes_only])
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_end|>"]  # transformers adds the first to any Qwen2 tokenizer without it
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    check_size(tokenizer, vocab_size)
    if kind == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 0)]
        )
    return tokenizer.to_str()


def sentencepiece_style(kind: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """BPE over characters with ``▁`` for spaces and byte fallback, as Llama-2 and Gemma have it in tokenizer.json."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_sentencepiece_style(kind, vocab_size)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        add_prefix_space=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@cache
def _sentencepiece_style(kind: str, vocab_size: int) -> str:
    """tokenizer.json of such a tokenizer."""
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    space = normalizers.Replace(" ", "▁")
    learner = Tokenizer(models.BPE())
    learner.normalizer = space
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    wanted = vocab_size - len(special) - len(fallback)
    trainer = trainers.BpeTrainer(vocab_size=wanted, limit_alphabet=96, show_progress=False)
    learner.train_from_iterator(training_text(), trainer)
    check_size(learner, wanted)
    learnt = json.loads(learner.to_str())["model"]
    order = [*special, *fallback, *sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)]
    vocab = {token: index for index, token in enumerate(order)}
    merges = [(left, right) for left, right in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = space
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer.to_str()


def check_size(tokenizer: Tokenizer, wanted: int) -> None:
    """Refuse a ``vocab_size`` that the alphabet alone exceeds or that the training text cannot fill."""
    size = tokenizer.get_vocab_size()
    if size != wanted:
        raise ModelError(
            f"model.vocab_size: training gave {size} tokens where {wanted} were asked for; take a value "
            f"{'above' if size > wanted else 'below'} it by {abs(size - wanted)} or more."
        )
