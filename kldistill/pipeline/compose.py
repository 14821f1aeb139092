"""The whole configuration: its root schema, and what makes Hydra find schemas, presets and folder names."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kldistill.corpus.config import CorpusConfig, HfDatasetCorpus, LocalFilesCorpus, PythonPackageCorpus
from kldistill.evaluation.config import EvalConfig, with_suites
from kldistill.export.config import ExportConfig
from kldistill.interpret.config import InterpretConfig
from kldistill.model.config import (
    Gemma3Config,
    GgufConfig,
    HfModelConfig,
    SmolLM2Config,
    TinyModelConfig,
)
from kldistill.pipeline.keys import check_values, refuse_unknown
from kldistill.pipeline.names import experiment_name, overrides_name
from kldistill.pipeline.steps import STAGES
from kldistill.rows.config import InitConfig
from kldistill.runtime.config import LoggerConfig, RuntimeConfig, resolved
from kldistill.runtime.errors import ConfigError
from kldistill.tokens.config import TokensConfig
from kldistill.training.config import DistillConfig
from kldistill.training.finetune_config import FinetuneConfig
from kldistill.training.loss_config import LossConfig

# Keys that may hold a path of this machine, or a list of them.
PATHS = (
    "outputs",
    "model.path",
    "model.file",
    "corpus.path",
    "corpus.data_files",
    "tokens.terms",
    "eval.mbpp.path",
)


def conf_folder() -> Path:
    """The presets: beside the package in a checkout, inside it where it was installed from a wheel."""
    for folder in (resources.files("kldistill") / "conf", Path(__file__).parents[2] / "conf"):
        path = Path(str(folder))
        if (path / "config.yaml").is_file():
            return path
    raise ConfigError("conf/config.yaml is missing from this installation of kldistill: install it again.")


@dataclass
class Config:
    """Root of the configuration. The presets of ``model`` and ``corpus`` bring a schema of their own, as each has other
    keys.

    Attributes:
        seed: default of every other seed.
        outputs: folder of artifacts and runs.
        stages: what to run; what these need is built too where it is missing.
        force: stages or single steps to build anew, with everything in this run that follows from them.
        objective: a final figure of docs/metrics.md, or a list of them, that a run gives back to a sweeper that
            optimises, such as Optuna.
    """

    seed: int = 0
    outputs: str = "outputs"
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    force: list[str] = field(default_factory=list)
    objective: Any = None
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    model: Any = MISSING  # a model of the user's own has keys of its own, and needs no schema
    corpus: CorpusConfig = MISSING
    tokens: TokensConfig = field(default_factory=TokensConfig)
    init: InitConfig = MISSING
    loss: LossConfig = MISSING
    distill: DistillConfig = field(default_factory=DistillConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    interpret: InterpretConfig = field(default_factory=InterpretConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


# The types of presets that are more than their group's: those of the other groups follow from ``Config``.
SCHEMAS: dict[str, type] = {
    "corpus_python_package": PythonPackageCorpus,
    "corpus_local_files": LocalFilesCorpus,
    "corpus_hf_dataset": HfDatasetCorpus,
    "model_smollm2": SmolLM2Config,
    "model_gemma3": Gemma3Config,
    "model_gguf": GgufConfig,
    "model_hf": HfModelConfig,
    "model_tiny": TinyModelConfig,
}


_own: list[Path] = []  # the user's folder of presets, if any


def register(folder: Path | None = None) -> None:
    """Make schemas and resolvers known to Hydra. Safe to call again.

    Args:
        folder: the user's own folder of presets (``--config-dir``), whose suites are then known too.
    """
    if folder is not None:
        _own[:] = [folder]
    _store([conf_folder(), *_own])
    OmegaConf.register_new_resolver("kldistill.experiment", experiment_name, replace=True)
    OmegaConf.register_new_resolver("kldistill.overrides", overrides_name, replace=True)
    OmegaConf.register_new_resolver("kldistill.of", value_of, replace=True)
    OmegaConf.register_new_resolver("kldistill.home", lambda path: str(Path(path).expanduser()), replace=True)


def own_folders() -> list[Path]:
    """The user's folder of presets, if there is one."""
    return list(_own)


