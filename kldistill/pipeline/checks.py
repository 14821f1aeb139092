"""Checks that concern several config groups at once. All run before any text is read or any model is loaded."""

from pathlib import Path
from typing import Any

from kldistill.evaluation.generation import with_vllm
from kldistill.evaluation.sandbox import Sandbox
from kldistill.evaluation.suites import stage as tasks_stage
from kldistill.export import gguf_file, upload
from kldistill.losses.facts import loss_facts
from kldistill.model import smollm2
from kldistill.model.config import SmolLM2Config
from kldistill.pipeline.compose import Config
from kldistill.pipeline.step import plan
from kldistill.pipeline.steps import STAGES, steps_of
from kldistill.rows.inits import needs_pieces
from kldistill.runtime.components import Kind, find, plain, refuse_calls, trust
from kldistill.runtime.config import require, resolved
from kldistill.runtime.devices import check_compiler, check_device
from kldistill.runtime.errors import ConfigError
from kldistill.training.loss_config import LossConfig
from kldistill.training.objective import terms_of


def check(cfg: Config) -> None:
    """Refuse a configuration that cannot work.

    Raises:
        ConfigError: names the keys that do not go together, and a way out.
    """
    trust(cfg.runtime.trust)
    steps = steps_of(cfg)
    for key in ("stages", "force"):
        unknown = [name for name in getattr(cfg, key) if name not in STAGES and name not in steps]
        single = [name for name in steps if name not in STAGES]
        rule = f"stages are {', '.join(STAGES)}; single steps of this configuration, {', '.join(single)}"
        require(not unknown, key, unknown, rule)
    names = cfg.objective if isinstance(cfg.objective, list) else [cfg.objective]
    require(
        cfg.objective is None or (bool(names) and all(isinstance(name, str) and "/" in name for name in names)),
        "objective",
        cfg.objective,
        "must be the name of a final figure such as eval/distilled/domain/bits_per_byte, or a list of such names",
    )
    _check_targets(cfg)
    _check_loss(cfg, "loss", cfg.loss)
    if cfg.finetune.method != "none":
        _check_loss(cfg, "loss@finetune.loss", cfg.finetune.loss)
    solved_by = [loss_facts(term.function) for term in terms_of(cfg.loss).values()]
    if cfg.distill.solve.iterations and not any(facts.new_logits for facts in solved_by):
        raise ConfigError(
            f"distill.solve.iterations={cfg.distill.solve.iterations} with loss={cfg.loss.name}: a loss that does not "
            "see the logits of new tokens says nothing of their output rows. Use loss=kl, ce or kl_ce, or "
            "distill.solve.iterations=0."
        )
    if cfg.distill.solve.iterations and cfg.distill.teacher == "none":
        raise ConfigError(
            f"distill.solve.iterations={cfg.distill.solve.iterations} with distill.teacher=none: output rows are "
            "solved at the teacher's states, and there are none. Use distill.teacher=self, or "
            "distill.solve.iterations=0."
        )
    _check_suites(cfg)
    for key, value in {"eval.written": cfg.eval.written, "distill.self_written": cfg.distill.self_written}.items():
        require(
            not value or not getattr(cfg.corpus, "messages_field", None),
            key,
            value,
            "the original model goes on from plain text, and this corpus is of conversations; set it to 0",
        )
    if planned := {"export", "upload"} & set(plan(steps, cfg.stages)):
        _check_export(cfg, upload_too="upload" in planned)
    for side in ("input", "output"):
        node = getattr(cfg.init, side)
        if cfg.tokens.as_added_tokens and needs_pieces(find(node, "init", f"init.{side}")):
            method = node["_target_"].rpartition(".")[2]
            raise ConfigError(
                f"init.{side}={method} with tokens.as_added_tokens=true: it needs the exact pieces of every new token, "
                "and AddedTokens have none. Use init=random or init=mean, or tokens.as_added_tokens=false."
            )
    if cfg.tokens.terms is not None and not Path(cfg.tokens.terms).is_file():
        raise ConfigError(f"tokens.terms={cfg.tokens.terms!r}: there is no such file. It holds one term a line.")
    old_size = _known_size(cfg.model)
    if cfg.tokens.vocab_size is not None and old_size is not None and cfg.tokens.vocab_size <= old_size:
        raise ConfigError(
            f"tokens.vocab_size={cfg.tokens.vocab_size}: the old vocabulary has {old_size} tokens already. "
            "Give a larger total, or tokens.n_new."
        )
    if cfg.init.tie and getattr(cfg.model, "tied", True) is False:
        raise ConfigError(
            "init.tie=true with model.tied=false: the model has separate input and output embeddings; leave "
            "init.tie=null."
        )
    require(
        not cfg.runtime.shard or cfg.finetune.method != "full",
        "runtime.shard",
        True,
        "splits frozen layers, and finetune=full has none; use finetune=lora",
    )
    require(
        not cfg.runtime.shard or not cfg.eval.marginal_words,
        "runtime.shard",
        True,
        "needs every process to run the model equally often, and the cuts of a word (eval.marginal_words) take as many "
        "passes as there are; use eval.marginal_words=0, or evaluate in a run of its own without it",
    )


