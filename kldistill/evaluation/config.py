"""Typed schema of the group ``eval``, and the slices that its stages get."""

from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar

from kldistill.evaluation.sandbox import Limits
from kldistill.runtime.config import check_choices, choice, require


@dataclass
class ScoringConfig:
    """Evaluation without generation.

    Attributes:
        domain_bytes: bytes of the test split that are scored, about.
        general_bytes: bytes that are scored, about, of each general text that the corpus has.
        general_code_bytes: the same of general code alone, whose documents are longer: eight are needed for an
            interval; null for ``general_bytes``.
        window_bytes: documents are cut at lines into windows of about this many bytes, scored on their own.
        marginal_words: words with new tokens, about, of the domain's text, of which all cuts are summed beside the
            tokenizer's own (``marginal_gap``); 0: none. 100 take SmolLM2-135M some 20 seconds a model on one core.
        masked: whether bits per byte and KL are also measured of the extended models whose probability of what cannot
            follow is shared out among the rest (``bits_per_byte_masked``, ``kl_to_teacher_masked``). A fourteenth more
            time.
    """

    domain_bytes: int = 40_000
    general_bytes: int = 16_000
    window_bytes: int = 1_500
    marginal_words: int = 0
    masked: bool = False
    general_code_bytes: int | None = None

    def __post_init__(self) -> None:
        for key in ("domain_bytes", "general_bytes", "general_code_bytes"):
            asked = getattr(self, key)
            require(asked is None or asked >= 1, f"eval.{key}", asked, "must be at least 1")
        require(self.window_bytes >= 32, "eval.window_bytes", self.window_bytes, "must be at least 32")
        require(self.marginal_words >= 0, "eval.marginal_words", self.marginal_words, "must be at least 0")

    def size_of(self, text: str) -> int:
        """Bytes that are scored, about, of ``domain``, ``general`` or ``general_code`` text."""
        return getattr(self, self.key_of(text))

    def key_of(self, text: str) -> str:
        """The key that says so."""
        return "general_bytes" if text == "general_code" and self.general_code_bytes is None else f"{text}_bytes"


