"""The configuration of a test as Hydra composes it, in a tenth of the time."""

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from kldistill.pipeline import compose


def config(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes of conf/ and these overrides.

    To put presets together takes most of the time, so it is done once for each choice of them; then Hydra sets the
    values in a copy, by the very function that it has for that. tests/pipeline/test_compose.py shows that nothing else
    comes of it than of ``composed``.
    """
    compose.register()
    parsed = [_parsed(text) for text in overrides]
    choices = tuple(str(override.input_line) for override in parsed if _chooses(override))
    cfg = copy.deepcopy(_chosen(choices, tuple(compose.own_folders())))
    ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if not _chooses(override)], cfg)
    return cfg


def composed(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes of conf/ and these overrides, all of it by Hydra's own entry."""
    compose.register()
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
            return hydra_compose("config", overrides=list(overrides))
    finally:
        GlobalHydra.instance().clear()
        if running is not None:
            GlobalHydra.instance().initialize(running)


@cache
def _parsed(text: str) -> Override:
    """An override of the command line, as Hydra reads it."""
    return OverridesParser.create().parse_overrides([text])[0]


def _chooses(override: Override) -> bool:
    """Whether an override chooses a preset, or is no value of a key at all."""
    key = override.key_or_group
    return (
        override.package is not None
        or override.is_sweep_override()
        or key.startswith("hydra")
        or (compose.conf_folder() / key).is_dir()
    )


@cache
def _chosen(choices: tuple[str, ...], own: tuple[Path, ...]) -> DictConfig:
    """What Hydra composes of a choice of presets, with the user's own folders. Shared: never change it."""
    return composed(choices)
