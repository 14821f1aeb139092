"""Fixtures shared by all tests: tiny models of every family, and a tokens artifact made without the tokens stage.

What takes seconds to import is imported where it is used: the process that hands tests to workers needs none of it.
"""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("KLDISTILL_PROGRESS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers import interpreter
from tests.helpers.rewriting import rewrite_all
from tests.helpers.unsynced import no_sync

if TYPE_CHECKING:
    from tests.helpers.artifacts import MakeModel, MakeTokens

# How long examples take to draw and to run says how busy the machine is.
settings.register_profile("kldistill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kldistill")


def pytest_configure() -> None:
    no_sync()
    interpreter.offer()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Fork the workers of a whole run, too, and meanwhile do once what each would do before its first test."""
    if config.args_source is config.ArgsSource.TESTPATHS:
        starting = Thread(target=interpreter.python)
        starting.start()
        rewrite_all(config)
        starting.join()
        for spec in specs:
            spec.python = interpreter.python()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: going through it for garbage again and again takes a tenth of all time."""
    import torch

    from tests.helpers.quick_hydra import quicken

    torch.set_num_threads(1)
    quicken()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """``tiny_model(family="llama", **settings)``: folder of a model artifact, made once for the same settings.

    Settings are those of ``TinyModelConfig``. The folder is shared: never write into it.
    """
    from kldistill.model import stage as model_stage
    from kldistill.model.config import TinyModelConfig
    from kldistill.runtime.job import Job

    made: dict[str, Path] = {}

    def make(family: str = "llama", **settings: object) -> Path:
        key = json.dumps([family, settings], sort_keys=True)
        if key not in made:
            out = tmp_path_factory.mktemp(f"model_{family}_")
            model_stage.build(TinyModelConfig(family=family, **settings), {}, out, Job())  # type: ignore[arg-type]
            made[key] = out
        return made[key]

    return make


@pytest.fixture(scope="session")
def fake_tokens(tmp_path_factory: pytest.TempPathFactory) -> MakeTokens:
    """``fake_tokens(model_folder, n=24)``: a tokens artifact with the n most frequent pairs of old tokens as new ones.

    Made by hand, so that what comes after the tokens stage can be tested without it; old splitting rule.
    """
    from tests.helpers.artifacts import write_tokens

    made: dict[tuple[Path, int], Path] = {}

    def make(model_folder: Path, n: int = 24) -> Path:
        if (model_folder, n) not in made:
            made[model_folder, n] = write_tokens(model_folder, tmp_path_factory.mktemp("tokens_"), n)
        return made[model_folder, n]

    return make
