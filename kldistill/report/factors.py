"""What the runs of a folder differ in: the overrides that vary, and the cells that they span."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from kldistill.report.data import Run
from kldistill.wandb_run import flatten

SEED = "seed"
FOLDER = "folder"

# Say how or where to run, not what.
_NO_FACTOR = ("stages", "force", "logger", "runtime.", "outputs", "hydra")
# Looked at where Hydra recorded no overrides: runs that were started from Python.
_USUAL = ("model", "tokens.n_new", "tokens.boundary", "init", "loss", "finetune", "seed")
_OVERRIDE = re.compile(r"[+~]*([^=]+?)(?:=(.*))?", flags=re.DOTALL)


def factors(runs: Sequence[Run]) -> tuple[dict[str, list[str]], list[dict[str, str]]]:
    """What varies among the runs.

    A factor is a key that some command line gave and that has several values, such as ``loss`` or ``tokens.n_new``;
    a run that did not give it has its configuration's value. Where two runs would have the same values of all factors,
    their folder is one more.

    Returns:
        The values of every factor, in order, and the labels of every run: its value of every factor.
    """
    given = [overrides_of(run) for run in runs]
    keys = list(dict.fromkeys(key for found in given for key in found))
    if any(run.overrides is None and run.config for run in runs):
        keys += [key for key in _USUAL if key not in keys]
    labels = [{key: label(run, key, found) for key in keys} for run, found in zip(runs, given, strict=True)]
    values = {key: sorted({found[key] for found in labels}, key=natural) for key in keys}
    values = {key: found for key, found in values.items() if len(found) > 1}
    # Seeds last, what is compared before them, so that tables read from the coarse to the fine.
    names = sorted(values, key=lambda key: (key == SEED, key == "loss", key == "init"))
    labels = [{key: found[key] for key in names} for found in labels]
    if len({tuple(found.values()) for found in labels}) < len(runs):
        labels = [{FOLDER: str(run.folder), **found} for run, found in zip(runs, labels, strict=True)]
        return {FOLDER: [found[FOLDER] for found in labels], **{key: values[key] for key in names}}, labels
    return {key: values[key] for key in names}, labels


def overrides_of(run: Run) -> dict[str, str]:
    """What the command line gave, by key, without what only says how to run."""
    found: dict[str, str] = {}
    for text in run.overrides or []:
        match = _OVERRIDE.fullmatch(text)
        assert match is not None
        key, value = match.group(1).split("@")[0], match.group(2) or ""
        if not key.startswith(_NO_FACTOR):
            found[key] = value
    return found


def label(run: Run, key: str, given: Mapping[str, str]) -> str:
    """A run's value of a factor: its preset of a group, or its value of a key."""
    if key in run.choices:
        return run.choices[key]
    if key in given:
        return _plain(given[key])
    node = run.config.get(key)
    if isinstance(node, Mapping):
        return _named(key, node)
    return _plain(str(flatten(run.config).get(key, "")))


def _named(group: str, node: Mapping[str, Any]) -> str:
    """A short name of a group's configuration, where no preset's name was recorded."""
    if group == "init" and "input" in node and "output" in node:
        sides = [str(node[side].get("_target_", "")).rsplit(".", 1)[-1] for side in ("input", "output")]
        return sides[0] if sides[0] == sides[1] else "/".join(sides)
    for key in ("name", "path", "method", "family"):
        if node.get(key):
            return str(node[key])
    return str(node.get("_target_", "")).rsplit(".", 1)[-1]


def _plain(value: str) -> str:
    """One spelling of a number, however the command line wrote it: ``3e-3`` and ``0.003`` are the same."""
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:g}" if math.isfinite(number) else value


def natural(value: str) -> tuple[int, float, str]:
    """Sorts numbers by size, before words."""
    try:
        number = float(value)
    except ValueError:
        return 1, 0.0, value
    return 0, number, value


def expected(values: Mapping[str, Sequence[str]], n_runs: int) -> list[dict[str, str]]:
    """All cells of the grid: the product of the values seen.

    Empty where the runs are plainly no grid: where that product has more than two cells a run. (A grid that is filled
    in the order of its cells, as Hydra does, never has.)
    """
    size = math.prod(len(found) for found in values.values())
    if not values or size > 2 * n_runs:
        return []
    return [dict(zip(values, cell, strict=True)) for cell in product(*values.values())]
