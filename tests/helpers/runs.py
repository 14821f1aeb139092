"""Whole runs for tests: a small corpus on disk, a composed configuration, and the pipeline in this process."""

import ast
import inspect
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from kldistill.pipeline import compose
from kldistill.pipeline.run import run_pipeline

# Few and small steps of everything; the model knows nothing, so nothing is lost.
SMALL = [
    "model=tiny",
    "corpus=local_files",
    "logger=none",
    "runtime.device=cpu",
    "corpus.validation=0.2",
    "corpus.test=0.2",
    "corpus.max_copied=1",
    "corpus.general_max_bytes=40000",
    "corpus.general.packages=[rich]",
    "corpus.general.requirements=false",
    "corpus/general_code=none",
    "tokens.n_new=24",
    "distill.steps=4",
    "distill.batch_size=2",
    "distill.validate_every=2",
    "distill.snippet_bytes=200",
    "distill.validation_bytes=600",
    "eval.domain_bytes=1500",
    "eval.general_bytes=800",
    "eval.window_bytes=300",
    "interpret.n_contexts=3",
    "interpret.context_bytes=300",
    "interpret.n_uses=6",
    "interpret.attention_contexts=1",
]


def config(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes of conf/ and these overrides."""
    compose.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))


def write_corpus(folder: Path) -> Path:
    """A folder of Python files: the functions of two standard modules, one a file."""
    folder.mkdir(parents=True)
    for module in (ast, textwrap):
        source = inspect.getsource(module)
        for node in ast.parse(source).body:
            text = ast.get_source_segment(source, node) or ""
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and 200 < len(text) < 4000:
                (folder / f"{module.__name__}_{node.name}.py").write_text(text + "\n")
    return folder


def overrides_of(corpus: Path, outputs: Path, *more: str) -> list[str]:
    """The overrides of a small run."""
    return [*SMALL, f"corpus.path={corpus}", f"outputs={outputs}", *more]


def run(corpus: Path, outputs: Path, *more: str, name: str = "run") -> dict[str, Any]:
    """Run the pipeline in this process, and give the content of its run.json."""
    cfg = compose.typed(config(overrides_of(corpus, outputs, *more)))
    folder = outputs / "runs" / name
    run_pipeline(cfg, folder)
    return read_run(folder)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run's folder."""
    return json.loads((folder / "run.json").read_text())