@dataclass
class VllmConfig:
    """What vLLM is started with, by its own names; null leaves it to vLLM. What follows from the run (model, dtype,
    lengths, ``max_num_seqs``, which is ``runtime.generation_batch``) is no key.

    Attributes:
        tensor_parallel_size: GPUs that share each layer of the model.
        pipeline_parallel_size: groups of GPUs that share out its layers.
        gpu_memory_utilization: share of each GPU's memory that vLLM takes (its own: some nine tenths).
        max_num_batched_tokens: tokens of one of its passes, at most.
        enforce_eager: true captures no CUDA graphs: it starts sooner and writes slower.
        enable_prefix_caching: keep what it has of beginnings that several prompts share.
        kv_cache_dtype: type of its cache, such as ``fp8``.
        quantization: of the weights while it reads them, such as ``fp8``.
        cpu_offload_gb: of the weights, what stays in the CPU's memory.
    """

    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    gpu_memory_utilization: float | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    enable_prefix_caching: bool | None = None
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    cpu_offload_gb: float | None = None

    def __post_init__(self) -> None:
        for key in ("tensor_parallel_size", "pipeline_parallel_size", "max_num_batched_tokens"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"eval.vllm.{key}", value, "must be at least 1, or null")
        share, gigabytes = self.gpu_memory_utilization, self.cpu_offload_gb
        rule = "is a share: above 0 and at most 1, or null"
        require(share is None or 0 < share <= 1, "eval.vllm.gpu_memory_utilization", share, rule)
        require(
            gigabytes is None or gigabytes >= 0, "eval.vllm.cpu_offload_gb", gigabytes, "must be 0 or more, or null"
        )

    def chosen(self) -> dict[str, Any]:
        """What is not left to vLLM."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}


@dataclass
class EvalConfig(ScoringConfig):
    """The group ``eval``: scoring of held-out text, and the suites of tasks.

    Each file of conf/eval/suite adds a key of its own name, the suite.

    Attributes:
        suites: names of the suites to run; empty for none.
        limit: tasks of each suite at most, the first ones; null for all.
        n_samples: completions of each task.
        temperature: the temperature of the sampling; 0 always takes the likeliest token (greedy).
        top_p: share of the probability that is sampled from, the likeliest tokens first.
        seed: seeds the sampling.
        cut: of what an extended model writes. ``free``: as it writes it, which may be old tokens that together spell a
            new one. ``merged``: the new token takes their place as soon as they stand there, so that the text stays
            and what follows is predicted from the tokenizer's own cut. ``masked``: what the tokenizer would not cut
            so cannot be written (``CanonicalMask``); the model then writes other text.
        backend: which program writes the answers. ``vllm``, meant for GPUs, has to be installed (docs/serving.md);
            prompts, budgets and ends of answers are the same. What is ranked or scored is measured by transformers all
            the same.
        vllm: how vLLM is started (``VllmConfig``).
        written: texts of some 64 tokens that the original model writes after beginnings of the test split, scored as
            ``written``: on these alone the KL is that of the two models. 0: none.
        adapter: a LoRA adapter that was trained on the original model with peft, a folder or a hub id. It is added,
            as it is, to the original and to the distilled model, and both are measured (``adapted`` and ``carried``):
            does it work with the extended model? Null: none.
        limits: what every program in the sandbox may use.
        allow_unsandboxed: run generated programs without a sandbox where there is none. Dangerous.
    """

    suites: list[str] = field(default_factory=list)
    limit: int | None = None
    n_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    cut: str = choice("free", "free", "merged", "masked")
    backend: str = choice("transformers", "transformers", "vllm")
    vllm: VllmConfig = field(default_factory=VllmConfig)
    written: int = 0
    adapter: str | None = None
    limits: Limits = field(default_factory=Limits)
    allow_unsandboxed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.limit is None or self.limit >= 1, "eval.limit", self.limit, "must be at least 1, or null for all")
        require(self.written >= 0, "eval.written", self.written, "must be at least 0")
        require(self.n_samples >= 1, "eval.n_samples", self.n_samples, "must be at least 1")
        require(self.temperature >= 0, "eval.temperature", self.temperature, "must be 0 (greedy) or more")
        require(0 < self.top_p <= 1, "eval.top_p", self.top_p, "must be above 0 and at most 1")
        require(
            self.n_samples == 1 or self.temperature > 0,
            "eval.n_samples",
            self.n_samples,
            "all samples of a task would be the same at eval.temperature=0; give a temperature, such as 0.8",
        )
        check_choices(self, "eval")
        if self.backend == "vllm":
            rule = "forbids tokens one by one, which vLLM is not asked to do; use free or merged, or "
            require(self.cut != "masked", "eval.cut", self.cut, f"{rule}eval.backend=transformers")
            rule = "vLLM takes 0, or 0.01 and more"
            require(not 0 < self.temperature < 0.01, "eval.temperature", self.temperature, rule)
        unknown = [name for name in self.suites if name not in self.all_suites()]
        require(not unknown, "eval.suites", unknown, f"suites are {', '.join(self.all_suites())}")

    def all_suites(self) -> dict[str, Any]:
        """The configured suites by name, chosen or not."""
        own = {item.name for item in fields(EvalConfig)}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in own}

    def scoring(self) -> ScoringConfig:
        """The part that scoring depends on: other keys change none of its artifacts."""
        return ScoringConfig(**{item.name: getattr(self, item.name) for item in fields(ScoringConfig)})


@cache
def with_suites(names: tuple[str, ...]) -> type[EvalConfig]:
    """``EvalConfig`` with one key for every suite: Hydra knows, and checks, a suite by its YAML file.

    One class for the same names, so that two configurations of one process can be compared.
    """
    suites = [(name, Any, field(default=None)) for name in names]
    made = make_dataclass("EvalConfig", suites, bases=(EvalConfig,))
    made.__doc__ = EvalConfig.__doc__
    return made


@dataclass
class WriteConfig:
    """Slice of the stage ``write``: text of the original model.

    Attributes:
        key: of the configuration, for errors.
        split: of the corpus, whose text the model goes on from.
        n: texts.
        n_bytes: size of what is written, about.
        prompt_bytes: size of what it goes on from, about.
        seed: of the prompts and the drawing.
    """

    key: str
    split: str
    n: int
    n_bytes: int = 256
    prompt_bytes: int = 256
    seed: int = 0


@dataclass
class TasksConfig:
    """Slice of the stage ``tasks``: one suite, and those whose tasks it is made of.

    Attributes:
        name, suite: the suite's name and node (``_target_`` and its fields).
        uses: nodes of other suites by name.
    """

    name: str
    suite: dict[str, Any]
    uses: dict[str, Any]
    limit: int | None = None
    limits: Limits = field(default_factory=Limits)
    allow_unsandboxed: bool = False


@dataclass
class GenerateConfig:
    """Slice of the stage ``generate``: one model on one suite.

    Attributes:
        model: ``original``, ``distilled``, ``finetuned``, ``control``, ``adapted`` or ``carried``.
        suite: the suite's name. The other keys are those of ``EvalConfig``.
        cut: ``free`` for models without new tokens.
        backend: what writes the answers.
    """

    model: str
    suite: str
    n_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    limits: Limits = field(default_factory=Limits)
    allow_unsandboxed: bool = False
    seed: int = 0
    cut: str = "free"
    backend: ClassVar[str] = "transformers"


@dataclass
class GenerateWithVllmConfig(GenerateConfig):
    """The same for answers that vLLM writes. They are other artifacts, and those of transformers stay the same ones."""

    backend: str = "vllm"  # type: ignore[misc]  # a key of this slice alone
    vllm: VllmConfig = field(default_factory=VllmConfig)


@dataclass
class EvaluateConfig:
    """Slice of the stage ``evaluate``: one model on held-out text.

    Attributes:
        model: ``original``, ``init``, ``distilled``, ``finetuned``, ``control``, ``adapted`` or ``carried``.
        eval: the part of the group ``eval`` that scoring depends on.
    """

    model: str
    eval: ScoringConfig = field(default_factory=ScoringConfig)
