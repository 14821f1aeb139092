"""Whole runs for tests: a small corpus on disk, a composed configuration, and the pipeline in this process."""

import ast
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from omegaconf import _utils

from kldistill.interpret import completions
from kldistill.interpret import pictures as interpret_pictures
from kldistill.pipeline import compose
from kldistill.pipeline import run as pipeline
from kldistill.pipeline.run_record import PAGE
from tests.helpers.composing import config

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
    "tokens.curve=64",
    "loss=kl_ce",
    "distill=rows",
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
    "interpret.completions=1",
]


def write_corpus(folder: Path) -> Path:
    """A folder of Python files: the functions of one module of omegaconf, a file each."""
    folder.mkdir(parents=True)
    for name, text in _functions().items():
        (folder / name).write_text(text)
    return folder


@cache
def _functions() -> dict[str, str]:
    """The files of the corpus."""
    found = {}
    source = inspect.getsource(_utils)
    for node in ast.parse(source).body:
        text = ast.get_source_segment(source, node) or ""
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and 200 < len(text) < 4000:
            found[f"{node.name}.py"] = text + "\n"
    return found


def overrides_of(corpus: Path, outputs: Path, *more: str) -> list[str]:
    """The overrides of a small run."""
    return [*SMALL, f"corpus.path={corpus}", f"outputs={outputs}", *more]


@contextmanager
def undrawn() -> Iterator[None]:
    """Here runs draw no pictures and no page, which take longer than all the rest of a small run, and complete lines by
    a few bytes: a model that knows nothing ends none.
    """
    none = SimpleNamespace(learning=lambda folder: None, standing=lambda metrics, folder: None)
    with (
        patch.object(completions, "BUDGET", 16),
        patch.object(interpret_pictures, "draw", lambda report, points, out: {}),
        patch.object(pipeline, "pictures", none),
        patch.object(pipeline, "render_run", lambda folder: folder / PAGE),
    ):
        yield


def run(corpus: Path, outputs: Path, *more: str, name: str = "run", draw: bool = False) -> dict[str, Any]:
    """Run the pipeline in this process, and give the content of its run.json. With ``draw``, pictures and page too."""
    cfg = compose.typed(config(overrides_of(corpus, outputs, *more)))
    folder = outputs / "runs" / name
    with nullcontext() if draw else undrawn():
        pipeline.run_pipeline(cfg, folder)
    return read_run(folder)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run's folder."""
    return json.loads((folder / "run.json").read_text())