def _check_loss(cfg: Config, key: str, loss: LossConfig) -> None:
    """What a loss compares with must be there: the teacher, and the exact pieces of every new token."""
    for name, term in terms_of(loss).items():
        if term.teacher and cfg.distill.teacher == "online" and key != "loss":
            raise ConfigError(
                f"{key}={loss.name} with distill.teacher=online: its term {name} compares with the teacher's states of "
                f"the training text, which are not stored then. Use distill.teacher=self, or {key}=ce."
            )
        if term.teacher and cfg.distill.teacher == "none":
            raise ConfigError(
                f"{key}={loss.name} with distill.teacher=none: its term {name} compares with the teacher. "
                f"Use distill.teacher=self, or {key}=ce."
            )
        if loss_facts(term.function).exact_pieces and cfg.tokens.as_added_tokens:
            raise ConfigError(
                f"{key}={loss.name} with tokens.as_added_tokens=true: its term {name} needs the exact pieces of "
                f"every new token, and AddedTokens have none. Use {key}=ce, kl_old or hidden, or "
                "tokens.as_added_tokens=false."
            )


def check_surroundings(cfg: Config) -> None:
    """Refuse a run whose files or device are not there, before anything is made.

    Raises:
        KldistillError: names the key whose folder, file, pattern, package or device does not exist.
    """
    check_device(cfg.runtime)
    if cfg.runtime.compile:
        check_compiler()
    if cfg.eval.backend == "vllm" and _answers(cfg):
        with_vllm.check(cfg.runtime, cfg.eval.vllm)
    steps = steps_of(cfg)
    for name in plan(steps, cfg.stages):
        step = steps[name]
        if step.identity is not None:
            step.identity(step.config(cfg))


def _answers(cfg: Config) -> bool:
    """Whether models answer tasks in this run: by the stage, or by a single step of it that is named."""
    return any(name.startswith("generate_") for name in plan(steps_of(cfg), cfg.stages))


def _check_suites(cfg: Config) -> None:
    """The chosen suites' own keys and files; and generated programs run in a sandbox or not at all."""
    every = cfg.eval.all_suites()
    for name in cfg.eval.suites:
        suite = tasks_stage.suite_of(every[name], name)
        for used in every[name].get("suites", []):
            if used not in every:
                raise ConfigError(f"eval.{name}.suites: there is no suite {used!r} (there are: {', '.join(every)}).")
            tasks_stage.suite_of(every[used], used).identity()
        suite.identity()
        if suite.runs_code and _answers(cfg):
            with Sandbox(cfg.eval.limits, allow_unsandboxed=cfg.eval.allow_unsandboxed):
                pass  # it says at once what is missing


def _check_export(cfg: Config, upload_too: bool) -> None:
    """What the exported folder is to become, as far as the configuration tells whether it can."""
    if cfg.export.gguf:
        gguf_file.check_tokens(cfg.tokens.boundary, cfg.tokens.as_added_tokens)
    if upload_too and cfg.export.push_to_hub is not None:
        upload.check(cfg.export.push_to_hub, cfg.export.private)


def _known_size(model: Any) -> int | None:
    """Size of the old vocabulary, where the configuration alone tells it; else the tokens stage compares."""
    if isinstance(model, SmolLM2Config):
        return smollm2.VOCAB_SIZE
    return getattr(model, "vocab_size", None)


def _check_targets(cfg: Config) -> None:
    """Every component is of the kind that its key takes, and nothing else in the configuration names a function.

    All groups are looked at, also those that no stage of this run reads.
    """
    model = {key: value for key, value in plain(cfg.model).items() if key not in ("name", "license")}
    places: dict[str, tuple[Kind, Any]] = {"model": ("model", model)}
    for key in ("source", "general", "general_code"):
        if key != "general_code" or cfg.corpus.general_code:  # there may be no second general text
            places[f"corpus.{key}"] = ("source", getattr(cfg.corpus, key))
    for side in ("input", "output"):
        places[f"init.{side}"] = ("init", getattr(cfg.init, side))
    for group, loss in (("loss", cfg.loss), ("distill.loss", cfg.distill.loss), ("finetune.loss", cfg.finetune.loss)):
        for name, term in loss.terms.items():
            places[f"{group}.terms.{name}.function"] = ("loss", term.function)
    for name, node in cfg.eval.all_suites().items():
        places[f"eval.{name}"] = ("suite", node)
    for key, (kind, node) in places.items():
        find(node, kind, key)
    refuse_calls(resolved(cfg), "", places)
