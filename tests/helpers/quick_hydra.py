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
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from omegaconf.base import Metadata

CONF = Path(__file__).parents[2] / "conf"
_load = ConfigRepository.load_config
_compose = ConfigLoaderImpl._compose_config_from_defaults_list
_interpolations = defaults_list._create_interpolation_map
_parse = omegaconf.base.parse
_parsed_once = lru_cache(4096)(_parse)
_loaded: dict[tuple[str, ...], Any] = {}
_composed: dict[tuple[Any, ...], Any] = {}


def quicken() -> None:
    """From now on presets are read once and put together once for the same list of them (the command does so three
    times), interpolations parsed once and prepared for where a list of defaults has one, and what a copied node says of
    itself is copied by the names and types that it is of.
    """
    ConfigRepository.load_config = load_config  # type: ignore[method-assign]
    ConfigLoaderImpl._compose_config_from_defaults_list = composed  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = interpolations
    omegaconf.base.parse = omegaconf._utils.parse = _parsed_once
    Metadata.__deepcopy__ = copied  # type: ignore[attr-defined]


@contextmanager
def plain() -> Iterator[None]:
    """Here Hydra is as it was installed."""
    ConfigRepository.load_config = _load  # type: ignore[method-assign]
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = _interpolations
    omegaconf.base.parse = omegaconf._utils.parse = _parse
    del Metadata.__deepcopy__  # type: ignore[attr-defined]
    try:
        yield
    finally:
        quicken()


def sources(repository: Any) -> tuple[str, ...] | None:
    """Where presets come from, if they do not change while tests run: in a user's own folder presets and suites do."""
    found = repository.get_sources()
    compose = sys.modules.get("kldistill.pipeline.compose")
    if any(source.scheme() == "file" and source.path != str(CONF) for source in found):
        return None
    own = compose is not None and compose.own_folders()
    return None if own else tuple(f"{source.scheme()}://{source.path}" for source in found)


def load_config(repository: ConfigRepository, config_path: str) -> Any:
    """A preset, read once."""
    if (places := sources(repository)) is None:
        return _load(repository, config_path)
    key = (config_path, *places)
    if key not in _loaded:
        _loaded[key] = _load(repository, config_path)
    return copy.deepcopy(_loaded[key])


def composed(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    """All presets of a list together, put together once."""
    if (places := sources(repo)) is None:
        return _compose(loader, defaults, repo)
    key = (*((one.config_path, one.package, one.parent, one.is_self, one.primary) for one in defaults), places)
    if key not in _composed:
        _composed[key] = _compose(loader, defaults, repo)
    return copy.deepcopy(_composed[key])


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
