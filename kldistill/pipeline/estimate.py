"""What a configuration will need, reckoned before anything runs: ``kldistill --plan ...``.

Arithmetic from the model's shape and the configuration alone; nothing is loaded and no text is read. The formulas are
those of docs/memory.md. Numbers: P parameters, B of them in the body, D width, L layers, V old and W new vocabulary, N
new tokens, b bytes a weight.
"""

import time
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from kldistill.evaluation.config import WriteConfig
from kldistill.evaluation.marginal import PER_TEXT
from kldistill.model import gemma3, smollm2, tiny
from kldistill.model.config import Gemma3Config, GgufConfig, HfModelConfig, SmolLM2Config, TinyModelConfig
from kldistill.model.gguf import existing
from kldistill.model.load import read_config
from kldistill.pipeline.compose import Config
from kldistill.pipeline.step import plan
from kldistill.pipeline.steps import steps_of
from kldistill.runtime.devices import device_of, sizes
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.processes import launched
from kldistill.training.objective import needs_teacher, terms_of

BYTES_PER_TOKEN = 3.3  # of code, in the old tokenizer; prose has more
SHORTER = 0.83  # tokens of the new cut for one of the old
LOGITS = 4  # blocks of chunk x W numbers that exist at a time: logits, target, softmax, gradient
ACTIVATIONS = 34  # bytes-per-weight units that a layer keeps for one token's way back (arXiv 2205.05198, eq. 2)
INPUT = 1  # the same where it keeps its input alone
FEATURES = 4  # vectors of the model's width that tell new rows apart (distill.shared_lr)
HISTORIES, ROWS = 11, 6  # tokens that are run for a word's other cuts, and heads: measured on the quickstart
RUN_THE_MODEL = ("teacher", "distill", "finetune", "evaluate", "interpret", "export")
EFFICIENCY = 0.5  # of a large matrix product's rate that training reaches, measured on SmolLM2 on two cores


class Shape(NamedTuple):
    """Numbers of a model.

    Attributes:
        parameters, body: all weights, and those without embedding and head.
        width, layers, vocabulary: D, L and the height of the embedding.
        tied: whether embedding and head are one matrix.
        weight_bytes: bytes that a frozen weight takes.
    """

    parameters: int
    body: int
    width: int
    layers: int
    vocabulary: int
    tied: bool
    weight_bytes: int


class Need(NamedTuple):
    """One line of the plan: what for, how much, how that is reckoned, and which stages need it."""

    what: str
    amount: float
    unit: str
    how: str
    stages: tuple[str, ...] = ("distill",)


def shape_of(cfg: Config) -> Shape:
    """The shape of the configured model, from its config alone.

    Raises:
        ModelError: there is no such model, or its config cannot be read.
        ConfigError: the model is made by a component of the user's own.
    """
    model, weight_bytes = cfg.model, 4
    if isinstance(model, SmolLM2Config):
        config = smollm2.config()
    elif isinstance(model, Gemma3Config):
        config = gemma3.config()
    elif isinstance(model, GgufConfig):
        file = existing(model.path, "model.path")
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    elif isinstance(model, TinyModelConfig):
        config = tiny.model_config(model.family, model.vocab_size, model.hidden_size, model.layers, model.tied)
    elif not isinstance(model, HfModelConfig):
        raise ConfigError(f"--plan with model._target_={model['_target_']!r}: only the package's own models are known.")
    else:
        facts = {
            "revision": model.revision,
            "trust_remote_code": model.trust_remote_code,
            "local_files_only": model.local_files_only,
            "path": model.path,
        }
        config = read_config(facts, model.path)
        weight_bytes = torch.empty(0, dtype=getattr(torch, model.dtype)).element_size()
    return measured(config, weight_bytes)


