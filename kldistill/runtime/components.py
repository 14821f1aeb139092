"""The one door from a ``_target_`` of the configuration to a function of this package."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import hydra.utils

from kldistill.runtime.errors import ConfigError


def component(target: str, key: str) -> Callable[..., Any]:
    """The function of this package that ``target`` names.

    The function must be *defined* in kldistill: a dotted path through one of its imports is refused too.
    Raises ``ConfigError`` naming ``key``.
    """
    if not target.startswith("kldistill."):
        raise ConfigError(f"{key}._target_={target!r}: only functions of kldistill may be named here.")
    try:
        found = hydra.utils.get_method(target)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target!r}: there is no such function.") from error
    if not str(getattr(found, "__module__", "")).startswith("kldistill."):
        raise ConfigError(f"{key}._target_={target!r}: only functions of kldistill may be named here.")
    return found


def plain(cfg: Any) -> dict[str, Any]:
    """A config node (dataclass, DictConfig or mapping) as a plain dict."""
    if dataclasses.is_dataclass(cfg):
        return dataclasses.asdict(cast(Any, cfg))
    return {str(key): value for key, value in cfg.items()}
