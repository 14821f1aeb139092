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
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf.base import Box, Metadata

CONF = Path(__file__).parents[2] / "conf"
_load = ConfigRepository.load_config
_compose = ConfigLoaderImpl._compose_config_from_defaults_list
_embed = ConfigLoaderImpl._embed_result_config
_for_one_composition = CachingConfigRepository.__init__
_interpolations = defaults_list._create_interpolation_map
_parse_rule = OverridesParser.parse_rule
_re_parent = Box._re_parent
_parse = omegaconf.base.parse
_parsed_once = lru_cache(4096)(_parse)
_loaded: dict[tuple[str, ...], Any] = {}
_composed: dict[tuple[Any, ...], Any] = {}
_overrides: dict[str, Override] = {}


def quicken() -> None:
    """From now on presets are read once and put together once for the same list of them (the command does so three
    times), overrides and interpolations parsed once, these prepared for where a list of defaults has one, what a copied
    node says of itself is copied by the names and types that it is of, and a node is told of its parent if that is new.
    """
    CachingConfigRepository.__init__ = for_one_composition  # type: ignore[method-assign]
    ConfigRepository.load_config = load_config  # type: ignore[method-assign]
    ConfigLoaderImpl._embed_result_config = staticmethod(embedded)  # type: ignore[method-assign]
    OverridesParser.parse_rule = parse_rule  # type: ignore[method-assign]
    ConfigLoaderImpl._compose_config_from_defaults_list = composed  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = interpolations
    omegaconf.base.parse = omegaconf._utils.parse = _parsed_once
    Box._re_parent = re_parent  # type: ignore[method-assign]
    Metadata.__deepcopy__ = copied  # type: ignore[attr-defined]


@contextmanager
def plain() -> Iterator[None]:
    """Here Hydra is as it was installed."""
    CachingConfigRepository.__init__ = _for_one_composition  # type: ignore[method-assign]
    ConfigRepository.load_config = _load  # type: ignore[method-assign]
    ConfigLoaderImpl._embed_result_config = staticmethod(_embed)  # type: ignore[method-assign]
    OverridesParser.parse_rule = _parse_rule  # type: ignore[method-assign]
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose  # type: ignore[method-assign]
    defaults_list._create_interpolation_map = _interpolations
    omegaconf.base.parse = omegaconf._utils.parse = _parse
    Box._re_parent = _re_parent  # type: ignore[method-assign]
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


def for_one_composition(caching: CachingConfigRepository, delegate: Any) -> None:
    """With a copy of where presets come from: what is set anew there is not set in what all share."""
    caching.delegate = copy.copy(delegate)
    caching.cache = {}


def parse_rule(parser: OverridesParser, text: str, rule_name: str) -> Any:
    """An override as it is read, which is done once: what a parser adds is in a copy."""
    if rule_name != "override":
        return _parse_rule(parser, text, rule_name)
    if text not in _overrides:
        _overrides[text] = _parse_rule(parser, text, rule_name)
    return copy.copy(_overrides[text])


def load_config(repository: ConfigRepository, config_path: str) -> Any:
    """A preset, read once. All share its content, of which Hydra takes a copy (see ``embedded``)."""
    if (places := sources(repository)) is None:
        return _load(repository, config_path)
    key = (config_path, *places)
    if key not in _loaded:
        _loaded[key] = _load(repository, config_path)
    return copy.copy(_loaded[key])


def embedded(preset: Any, package_override: Any) -> Any:
    """A preset below its package, where its content is copied to; without one the content itself is taken."""
    found = _embed(preset, package_override)
    if found is preset:
        found = copy.copy(preset)
        found.config = copy.deepcopy(preset.config)
    return found


def composed(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    """All presets of a list together, put together once."""
    if (places := sources(repo)) is None:
        return _compose(loader, defaults, repo)
    key = (*((one.config_path, one.package, one.parent, one.is_self, one.primary) for one in defaults), places)
    if key not in _composed:
        _composed[key] = _compose(loader, defaults, repo)
    return copy.deepcopy(_composed[key])


def re_parent(box: Box) -> None:
    """All below a node have the one above them as their parent, which after a merge most of a configuration has."""
    content = box.__dict__["_content"]
    if not isinstance(content, dict | list):
        _re_parent(box)
        return
    for child in content.values() if isinstance(content, dict) else content:
        if child is not None:
            if child.__dict__["_parent"] is not box:
                child._set_parent(box)
            if hasattr(child, "_re_parent"):
                child._re_parent()


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
