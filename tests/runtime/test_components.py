"""The door from a ``_target_`` to a function: what may pass, and that nothing is called before it has."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kldistill.corpus import stage as corpus_stage
from kldistill.corpus.config import CorpusConfig
from kldistill.evaluation.config import TasksConfig
from kldistill.evaluation.suites import stage as tasks_stage
from kldistill.losses import ce, hidden, kl, kl_first, kl_old
from kldistill.losses.facts import LossFacts, loss, loss_facts
from kldistill.model import stage as model_stage
from kldistill.runtime import components
from kldistill.runtime.components import component, find
from kldistill.runtime.errors import ConfigError
from kldistill.training import distill
from kldistill.training.loss_config import LossConfig, LossTerm

OF_KIND = {
    "model": "kldistill.model.tiny.build",
    "source": "kldistill.corpus.sources.local_files",
    "init": "kldistill.rows.inits.mean",
    "loss": "kldistill.losses.ce",
    "suite": "kldistill.evaluation.suites.humaneval.HumanEval",
}
JUDGE = "kldistill.evaluation.sandbox.pool.judge"


@pytest.mark.parametrize("kind", OF_KIND)
@pytest.mark.parametrize(
    "target",
    [
        *OF_KIND.values(),
        JUDGE,
        "kldistill.evaluation.sandbox.Limits",
        "kldistill.model.smollm2.subprocess.run",
        "kldistill.model.stage.json.loads",
        "kldistill.nothing",
        "kldistill",
        "kldistill.",
        "kldistill..x",
        "kldistill_evil.x",
        "os.system",
        "",
        None,
        3,
    ],
)
def test_a_key_takes_components_of_its_own_kind_alone(kind: components.Kind, target: Any) -> None:
    node = {"_target_": target, **({"path": "x", "glob": "y"} if "local_files" in str(target) else {})}
    if target == OF_KIND[kind]:
        assert find(node, kind, "some.key").func is not None
        return
    with pytest.raises(ConfigError, match=r"^some\.key\._target_=.*\.$") as caught:
        find(node, kind, "some.key")
    assert "\n" not in str(caught.value)


def attack(flag: Path) -> dict[str, Any]:
    program = f"open({str(flag)!r}, 'w').close()"
    return {
        "_target_": JUDGE,
        "program": program,
        "limits": {"_target_": "kldistill.evaluation.sandbox.limits.Limits"},
        "boxed": False,
    }


def corpus_of(node: dict[str, Any]) -> CorpusConfig:
    good = {"_target_": OF_KIND["source"], "path": "x", "glob": "y"}
    return CorpusConfig(source=node, general=good)


DOORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "corpus": lambda node: corpus_stage.identity(corpus_of(node)),
    "model": model_stage.identity,
    "tasks": lambda node: tasks_stage.identity(TasksConfig("mbpp", node, {})),
    "loss": lambda node: distill.terms_of(LossConfig("some", terms={"a": LossTerm(node)})),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_program_runs_where_an_identity_is_taken(door: str, tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    with pytest.raises(ConfigError, match=r"pool\.judge"):
        DOORS[door](attack(flag))
    assert not flag.exists()


def test_no_call_hides_in_a_setting(tmp_path: Path) -> None:
    for value in ({"_target_": "os.getcwd"}, [{"_target_": "os.getcwd"}], {"deep": [{"_target_": "os.getcwd"}]}):
        with pytest.raises(ConfigError, match=r"corpus\.source\.path.*_target_='os.getcwd'"):
            find({"_target_": OF_KIND["source"], "path": value, "glob": "x"}, "source", "corpus.source")
    for key in ("_partial_", "_args_", "_recursive_", "_convert_"):
        with pytest.raises(ConfigError, match=rf"^corpus\.source\.{key}: has no meaning here"):
            find({"_target_": OF_KIND["source"], "path": "x", "glob": "x", key: True}, "source", "corpus.source")


def test_settings_are_checked_by_name_and_type_before_the_call() -> None:
    target = "kldistill.corpus.prose.package_docs"
    with pytest.raises(ConfigError, match=r"^corpus\.general\.packages='notalist': "):
        find({"_target_": target, "packages": "notalist"}, "source", "corpus.general")
    with pytest.raises(ConfigError, match=r"^corpus\.general\.packages: package_docs needs it"):
        find({"_target_": target}, "source", "corpus.general")
    with pytest.raises(ConfigError, match=r"^corpus\.general\.package: package_docs has no such setting; it has pack"):
        find({"_target_": target, "packages": [], "package": 1}, "source", "corpus.general")
    with pytest.raises(ConfigError, match=r"^init\.input\.pieces: mean has no such setting; it has none"):
        find({"_target_": "kldistill.rows.inits.mean", "pieces": []}, "init", "init.input")
    with pytest.raises(ConfigError, match=r"^model\.say: build has no such setting"):
        find({"_target_": "kldistill.model.tiny.build", "say": "x"}, "model", "model")
    found = find({"_target_": "kldistill.rows.inits.weighted_mean", "rate": 2}, "init", "init.input")
    assert found.keywords == {"rate": 2.0}


def test_the_parameters_of_a_loss_say_what_it_compares() -> None:
    assert {function.__name__: loss_facts(function) for function in (ce, hidden, kl, kl_first, kl_old)} == {
        "ce": LossFacts(hidden=False, teacher=False, exact_pieces=False, new_logits=True, sampled=True),
        "hidden": LossFacts(hidden=True, teacher=True, exact_pieces=False, new_logits=False, sampled=True),
        "kl": LossFacts(hidden=False, teacher=True, exact_pieces=True, new_logits=True, sampled=True),
        "kl_first": LossFacts(hidden=False, teacher=True, exact_pieces=True, new_logits=True, sampled=True),
        "kl_old": LossFacts(hidden=False, teacher=True, exact_pieces=False, new_logits=False, sampled=True),
    }
    with pytest.raises(TypeError, match="first parameters of a loss"):
        loss()(lambda logits, alignment: None)


def test_an_unmarked_or_imported_function_is_no_component(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = component("source")(lambda: None)
    marked.__module__ = "elsewhere"
    monkeypatch.setattr(components, "marked", marked, raising=False)
    with pytest.raises(ConfigError, match="is not a source"):
        find({"_target_": "kldistill.runtime.components.marked"}, "source", "corpus.source")
    monkeypatch.setattr(components, "system", os.system, raising=False)
    with pytest.raises(ConfigError, match="is not a source"):
        find({"_target_": "kldistill.runtime.components.system"}, "source", "corpus.source")
