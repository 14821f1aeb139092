"""Hydra without what it does anew for every configuration, a third of its time: for all tests of a process, and for
the interpreters that they start. Imports nothing of this repository.
"""

import copy
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import omegaconf.base
from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository
from omegaconf.base import Metadata

CONF = Path(__file__).parents[2] / "conf"
_load = ConfigRepository.load_config
_interpolations = defaults_list._create_interpolation_map
_parse = omegaconf.base.parse
_parsed_once = lru_cache(4096)(_parse)
_loaded: dict[tuple[str, ...], Any] = {}


def quicken() -> None:
    """From now on presets are read once, interpolations parsed once and prepared for where a list of defaults has one,
    and what a copied node says of itself is copied by the names and types that it is of.
    """
    ConfigRepository.load_config = load_config  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = interpolations
    omegaconf.base.parse = omegaconf._utils.parse = _parsed_once
    Metadata.__deepcopy__ = copied  # type: ignore[attr-defined]


@contextmanager
def plain() -> Iterator[None]:
    """Here Hydra is as it was installed."""
    ConfigRepository.load_config = _load  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = _interpolations
    omegaconf.base.parse = omegaconf._utils.parse = _parse
    del Metadata.__deepcopy__  # type: ignore[attr-defined]
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


def copied(metadata: Metadata, memo: dict[int, Any]) -> Metadata:
    """As any dataclass is copied, but for names and types, which nobody changes."""
    new = object.__new__(type(metadata))
    new.__dict__.update(metadata.__dict__)
    new.flags = None if metadata.flags is None else dict(metadata.flags)
    new.resolver_cache = defaultdict(dict, copy.deepcopy(dict(metadata.resolver_cache), memo))
    return new


def interpolations(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
    """What the interpolations in a list of defaults may name; None if there are none, so that nobody asks."""
    return _interpolations(overrides, defaults, self_added) if any(d.is_interpolation() for d in defaults) else None