def measured(config: PretrainedConfig, weight_bytes: int) -> Shape:
    """The shape that a config describes, counted on a model without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    matrices = (1 if text.tie_word_embeddings else 2) * text.vocab_size * text.hidden_size
    return Shape(
        parameters,
        parameters - matrices,
        text.hidden_size,
        text.num_hidden_layers,
        text.vocab_size,
        bool(text.tie_word_embeddings),
        weight_bytes,
    )


def needs(cfg: Config, shape: Shape) -> list[Need]:
    """Memory and disk of distillation and fine-tuning, and the floating-point operations of each stage."""
    d, tuned = cfg.distill, cfg.finetune
    n_new = cfg.tokens.n_new if isinstance(cfg.tokens.n_new, int) else 512
    n_new = 0 if cfg.tokens.method == "none" else n_new
    height = shape.vocabulary + n_new
    matrices = 1 if shape.tied and (not d.solve.iterations or d.solve.tie) else 2
    snippets = d.n_snippets
    unique, batch = (n * d.snippet_bytes / BYTES_PER_TOKEN for n in (snippets, d.batch_size))
    # What the original model writes stands after a prompt, which is run too.
    written = {split: step.config(cfg) for split, step in steps_of(cfg).items() if split.startswith("write_")}
    if "write_train" in written:
        unique += prompts(written["write_train"])
    adapter = 14 * d.lora.r * shape.width * shape.layers  # two thin matrices for each of seven linear layers
    weights = shape.parameters * shape.weight_bytes
    # What one process holds: its share of a batch, or as much of it as runs at a time.
    in_step = batch * SHORTER / launched()
    in_pass = min(in_step, sizes(cfg.runtime).pass_tokens)
    again = d.gradient_checkpointing
    kept = INPUT * shape.layers + ACTIVATIONS if again else ACTIVATIONS * shape.layers
    held, how = weights, "b P"
    if cfg.runtime.shard and launched() > 1:
        # A layer is whole while it runs, and so is the next one.
        part = shape.body / launched() + 2 * shape.body / shape.layers
        held = min(weights, (shape.parameters - shape.body + part) * shape.weight_bytes)
        how = f"embedding and head, two layers, the others' part of {launched()}"
    listed = [
        Need("memory: frozen weights", held, "B", how, RUN_THE_MODEL),
        Need("memory: new rows with AdamW", 16 * matrices * n_new * shape.width, "B", "16 N D, twice if two rows"),
        Need(
            "memory: logits of a chunk",
            4 * LOGITS * height * sizes(cfg.runtime).chunk,
            "B",
            "16 W runtime.chunk",
            ("distill", "finetune", "evaluate"),
        ),
        Need(
            "memory: activations of a pass",
            shape.width * shape.weight_bytes * in_pass * kept,
            "B",
            "D b a token and layer, 34 D b one layer's" if d.gradient_checkpointing else "34 D b a token and layer",
        ),
    ]
    if d.shared_lr and n_new:
        features = FEATURES * shape.width
        amount = 4 * matrices * features * n_new + (8 * matrices + 12) * features * shape.width
        how = "16 N D + 80 D D" if matrices == 1 else "32 N D + 112 D D"
        listed.append(Need("memory: map of the new rows", amount, "B", how))
    if d.lora.r:
        listed.append(Need("memory: adapter with AdamW", 16 * adapter, "B", "16 a parameter"))
    listed.append(Need("memory: distillation in all", sum(need.amount for need in listed), "B", "the sum"))
    if tuned.method == "full":
        whole = 1 if cfg.runtime.pass_tokens else in_step / in_pass  # it runs in one pass, unless told otherwise
        amount = 16 * shape.parameters + listed[2].amount + listed[3].amount * whole
        listed.append(
            Need("memory: full fine-tuning in all", amount, "B", "16 P, logits and activations", ("finetune",))
        )
    if d.teacher == "self":
        stored = shape.weight_bytes * shape.width * unique
        listed.append(Need("disk: the teacher's states", stored, "B", "b D a token of its text", ("teacher",)))
    export = (shape.parameters + matrices * n_new * shape.width) * shape.weight_bytes
    listed.append(Need("disk: the exported model", export, "B", "b (P + N D)", ("export",)))

    head = 2 * height * shape.width
    seen = d.steps * batch
    if written:
        each = [(prompts(one) + one.n * one.n_bytes / BYTES_PER_TOKEN, one.n * one.n_bytes) for one in written.values()]
        work = sum(2 * shape.body * tokens + head * size / BYTES_PER_TOKEN for tokens, size in each)
        how = "token by token: on a GPU, slower than this"
        listed.append(Need("work: text that the model writes", work, "FLOP", how, ("teacher", "evaluate")))
    if d.teacher == "self":
        listed.append(Need("work: teacher", 2 * shape.body * unique, "FLOP", "2 B a token", ("teacher",)))
    compares = needs_teacher(terms_of(cfg.loss))
    columns = min(shape.vocabulary, d.sampled_softmax or shape.vocabulary) + n_new
    of_step = 2 * columns * shape.width
    step = SHORTER * ((6 if again else 4) * shape.body + 2 * of_step)
    if compares:
        step += of_step + (2 * shape.body if d.teacher == "online" else 0)
    if d.solve.iterations and n_new:
        solved, passes = unique * min(1, d.solve.snippets / snippets), d.solve.iterations * len(d.solve.ridges)
        how = f"the head of {columns:,} once, that of new tokens and back at {passes} passes or more"
        work = solved * (of_step + SHORTER * passes * 6 * n_new * shape.width)
        listed.append(Need("work: solving", work, "FLOP", how))
    how = f"forward, back through a frozen body, {'two heads' if compares else 'the head'} of {columns:,}"
    listed.append(Need("work: distillation", seen * step, "FLOP", how))
    if tuned.method != "none":
        passes = {"full": 6, "lora": 4, "rows": 4}[tuned.method] * shape.body + 3 * head
        tokens = tuned.steps * tuned.batch_size * tuned.snippet_bytes / BYTES_PER_TOKEN * SHORTER
        listed.append(Need("work: fine-tuning", tokens * passes, "FLOP", "forward and back", ("finetune",)))
    extended = 2 + (tuned.method != "none")
    models = 1 + extended + (tuned.method != "none" and tuned.control) + 2 * (cfg.eval.adapter is not None)
    texts = ["domain", "general", *(["general_code"] if cfg.corpus.general_code else [])]
    scored = models * sum(map(cfg.eval.size_of, texts)) / BYTES_PER_TOKEN
    work = scored * (2 * shape.body + 2 * head)
    if "write_test" in written:
        one = written["write_test"]
        tokens = models * one.n * one.n_bytes / BYTES_PER_TOKEN
        work += 2 * shape.body * (tokens + models * prompts(one)) + 2 * head * tokens
    listed.append(Need("work: scoring", work, "FLOP", "every model on held-out text", ("evaluate",)))
    if cfg.eval.marginal_words and n_new:
        text = cfg.eval.window_bytes / BYTES_PER_TOKEN * SHORTER / PER_TEXT
        work = extended * cfg.eval.marginal_words * (2 * shape.body * (text + HISTORIES) + head * ROWS)
        how = f"{text + HISTORIES:.0f} tokens a word and model"
        listed.append(Need("work: all cuts of words", work, "FLOP", how, ("evaluate",)))
    return listed


def prompts(cfg: WriteConfig) -> float:
    """Tokens of what the original model goes on from."""
    return cfg.n * cfg.prompt_bytes / BYTES_PER_TOKEN


def rate_here(cfg: Config) -> float:
    """FLOP a second of this machine's device in a product of two large matrices of float32."""
    device = device_of(cfg.runtime)
    left, right = (torch.randn(1024, 1024, device=device) for _ in range(2))
    (left @ right).sum().item()  # the first one may compile or warm up
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        (left @ right).sum().item()
        done += 1
    return 2 * 1024**3 * done / (time.perf_counter() - started)


