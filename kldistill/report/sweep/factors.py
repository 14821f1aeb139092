"""What the runs of a folder differ in: the overrides that vary, and the cells that they span."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from kldistill.report.data import FINISHED, RUNNING, Run

SEED = "seed"
FOLDER = "folder"

# Say how or where to run, or what a sweeper is told of it, not what runs.
_NO_FACTOR = ("stages", "force", "logger", "runtime.", "outputs", "objective", "hydra")
# Looked at where Hydra recorded no overrides: runs that were started from Python.
_USUAL = ("model", "tokens.n_new", "tokens.boundary", "init", "loss", "finetune", "seed")
_OVERRIDE = re.compile(r"[+~]*([^=]+?)(?:=(.*))?", flags=re.DOTALL)


def factors(runs: Sequence[Run], compared: str = "loss") -> tuple[dict[str, list[str]], list[dict[str, str]]]:
    """What varies among the runs.

    A factor is a key that some command line gave and that has several values, such as ``loss`` or ``tokens.n_new``;
    a run that did not give it has its configuration's value. A key that only failed runs gave is no factor: one
    mistaken key would part a whole sweep. Keys of the compared group that do not belong to all its values (such as the
    weight of a term that others have not) are part of the value: ``kl_ce, terms.ce.weight=0.3``.

    Args:
        compared: the factor whose values are compared with each other.

    Returns:
        The values of every factor, in order, and the labels of every run: its value of every factor, empty where a run
        left nothing that tells it.
    """
    given = [overrides_of(run) for run in runs]
    keys, own = _keys(runs, given, compared)
    labels = [{key: label(run, key, asked) for key in keys} for run, asked in zip(runs, given, strict=True)]
    if own:
        for run, asked, labelled in zip(runs, given, labels, strict=True):
            extra = [f"{key.removeprefix(compared)[1:]}={label(run, key, asked)}" for key in own if key in asked]
            labelled[compared] = ", ".join([labelled[compared], *extra])
    # A run without a configuration may leave a label empty that has a value.
    whole = [labelled for run, labelled in zip(runs, labels, strict=True) if run.config]
    values = {}
    for key in keys:
        seen = {labelled[key] for labelled in whole} | {labelled[key] for labelled in labels if labelled[key]}
        if len(seen) > 1:
            values[key] = sorted(seen, key=natural)
    # Seeds last, what is compared before them, so that tables read from the coarse to the fine.
    names = sorted(values, key=lambda key: (key == SEED, key == "loss", key == "init"))
    return {key: values[key] for key in names}, [{key: labelled[key] for key in names} for labelled in labels]


def _keys(runs: Sequence[Run], given: Sequence[Mapping[str, str]], compared: str) -> tuple[list[str], list[str]]:
    """The keys that may be factors, and those that belong to the values of the compared one."""
    telling = [index for index, run in enumerate(runs) if run.status in (FINISHED, RUNNING)] or range(len(runs))
    keys = [key for index in telling for key in given[index]]
    if any(run.overrides is None and run.config for run in runs):
        keys += _USUAL
    kinds = [(label(runs[index], compared, given[index]), given[index]) for index in telling]
    own = [key for key in dict.fromkeys(keys) if key.startswith(f"{compared}.") and not _of_all_kinds(key, kinds)]
    return list(dict.fromkeys(key for key in [*keys, *([compared] if own else [])] if key not in own)), own


def _of_all_kinds(key: str, given: Sequence[tuple[str, Mapping[str, str]]]) -> bool:
    """Whether most runs of every value of the compared factor gave ``key``, which then is a factor of its own."""
    by_kind: dict[str, list[bool]] = {}
    for kind, keys in given:
        by_kind.setdefault(kind, []).append(key in keys)
    return all(2 * sum(said) > len(said) for said in by_kind.values())


def twins(runs: Sequence[Run], labels: Sequence[Mapping[str, str]]) -> dict[int, int]:
    """Runs that say nothing of their own beside another run with the same labels.

    These are runs that are not finished where that one is, and runs with the same configuration.

    Returns:
        Their positions, each with that of the run that stands for it: a finished one if there is, and the latest.
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, label in enumerate(labels):
        alike.setdefault(tuple(label.values()), []).append(index)
    aside = {}
    for group in alike.values():
        best = max(group, key=lambda index: (runs[index].status == FINISHED, runs[index].time, str(runs[index].folder)))
        for index in group:
            beaten = runs[best].status == FINISHED != runs[index].status
            if index != best and (beaten or _substance(runs[index]) == _substance(runs[best])):
                aside[index] = best
    return aside


