"""What a run was asked for: the difference between its configuration and the defaults of the day it ran.

It is written into ``run.json`` when the run starts, so that a page drawn later says nothing of later defaults.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kldistill.runtime.secrets import redact
from kldistill.runtime.tracking.labels import flatten

# Copies of other keys, which the schema keeps beside their origin.
_COPIES = ("distill.loss.", "finetune.loss.")


class Change(NamedTuple):
    """One key whose value is not the default; None stands for a key that is not there."""

    key: str
    value: str | None
    default: str | None


def changes(config: Mapping[str, Any], default: Mapping[str, Any]) -> list[Change]:
    """Every key that differs, in the order of the configuration; keys and branches that are gone come last."""
    now, was = _flat(config), _flat(default)
    shared = (Change(key, _show(now, key), _show(was, key)) for key in now)
    gone = dict.fromkeys(_branch(key, now) for key in was if key not in now)
    return [
        *(change for change in shared if change.value != change.default),
        *(Change(key, None, _show(was, key) or "there") for key in gone),
    ]


def _branch(key: str, now: Mapping[str, Any]) -> str:
    """The shortest beginning of a key below which the configuration has nothing: one line says that it is all gone."""
    parts = key.split(".")
    for n in range(1, len(parts)):
        branch = ".".join(parts[:n])
        if branch not in now and not any(other.startswith(f"{branch}.") for other in now):
            return branch
    return key


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flatten(redact(config)).items() if not key.startswith(_COPIES)}


def _show(flat: Mapping[str, Any], key: str) -> str | None:
    if key not in flat:
        return None
    value = flat[key]
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)