def told(cfg: Config, rate: float | None = None) -> str:
    """The plan as text, of the stages that this configuration runs.

    Args:
        rate: FLOP a second that training reaches; None measures a matrix product here and takes half of its rate.
    """
    shape = shape_of(cfg)
    steps = steps_of(cfg)
    running = {steps[name].stage(name) for name in plan(steps, cfg.stages)}
    needed = [need for need in needs(cfg, shape) if running.intersection(need.stages)]
    said = f"{rate:.3g} FLOP/s, as given" if rate else ""
    if rate is None:
        rate = EFFICIENCY * rate_here(cfg)
        said = f"{rate:.3g} FLOP/s, half of what a large product of matrices reaches here"
    lines = [
        f"{shape.parameters / 1e6:,.0f} M parameters, width {shape.width:,}, {shape.layers} layers, "
        f"vocabulary {shape.vocabulary:,}, {'tied' if shape.tied else 'untied'}, {shape.weight_bytes} bytes a weight",
        "",
    ]
    for need in needed:
        amount = f"{need.amount / 1e9:,.2f} GB" if need.unit == "B" else f"{need.amount / 1e12:,.1f} TFLOP"
        hours = "" if need.unit == "B" else _time(need.amount / rate)
        lines.append(f"{need.what:<34} {amount:>16} {hours:>10}   {need.how}")
    total = sum(need.amount for need in needed if need.unit == "FLOP")
    if not needed:
        lines.append(f"stages=[{','.join(cfg.stages)}] never runs the model: text is read, cut and counted.")
    elif total:
        lines += [
            "",
            f"In all about {_time(total / rate)} at {said}; reading and cutting text, tasks that are answered "
            "(eval.suites) and what is drawn come on top.",
            f"Reckoned with {BYTES_PER_TOKEN} bytes a token, {1 - SHORTER:.0%} of the tokens saved; see "
            "docs/memory.md.",
        ]
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
