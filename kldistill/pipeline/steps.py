"""Which steps a run has: the function of each, what it reads, and what of the configuration it sees.

This table alone says which stages there are and in which order they run. It is read before anything is loaded: the
functions are imported when they are called.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kldistill.evaluation.config import (
    EvaluateConfig,
    GenerateConfig,
    GenerateWithVllmConfig,
    TasksConfig,
    WriteConfig,
)
from kldistill.evaluation.metrics import OLD_CUT
from kldistill.export.config import ExportConfig, UploadConfig
from kldistill.model.config import AdapterConfig
from kldistill.pipeline.step import Step, Steps, stages_of
from kldistill.rows.config import InitConfig
from kldistill.tokens.config import TokensConfig
from kldistill.training.config import TeacherConfig

if TYPE_CHECKING:
    from kldistill.pipeline.compose import Config

REPORT = "report"  # the one stage that is no step: it draws what stands in the run's folder when all steps are done


def steps_of(cfg: "Config") -> dict[str, Step]:
    """The steps of this configuration, in the order in which they run."""
    covers = cfg.distill.draw == "cover"  # then the text depends on the new tokens
    finetuned = ("with control" if cfg.finetune.control else "yes") if cfg.finetune.method != "none" else ""
    writes = [split for split, n in (("train", _n_written(cfg)), ("test", cfg.eval.written)) if n]
    steps = _steps(list(dict.fromkeys(cfg.eval.suites)), finetuned, covers, writes, cfg.eval.adapter is not None)
    if cfg.export.push_to_hub is not None:
        steps["upload"] = Step(_later("export.upload.build"), _upload, _same("export"), group="export", figures=None)
    if getattr(cfg.corpus, "messages_field", None):
        steps = _with_chats(steps)
    if cfg.tokens.method == "none":
        del steps["interpret"]  # there is no new row to explain
    return steps


def _steps(
    suites: Sequence[str], finetuned: str, covers: bool, writes: Sequence[str] = (), with_adapter: bool = False
) -> dict[str, Step]:
    read = {split: {"written": f"write_{split}"} if split in writes else {} for split in ("train", "test")}
    steps = {
        "model": Step(
            _later("model.stage.build"),
            lambda cfg: cfg.model,
            identity=_later("model.stage.identity"),
            version=2,
        ),
        "corpus": Step(
            _later("corpus.stage.build"),
            lambda cfg: cfg.corpus,
            identity=_later("corpus.stage.identity"),
            version=7,
        ),
        "tokens": Step(
            _later("tokens.stage.build"), lambda cfg: cfg.tokens, _same("model", "corpus"), identity=_terms, version=4
        ),
        "init": Step(_later("rows.stage.build"), lambda cfg: cfg.init, _same("model", "tokens")),
    }
    for suite in suites:
        steps[f"tasks_{suite}"] = Step(
            _later("evaluation.suites.stage.build"),
            _tasks(suite),
            _same("corpus", "tokens"),
            group="evaluate",
            identity=_later("evaluation.suites.stage.identity"),
            version=2,
        )
    if "test" in writes:
        steps["write_test"] = _write("test", "evaluate")
    steps["evaluate_original"] = Step(
        _later("evaluation.score.evaluate_original"),
        _evaluate("original"),
        {**_same("model", "corpus"), **read["test"]},
        group="evaluate",
        version=4,
        together=True,
    )
    steps |= _generation("original", suites, _same("model"))
    steps |= _evaluation("init", "init", [])
    if "train" in writes:
        steps["write_train"] = _write("train", "teacher")
    steps["teacher"] = Step(
        _later("training.teacher.build"),
        _teacher,
        {**_same("model", "corpus", *(["tokens"] if covers else [])), **read["train"]},
        version=7,
        together=True,
    )
    sources = _same("model", "tokens", "init", "teacher")
    steps["distill"] = Step(
        _later("training.distill.build"), lambda cfg: cfg.distill, sources, version=5, resumable=True, together=True
    )
    steps |= _evaluation("distilled", "distill", suites)
    if with_adapter:
        steps |= _with_adapter(steps, suites)
    last = "distill"
    if finetuned:
        last = "finetune"
        sources = {**_same("model", "tokens", "corpus", "teacher"), "rows": "distill"}
        steps[last] = Step(
            _later("training.finetune.build"),
            lambda cfg: cfg.finetune,
            sources,
            version=6,
            resumable=True,
            together=True,
        )
        steps |= _evaluation("finetuned", last, suites)
    if finetuned == "with control":
        steps |= _control(steps, suites)
    sources = {**_same("model", "tokens", "corpus", "init"), "rows": last}
    steps["interpret"] = Step(_later("interpret.build"), lambda cfg: cfg.interpret, sources, version=6, together=True)
    measured = [name for name, step in steps.items() if step.group == "evaluate" and not name.startswith("tasks_")]
    sources = {**_same("model", "tokens"), "rows": last}
    # The model card tells how the rows came about, and what was measured.
    told = [*(name for name in ("init", "distill") if name != last), *measured]
    export, early = _later("export.stage.build"), {"model": _later("export.stage.check_model")}
    shown = "The extended model"
    steps["export"] = Step(export, _export, sources, optional=told, version=3, early=early, result=shown)
    return steps


def _with_chats(steps: Steps) -> dict[str, Step]:
    """The steps of a run whose corpus is of conversations: rendered for the model, they are all others' corpus."""
    early, sources = {"model": _later("tokens.chat.check_model")}, _same("model", "corpus")
    chat = Step(_later("tokens.chat.build"), lambda cfg: cfg.corpus, sources, group="corpus", early=early, version=2)
    others = {
        name: replace(step, inputs={key: "chat" if of == "corpus" else of for key, of in step.inputs.items()})
        for name, step in steps.items()
    }
    return {name: others[name] for name in ("model", "corpus")} | {"chat": chat} | others