def is_cell(labels: Mapping[str, str], values: Mapping[str, Sequence[str]]) -> bool:
    """Whether all labels of a run are values of the factors: not those of one that left too little to tell them."""
    return all(value in values[name] for name, value in labels.items())


def told_apart(
    runs: Sequence[Run], values: Mapping[str, list[str]], labels: Sequence[Mapping[str, str]], below: Path
) -> tuple[dict[str, list[str]], list[dict[str, str]]]:
    """Values and labels, with the folder (from ``below`` on) as one more factor where labels do not tell runs apart."""
    if len({tuple(label.values()) for label in labels}) == len(runs):
        return dict(values), [dict(label) for label in labels]
    folders = [run.below(below) for run in runs]
    return {FOLDER: folders, **values}, [{FOLDER: own, **label} for own, label in zip(folders, labels, strict=True)]


def related(runs: Sequence[Run], own: Collection[Path]) -> list[Run]:
    """The runs of a sweep, and those that differ from them in nothing but the seed and what the sweep varies.

    Args:
        runs: all that lie in one folder.
        own: folders of the sweep's runs, among others perhaps.
    """
    folders = {folder.resolve() for folder in own}
    given = [overrides_of(run) for run in runs]
    mine = [asked for run, asked in zip(runs, given, strict=True) if run.folder.resolve() in folders]
    keys = {key for asked in mine for key in asked}
    free = {SEED} | {key for key in keys if len({asked.get(key) for asked in mine}) > 1}
    return [
        run for run, asked in zip(runs, given, strict=True) if mine and _without(asked, free) == _without(mine[0], free)
    ]


def _without(asked: Mapping[str, str], keys: Collection[str]) -> dict[str, str]:
    return {key: value for key, value in asked.items() if key not in keys}


def _substance(run: Run) -> dict[str, Any]:
    """The configuration without what only says how to run."""
    return {key: value for key, value in run.flat.items() if not key.startswith(_NO_FACTOR)}


def overrides_of(run: Run) -> dict[str, str]:
    """What the command line gave, by key, without what only says how to run."""
    by_key: dict[str, str] = {}
    for text in run.overrides or []:
        match = _OVERRIDE.fullmatch(text)
        assert match is not None
        key, value = match.group(1).split("@")[0], match.group(2) or ""
        if not key.startswith(_NO_FACTOR):
            by_key[key] = value
    return by_key


def label(run: Run, key: str, given: Mapping[str, str]) -> str:
    """A run's value of a factor: its preset of a group, or its value of a key, however the command line wrote it."""
    if key in run.choices:
        return run.choices[key]
    node = run.config.get(key)
    if isinstance(node, Mapping):
        return _named(key, node)
    return _plain(str(run.flat[key]) if key in run.flat else given.get(key, ""))


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
    """One spelling of a value: ``3e-3`` and ``0.003`` are the same, as are Python's ``True`` and YAML's ``true``."""
    if value in ("True", "False", "None"):
        return value.lower().replace("none", "null")
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        return value
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def natural(value: str) -> tuple[int, float, str]:
    """A sort key by which numbers come by size, before words."""
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
    size = math.prod(map(len, values.values()))
    if not values or size > 2 * n_runs:
        return []
    return [dict(zip(values, cell, strict=True)) for cell in product(*values.values())]
