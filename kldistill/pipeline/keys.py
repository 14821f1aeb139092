"""The keys of a composed configuration: which of them no schema knows, and what holds for every value."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeGuard

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kldistill.runtime.config import require
from kldistill.runtime.errors import ConfigError

_LARGEST = 10**12


def refuse_unknown(cfg: DictConfig) -> None:
    """Raise ``ConfigError`` for keys that no schema knows (Hydra adds whatever ``+`` says), with the nearest known."""
    unknown = _unknown(cfg, "")
    if unknown:
        key = unknown[0]
        raise ConfigError(f"{key}: there is no such key.{did_you_mean(key, known_keys(cfg))}")


def refuse_deletions(
    overrides: Sequence[Override], compose: Callable[[], DictConfig], is_choice: Callable[[str], bool]
) -> None:
    """``~`` takes away entries of mappings, such as a term of a loss; what the schema names always has a value.

    Args:
        compose: gives the configuration with its presets alone.
        is_choice: whether an override is of a preset, which may be left out.

    Raises:
        ConfigError: for a key of the schema, one that is not there, or one that has another value than was said.
    """
    deleted = [one for one in overrides if one.is_delete() and not is_choice(one.input_line or "")]
    base = compose() if deleted else DictConfig({})
    for override in deleted:
        key, word = override.key_or_group, override.input_line
        above, _, name = key.rpartition(".")
        parent = OmegaConf.select(base, above) if above else base
        there = isinstance(parent, DictConfig) and name in parent
        if not there:
            raise ConfigError(f"{word}: there is no such key.{did_you_mean(key, known_keys(base))}")
        node = parent._get_node(name)
        if is_dataclass(OmegaConf.get_type(parent)):
            value = "null" if node._is_optional() else "VALUE"  # type: ignore[union-attr]
            group = key.partition(".")[0]
            preset = f", or choose another preset of {group} (kldistill --help {group})" if above else ""
            raise ConfigError(
                f"{word}: a key of the schema always has a value, so it cannot be deleted. Set {key}={value}{preset}."
            )
        if override.value() is not None and override.value() != parent[name]:
            raise ConfigError(f"{word}: this is not its value. ~{key} deletes it, whatever its value is.")


def known_keys(cfg: DictConfig) -> list[str]:
    """Every key with a value that the schemas of this configuration know, dotted, in order."""
    unknown = set(_unknown(cfg, ""))
    return [key for key in _leaves(cfg, "") if key not in unknown]


def did_you_mean(key: str, known: Sequence[str]) -> str:
    """`` Did you mean distill.steps?``: the nearest of the known keys by its whole name, else the nearest within the
    same group, else the same name in another group.
    """
    group, _, name = key.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == group}
    near = (
        difflib.get_close_matches(key, known, 1, 0.8)
        or [siblings[other] for other in difflib.get_close_matches(name, siblings, 1)]
        or [other for other in known if group and other.rpartition(".")[2] == name]
    )
    return f" Did you mean {near[0]}?" if near else " See kldistill --help."


def _is_branch(node: Any) -> TypeGuard[DictConfig]:
    """Whether there are keys below a node of the configuration."""
    empty = node._is_none() or node._is_missing() or node._is_interpolation()
    return isinstance(node, DictConfig) and not empty and len(node) > 0


def _unknown(node: Any, key: str) -> list[str]:
    """Keys of typed nodes that are no fields of their types; below an unknown key, those that hold a value."""
    if not _is_branch(node):
        return []
    schema = OmegaConf.get_type(node)
    names = {item.name for item in fields(schema)} if is_dataclass(schema) else None
    leaves = []
    for name in node:
        inside = f"{key}.{name}" if key else str(name)
        child = node._get_node(name)
        if names is not None and name not in names:
            leaves += _leaves(child, inside)
        else:
            leaves += _unknown(child, inside)
    return leaves


def _leaves(node: Any, key: str) -> list[str]:
    """Keys at and below a node that hold a value."""
    if not _is_branch(node):
        return [key]
    return [leaf for name in node for leaf in _leaves(node._get_node(name), f"{key}.{name}" if key else str(name))]


def check_values(node: Any, key: str) -> None:
    """What holds for every value, whatever its key. Raises ``ConfigError`` naming the key.

    Numbers are finite and of a size that some machine could work with, seeds are what every generator of random numbers
    takes, and texts are neither empty nor longer than the name of a file can be.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            check_values(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_values(value, f"{key}[{index}]")
    elif isinstance(node, float):
        require(math.isfinite(node), key, node, "must be a finite number")
        require(abs(node) <= _LARGEST, key, node, f"must be at most {_LARGEST:,}")
    elif isinstance(node, int) and not isinstance(node, bool):
        require(abs(node) <= _LARGEST, key, node, f"must be at most {_LARGEST:,}")
        is_seed = key.rpartition(".")[2] == "seed"
        require(not is_seed or 0 <= node < 2**32, key, node, "a seed is at least 0 and below 2**32")
    elif isinstance(node, str):
        require(bool(node.strip()), key, node, "is empty; give a value, or leave the key out")
        require("\0" not in node, key, node, "holds a zero byte")
        if len(node) > 4096 or any(len(part.encode(errors="replace")) > 255 for part in Path(node).parts):
            raise ConfigError(f"{key}: {len(node):,} characters are too long for a name or a path.")