def _later(path: str) -> Callable[..., Any]:
    """The function of this dotted name in the package, imported when it is called."""
    module, _, name = f"kldistill.{path}".rpartition(".")

    def call(*arguments: Any) -> Any:
        return getattr(import_module(module), name)(*arguments)

    call.__module__, call.__qualname__ = module, name
    return call


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _control(steps: Steps, suites: Sequence[str]) -> dict[str, Step]:
    """The steps that fine-tune the original model: those of the extended one without new tokens, and all else alike."""
    none = TokensConfig(method="none", curve=0)
    mean = {"_target_": "kldistill.rows.inits.mean"}
    start = InitConfig(mean, mean)  # of no row at all: one control for all starts of a sweep
    rows = {"model": "model", "tokens": "control_tokens"}
    sources = {**rows, **_same("corpus", "teacher"), "rows": "control_init"}
    group = "finetune"
    return {
        "control_tokens": replace(steps["tokens"], config=lambda cfg: none, identity=None, group=group, figures=None),
        "control_init": replace(steps["init"], config=lambda cfg: start, inputs=rows, group=group, figures=None),
        "control": replace(steps["finetune"], inputs=sources, group=group, figures="control"),
        **_evaluation("control", "control", suites, tokens="control_tokens"),
    }


def _with_adapter(steps: Steps, suites: Sequence[str]) -> dict[str, Step]:
    """The steps that measure an adapter of the original: on the original, and on the distilled model."""
    return {
        "adapted": Step(
            _later("model.stage.adapted"),
            lambda cfg: AdapterConfig(str(cfg.eval.adapter), getattr(cfg.model, "local_files_only", False)),
            _same("model"),
            group="evaluate",
            identity=_later("model.stage.adapter_identity"),
        ),
        "evaluate_adapted": replace(
            steps["evaluate_original"], config=_evaluate("adapted"), inputs={"model": "adapted", "corpus": "corpus"}
        ),
        **_generation("adapted", suites, {"model": "adapted"}),
        **_evaluation("carried", "distill", suites, model="adapted", original="adapted"),
    }


def _evaluation(
    of: str,
    rows: str,
    suites: Sequence[str],
    tokens: str = "tokens",
    model: str = "model",
    original: str = "original",
) -> dict[str, Step]:
    """The steps that measure the extended model with the rows of one stage, and compare it with ``original``."""
    inputs = {"model": model, "tokens": tokens, "rows": rows}
    sources = {**inputs, "evaluate_original": f"evaluate_{original}"}
    score = Step(
        _later("evaluation.score.evaluate_student"), _evaluate(of), sources, group="evaluate", version=6, together=True
    )
    return {f"evaluate_{of}": score, **_generation(of, suites, inputs, original)}


