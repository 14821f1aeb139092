"""Every key against values that nobody means: refused with one line that names the key, or taken as they are."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kldistill.pipeline import compose
from kldistill.pipeline.keys import known_keys
from kldistill.runtime.errors import ConfigError
from tests.helpers.runs import config

VALUES: list[Any] = [-1, 0, math.nan, math.inf, 10**30, "", "a/path", [], None, "${nowhere}", {"_target_": "os.getcwd"}]


@cache
def base() -> DictConfig:
    return config(["model=tiny"])


@cache
def keys() -> tuple[str, ...]:
    return tuple(known_keys(base()))


@contextmanager
def changed(key: str, value: Any) -> Iterator[DictConfig]:
    """The configuration with one other value, for as long as it is looked at: to copy all of it takes longer."""
    group, cfg = key.split(".")[0], base()
    kept = copy.deepcopy(cfg[group])
    try:
        OmegaConf.update(cfg, key, value)
        yield cfg
    finally:
        cfg[group] = kept


def refusal(key: str, value: Any) -> str | None:
    """What is said of a value; None if it is taken, and then a number is finite and not huge."""
    try:
        with changed(key, value) as cfg:
            compose.typed(cfg)
            stored = OmegaConf.select(cfg, key)  # a text may be "nan"
    except ConfigError as error:
        return str(error)
    except OmegaConfBaseException as error:  # on the command line, Hydra says it, with the key
        return f"{key}: {error.msg}".splitlines()[0]
    assert not isinstance(stored, int | float) or (math.isfinite(stored) and abs(stored) <= 10**12)
    return None


def test_there_are_keys_of_every_group() -> None:
    assert len(keys()) > 120
    groups = {key.split(".")[0] for key in keys()}
    assert groups == set(compose.Config.__dataclass_fields__)


def test_a_value_that_was_tried_is_gone() -> None:
    before = OmegaConf.to_yaml(base())
    for key in ("distill.loss", "eval.limits.cpu_seconds", "model", "outputs", "distill.seed"):
        for value in VALUES:
            refusal(key, value)
        assert OmegaConf.to_yaml(base()) == before, key


def check_said(key: str, values: list[Any]) -> None:
    """Each value of a key is refused in one line with its name, or taken."""
    parent = key.rpartition(".")[0]
    for value in values:
        said = refusal(key, value)
        if said is not None:
            assert "\n" not in said, (key, value)
            # The name or the group is enough where two keys are wrong together, or many are one (loss.terms.*).
            assert key in said or key.rpartition(".")[2] in said or parent in said, (key, value, said)


@pytest.mark.parametrize("group", sorted(compose.Config.__dataclass_fields__))
def test_every_key_is_tried_with_a_third_of_the_values_in_turn(group: str) -> None:
    for at, key in enumerate(keys()):
        if key.split(".")[0] == group:
            check_said(key, VALUES[at % 3 :: 3])


@pytest.mark.slow
def test_every_key_is_tried_with_every_value() -> None:
    for key in keys():
        check_said(key, VALUES)


@pytest.mark.parametrize(
    "key, value",
    [
        *((key, math.inf) for key in ("distill.lr", "loss.lr", "loss.terms.kl.weight", "distill.clip")),
        *((key, math.inf) for key in ("eval.temperature", "eval.limits.cpu_seconds")),
        *((key, value) for key in ("seed", "corpus.seed", "eval.seed") for value in (-1, 10**30)),
        *(("tokens.max_bytes", value) for value in (0, -1)),
        *(("distill.loss", value) for value in (0, [], "")),
        *((key, "") for key in ("model.name", "outputs", "runtime.device")),
        ("tokens.terms", "x" * 5_000),
        ("eval.suites", [[]]),
        ("corpus.packages", "notalist"),
        ("runtime.trust", ["os.path"]),
    ],
)
def test_nonsense_that_was_taken_once(key: str, value: Any) -> None:
    said = refusal(key, value)
    assert said is not None and key.split(".*")[0].rpartition(".")[0] in said, said


def test_what_runtime_says_enters_no_stages_slice() -> None:
    """Neither batch sizes of evaluation nor chunks of the vocabulary change a result beyond rounding."""
    cfg = compose.typed(base())
    for group in (cfg.distill, cfg.finetune, cfg.eval.scoring()):
        assert not hasattr(group, "chunk")
    assert not hasattr(cfg.eval.scoring(), "batch_size")
    assert (cfg.runtime.chunk, cfg.runtime.score_batch) == (None, None)
