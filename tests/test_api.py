"""Use from Python: typed stages, the configuration, and the example as a user would run it."""

import inspect
import os
import subprocess
import typing
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill.api import configure, slice_of
from kldistill.corpus.config import LocalFilesCorpus
from kldistill.pipeline.compose import Config
from kldistill.pipeline.steps import steps_of
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.job import Job
from kldistill.tokens.config import TokensConfig
from kldistill.training.config import TeacherConfig
from tests.helpers.artifacts import MakeModel
from tests.helpers.interpreter import python
from tests.helpers.paths import ROOT
from tests.helpers.runs import SMALL, write_corpus

EXAMPLE = ROOT / "examples" / "extend_with_terms.py"
TERMS = ["iter_child_nodes", "NodeVisitor", "generic_visit"]


def stages() -> list[str]:
    """Every function that a run may call, whatever its configuration, by dotted name."""
    cfg = configure("model=tiny", "finetune=rows", "eval.suites=[completion]")
    return sorted({f"{step.run.__module__}.{step.run.__qualname__}" for step in steps_of(cfg).values()})


def test_every_stage_is_a_typed_function() -> None:
    found = stages()
    assert len(found) >= 12
    for name in found:
        module, _, function = name.rpartition(".")
        build = getattr(import_module(module), function)
        hints = typing.get_type_hints(build)
        parameters = list(inspect.signature(build).parameters)
        assert parameters == ["cfg", "inputs", "out", "job"], name
        assert set(parameters) <= set(hints), name
        assert hints["return"] is type(None), name
        assert typing.get_origin(hints["inputs"]) is Mapping and hints["out"] is Path and hints["job"] is Job, name
        assert inspect.getdoc(build), name


def test_slices_are_what_the_stages_say_they_take() -> None:
    cfg = configure("model=tiny", "finetune=rows")
    for name, step in steps_of(cfg).items():
        wanted = typing.get_type_hints(getattr(import_module(step.run.__module__), step.run.__qualname__))["cfg"]
        assert wanted is typing.Any or isinstance(slice_of(cfg, name), wanted), name


def test_configure_is_the_command_line() -> None:
    folder = "a folder = 'odd' \\ name"
    cfg = configure(
        "model=tiny", "corpus=local_files", "distill.steps=7", "distill.batch_size=3", values={"corpus.path": folder}
    )
    assert isinstance(cfg, Config)
    assert isinstance(cfg.corpus, LocalFilesCorpus) and cfg.corpus.path == folder
    assert cfg.corpus.source["path"] == folder  # interpolations see it too
    assert isinstance(cfg.tokens, TokensConfig)
    assert cfg.distill.steps == 7
    derived = slice_of(cfg, "teacher")
    assert isinstance(derived, TeacherConfig) and derived.n_snippets == 21
    with pytest.raises(ConfigError, match="no step 'finetune'"):
        slice_of(cfg, "finetune")


@pytest.mark.parametrize(
    ("overrides", "values", "message"),
    [
        (["model=tiny", "distill.stepz=1"], {}, "stepz"),
        (["model=tiny", "distill.steps=many"], {}, "many"),
        (["model=tiny"], {"distill.stepz": 1}, "stepz"),
        (["model=tiny"], {"distill.steps": "many"}, "many"),
        (["model=tiny", "distill.steps=0"], {}, r"distill\.steps"),
        (["model=tiny", "~tokens.curve"], {}, r"~tokens\.curve: a key of the schema"),
        (["model=hf"], {}, r"model\.path"),
        (["model=tiny", "tokens=list"], {"tokens.terms": "nowhere.txt"}, "nowhere"),
    ],
)
def test_mistakes_are_told_as_on_the_command_line(
    overrides: list[str], values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(*overrides, values=values)
    assert not GlobalHydra.instance().is_initialized()


def test_what_is_an_entry_of_a_mapping_or_a_preset_can_be_taken_away() -> None:
    cfg = configure("model=tiny", "~loss.terms.ce", "~experiment")
    assert list(cfg.loss.terms) == ["kl"]


def test_a_program_with_a_hydra_of_its_own_keeps_it() -> None:
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        own = GlobalHydra.instance().hydra
        assert configure("model=tiny").model.name == "tiny"
        assert GlobalHydra.instance().hydra is own


def test_the_example_runs(tiny_model: MakeModel, tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40
    texts = write_corpus(tmp_path / "my texts")
    for number, path in enumerate(sorted(texts.rglob("*.py"))):
        path.rename(path.with_suffix([".md", ".txt", ".rs"][number % 3]))
    kept = ("corpus.", "loss=", "distill", "runtime.")
    settings = [text for text in SMALL if text.startswith(kept)]
    model = tiny_model("gpt2")
    command = [python(), str(EXAMPLE), str(model), str(texts), str(tmp_path / "out"), *TERMS, *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"The extended model: {tmp_path / 'out' / 'export'}"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "export")
    for term in TERMS:
        assert len(tokenizer.encode(term)) == 1 == len(tokenizer.encode(f" {term}"))
        assert len(AutoTokenizer.from_pretrained(model).encode(term)) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "export")
    assert loaded.config.vocab_size == len(tokenizer) > 512


def test_the_example_without_arguments_says_how_it_is_used() -> None:
    done = subprocess.run([python(), str(EXAMPLE)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python extend_with_terms.py MODEL (folder or hub id) TEXTS (folder) OUT TERM")
    assert "Traceback" not in done.stderr