def is_choice(word: str) -> bool:
    """Whether an override picks a preset of a group (``loss=kl``, ``hydra/launcher=slurm``, ``--config-dir``'s too)."""
    key = word.split("=", 1)[0].lstrip("+~").split("@")[0]
    folders = [conf_folder(), *own_folders()]
    return "/" in key or key.startswith("hydra.") or any((folder / key).is_dir() for folder in folders)


def _store(folders: Sequence[Path]) -> None:
    _store_schemas()
    _store_suites(
        tuple(sorted({path.stem for folder in folders for path in (folder / "eval" / "suite").glob("*.yaml")}))
    )


@lru_cache(maxsize=1)  # what the store holds now: to put it there again takes longer than to read most presets
def _store_suites(suites: tuple[str, ...]) -> None:
    store = ConfigStore.instance()
    store.store(group="schema", name="eval", node=with_suites(suites))
    store.store(group="eval/suite", name="all", node={"defaults": [f"{name}@{name}" for name in suites]})


@cache
def _store_schemas() -> None:
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    for name, schema in SCHEMAS.items():
        store.store(group="schema", name=name, node=schema)


def value_of(key: str, values: Mapping[str, Any]) -> Any:
    """``${kldistill.of:${loss.name},{kl: 4e-3, ce: 5e-4}}``: a preset's value for each choice of another group.

    A ``_target_`` is known by its last name.
    """
    name = key.rsplit(".", 1)[-1]
    if name not in values:
        raise ConfigError(f"the preset has no value for {name}, only for {', '.join(values)}")
    return values[name]


def with_home(override: str) -> str:
    """An override in which a path's leading ``~`` is the home folder, as in ``corpus.path=~/src`` or ``[~/a,~/b]``.

    No shell expands it there, and Hydra's grammar has no such character. What is quoted is left as it is.
    """
    key, equals, value = override.partition("=")
    if not equals or any(quote in value for quote in "'\""):
        return override

    def expanded(match: re.Match[str]) -> str:
        path = str(Path(os.path.expanduser(match[0])))
        plain = override.startswith("--") or re.fullmatch(r"[\w./+@%-]+", path)
        return path if plain else "'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'"

    return key + equals + re.sub(r"(?<![^\[,])~[^\[\],]*", expanded, value)


def typed(cfg: DictConfig) -> Config:
    """The composed configuration as typed objects, ``~`` in paths expanded; runs every schema's own checks.

    Raises:
        ConfigError: a missing value, an unknown key, an interpolation that leads nowhere, or a value out of its range.
    """
    refuse_unknown(cfg)
    expanded: dict[str, Any] = {}
    for key in PATHS:
        value = OmegaConf.select(cfg, key, throw_on_resolution_failure=False, throw_on_missing=False)
        if isinstance(value, str) and value.startswith("~"):
            expanded[key] = os.path.expanduser(value)
        elif isinstance(value, ListConfig):
            expanded[key] = [os.path.expanduser(v) if isinstance(v, str) else v for v in value]
    if expanded:
        cfg = copy.deepcopy(cfg)
        OmegaConf.set_readonly(cfg, False)
        for key, value in expanded.items():
            OmegaConf.update(cfg, key, value)
    try:
        check_values(OmegaConf.to_container(cfg, resolve=True), "")
        return cast(Config, OmegaConf.to_object(cfg))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None)
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}: {reason}. Give it on the command line, as {key}=VALUE.") from error


@cache
def defaults() -> Mapping[str, Any]:
    """The resolved configuration of the command without any override, nested, as in ``run.json``. The user's own
    presets have no part in it. Composed once a process: all runs of a sweep compare themselves with it.
    """
    register()
    _store([conf_folder()])
    # Hydra holds one composition per process: inside a job it is the job's own, which must be back afterwards.
    hydra = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
            return resolved(typed(hydra_compose("config")))
    finally:
        register()
        GlobalHydra.instance().clear()
        if hydra is not None:
            GlobalHydra.instance().initialize(hydra)
