"""Use from Python: the configuration that the command line would make, for calling the stages as functions.

A stage is ``build(cfg, inputs, out, job)``: its slice of the configuration, folders by name, an existing folder to
write to, and ways to report. See docs/python.md and examples/extend_with_terms.py.
"""

from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kldistill.pipeline.checks import check
from kldistill.pipeline.compose import Config, conf_folder, is_choice, register, typed, with_home
from kldistill.pipeline.keys import refuse_deletions
from kldistill.pipeline.steps import steps_of
from kldistill.runtime.errors import ConfigError


def configure(*overrides: str, values: Mapping[str, Any] | None = None) -> Config:
    """The typed configuration of all stages.

    Args:
        overrides: as on the command line: ``"model=hf"``, ``"distill.steps=300"``, ``"experiment=quickstart"``.
        values: keys and values that need no parsing, such as paths with spaces: ``{"model.path": folder}``.

    Raises:
        ConfigError: as on the command line, before anything runs.
    """
    register()
    running = GlobalHydra.instance().hydra  # of a program that has a Hydra of its own
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
            words = [with_home(override) for override in overrides]
            choices = [word for word in words if is_choice(word)]
            parsed = OverridesParser.create().parse_overrides(words)
            refuse_deletions(parsed, lambda: compose("config", overrides=choices), is_choice)
            cfg = compose("config", overrides=words)
        for key, value in (values or {}).items():
            OmegaConf.update(cfg, key, value)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    finally:
        GlobalHydra.instance().clear()
        if running is not None:
            GlobalHydra.instance().initialize(running)
    found = typed(cfg)
    check(found)
    return found


def slice_of(cfg: Config, step: str) -> Any:
    """What a step sees of the configuration: the typed first argument of its function.

    Most steps have a group of their own; that of ``teacher``, for one, follows from ``distill``.

    Args:
        step: ``model``, ``corpus``, ``tokens``, ``init``, ``teacher``, ``distill``, ``finetune``,
            ``evaluate_original``, ``evaluate_distilled``, ``interpret``, ``export`` and so on, as in ``run.json``.

    Raises:
        ConfigError: this configuration has no such step.
    """
    steps = steps_of(cfg)
    if step not in steps:
        raise ConfigError(f"There is no step {step!r} in this configuration; it has {', '.join(steps)}.")
    return steps[step].config(cfg)