def _generation(
    of: str, suites: Sequence[str], inputs: Mapping[str, str], original: str = "original"
) -> dict[str, Step]:
    """The steps in which one model answers the tasks of every suite."""
    steps = {}
    for suite in suites:
        sources = {**inputs, "tasks": f"tasks_{suite}"}
        if of != "original":
            sources |= {"original": f"generate_{original}_{suite}", "teacher": "teacher"}
        steps[f"generate_{of}_{suite}"] = Step(
            _later("evaluation.answer.build"),
            _generate(of, suite),
            sources,
            group="evaluate",
            resumable=True,
            version=4,
            together=True,
        )
    return steps


def _terms(cfg: TokensConfig) -> dict[str, str]:
    """Content of the user's list of terms, as the slice only names the file; and versions of parts of the stage alone:
    what is made with other settings has not changed.
    """
    versions = {"added_tokens": "2"} if cfg.as_added_tokens else {"auto": "2"} if cfg.boundary == "auto" else {}
    if cfg.terms is None:
        return versions
    return {"terms": hashlib.sha256(Path(cfg.terms).read_bytes()).hexdigest(), **versions}


def _teacher(cfg: "Config") -> TeacherConfig:
    d = cfg.distill
    return TeacherConfig(
        d.snippet_bytes,
        d.n_snippets,
        d.validation_bytes,
        {"self": "all", "online": "held_out"}.get(d.teacher, "none"),
        draw=d.draw,
        seed=d.text_seed,
        general=d.general,
        self_written=d.self_written,
    )


def _export(cfg: "Config") -> ExportConfig:
    """What the folder is made of; where it is uploaded to makes no other folder."""
    return replace(cfg.export, push_to_hub=None, private=True)


def _upload(cfg: "Config") -> UploadConfig:
    assert cfg.export.push_to_hub is not None
    return UploadConfig(cfg.export.push_to_hub, cfg.export.private)


def _n_written(cfg: "Config") -> int:
    """How many snippets of the training text the original model writes."""
    d = cfg.distill
    return round(d.n_snippets * d.self_written)


def _write(split: str, group: str) -> Step:
    """The step in which the original model goes on from beginnings of a split."""

    def cut(cfg: "Config") -> WriteConfig:
        if split == "test":
            return WriteConfig(f"eval.written={cfg.eval.written}", split, cfg.eval.written, seed=cfg.eval.seed)
        d = cfg.distill
        key = f"distill.self_written={d.self_written}"
        return WriteConfig(key, split, _n_written(cfg), d.snippet_bytes, seed=d.text_seed)

    return Step(_later("evaluation.written.build"), cut, _same("model", "corpus"), group=group)


def _evaluate(of: str) -> Callable[["Config"], EvaluateConfig]:
    def cut(cfg: "Config") -> EvaluateConfig:
        scoring = cfg.eval.scoring()
        # The original model has no new tokens.
        return EvaluateConfig(of, replace(scoring, marginal_words=0) if of in ("original", "adapted") else scoring)

    return cut


def _tasks(suite: str) -> Callable[["Config"], TasksConfig]:
    def cut(cfg: "Config") -> TasksConfig:
        every = cfg.eval.all_suites()
        uses = {name: every[name] for name in every[suite].get("suites", []) if name in every}
        return TasksConfig(suite, every[suite], uses, cfg.eval.limit, cfg.eval.limits, cfg.eval.allow_unsandboxed)

    return cut


def _generate(of: str, suite: str) -> Callable[["Config"], GenerateConfig]:
    def cut(cfg: "Config") -> GenerateConfig:
        kind = GenerateWithVllmConfig if cfg.eval.backend == "vllm" else GenerateConfig
        names = {item.name for item in fields(kind)} - {"model", "suite"}
        own = {name: getattr(cfg.eval, name) for name in names}
        if of in OLD_CUT:
            own["cut"] = "free"  # they have no new tokens
        return kind(of, suite, **own)

    return cut


STAGES = [*stages_of(_steps([], "yes", covers=True)), REPORT]
