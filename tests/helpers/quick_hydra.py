"""Hydra without what it does anew for every configuration, a third of its time: for all tests of a process, and for
the interpreters that they start. Imports nothing of this repository.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository

CONF = Path(__file__).parents[2] / "conf"
_load = ConfigRepository.load_config
_interpolations = defaults_list._create_interpolation_map
_loaded: dict[tuple[str, ...], Any] = {}


def quicken() -> None:
    """From now on presets are read and parsed once, and interpolations prepared where a list of defaults has one."""
    ConfigRepository.load_config = load_config  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = interpolations


@contextmanager
def plain() -> Iterator[None]:
    """Here Hydra is as it was installed."""
    ConfigRepository.load_config = _load  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = _interpolations
    try:
        yield
    finally:
        quicken()


def load_config(repository: ConfigRepository, config_path: str) -> Any:
    """What does not change while tests run, which is all but the presets and suites of a user's own folder, is kept."""
    fixed = all(source.scheme() != "file" or source.path == str(CONF) for source in repository.sources)
    compose = sys.modules.get("kldistill.pipeline.compose")
    if not fixed or (compose is not None and compose.own_folders()):
        return _load(repository, config_path)
    key = (config_path, *(f"{source.scheme()}://{source.path}" for source in repository.sources))
    if key not in _loaded:
        _loaded[key] = _load(repository, config_path)
    return copy.deepcopy(_loaded[key])


def interpolations(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
    """What the interpolations in a list of defaults may name; None if there are none, so that nobody asks."""
    return _interpolations(overrides, defaults, self_added) if any(d.is_interpolation() for d in defaults) else None
