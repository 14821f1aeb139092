"""The configuration of a test as Hydra composes it, in a tenth of the time."""

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
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


_load = ConfigRepository.load_config
_loaded: dict[tuple[Path, ...], dict[str, Any]] = {}  # by the user's own folders, of which schemas depend


@cache
def _chosen(choices: tuple[str, ...], own: tuple[Path, ...]) -> DictConfig:
    """What Hydra composes of a choice of presets. Shared: never change it.

    Hydra would read every file again, and prepare for interpolations in lists of defaults, of which conf/ has none.
    """
    files = _loaded.setdefault(own, {})

    def load(repository: ConfigRepository, config_path: str) -> Any:
        if config_path not in files:
            files[config_path] = _load(repository, config_path)
        return copy.deepcopy(files[config_path])

    with (
        patch.object(ConfigRepository, "load_config", load),
        patch.object(defaults_list, "_create_interpolation_map", lambda *_: None),
    ):
        return composed(choices)
