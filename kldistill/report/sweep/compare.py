"""The runs of a sweep as numbers: means over seeds, and paired differences to the baseline."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kldistill.evaluation.statistics import Sums, over_documents, over_seeds
from kldistill.report.catalog import SUMS, TEXTS, Metric
from kldistill.report.data import FINISHED, Run, lines
from kldistill.report.sweep.factors import SEED
from kldistill.report.sweep.verdict import verdict
from kldistill.runtime.files import read_summary

Labels = Mapping[str, str]
ALL = "all"


def means(runs: Sequence[Run], labels: Sequence[Labels], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """One entry a cell (everything but the seed) and metric: ``cell``, ``metric``, ``n``, ``mean`` and the 95 %
    interval over seeds (``low``, ``high``; None with one seed, whose interval over documents is in the run's row).
    """
    found = []
    for cell, members in _grouped(runs, labels, (SEED,)).items():
        finals = [run.final() for run, _ in members]
        for metric in metrics:
            values = [final[metric.name] for final in finals if metric.name in final]
            if values:
                low, high = over_seeds(values) or (None, None)
                entry = {"cell": dict(cell), "metric": metric.name, "n": len(values), "mean": float(np.mean(values))}
                found.append({**entry, "low": low, "high": high})
    return found


def differences(
    runs: Sequence[Run], labels: Sequence[Labels], metrics: Sequence[Metric], factor: str, baseline: str
) -> list[dict[str, Any]]:
    """Every value of ``factor`` minus the baseline, within everything else, seed included.

    Returns:
        One entry per cell, value and metric: ``cell``, ``value``, ``metric``, ``n`` pairs (seeds), the mean
        ``difference``, its 95 % intervals over seeds (``low``, ``high``) and over documents (``documents_low``,
        ``documents_high``), and the ``verdict``. Where there are several cells, those of value and metric are also
        taken together, as ``cell`` None: one mean a seed over the cells that have pairs (``cells``, of ``of``).
    """
    by_value: dict[str, dict[tuple, list[tuple[Run, Labels]]]] = {}
    for run, found in zip(runs, labels, strict=True):
        cell = tuple((key, value) for key, value in found.items() if key not in (factor, SEED))
        by_value.setdefault(found[factor], {}).setdefault(cell, []).append((run, found))
    against = by_value.pop(baseline, {})
    entries = []
    for value, cells in by_value.items():
        paired = {cell: _pairs(cells.get(cell, []), against.get(cell, [])) for cell in (cells | against)}
        for metric in metrics:
            common = {"value": value, "metric": metric.name}
            for cell, pairs in paired.items():
                entries.append({"cell": dict(cell), **common, **_difference(metric, pairs)})
            if len(paired) > 1:
                entries.append({"cell": None, **common, **_together(metric, list(paired.values()))})
    return entries


def _grouped(
    runs: Sequence[Run], labels: Sequence[Labels], without: Sequence[str]
) -> dict[tuple, list[tuple[Run, Labels]]]:
    """Finished runs by their labels except those of some factors."""
    found: dict[tuple, list[tuple[Run, Labels]]] = {}
    for run, own in zip(runs, labels, strict=True):
        if run.status == FINISHED:
            key = tuple((name, value) for name, value in own.items() if name not in without)
            found.setdefault(key, []).append((run, own))
    return found


def _pairs(ones: Sequence[tuple[Run, Labels]], others: Sequence[tuple[Run, Labels]]) -> dict[str, tuple[Run, Run]]:
    """Finished runs of both sides by seed."""
    theirs = {found.get(SEED, ""): run for run, found in others if run.status == FINISHED}
    ours = {found.get(SEED, ""): run for run, found in ones if run.status == FINISHED}
    return {seed: (run, theirs[seed]) for seed, run in ours.items() if seed in theirs}


def _values(metric: Metric, pairs: Mapping[str, tuple[Run, Run]]) -> dict[str, float]:
    """Difference of every pair in which both sides have the figure, by seed."""
    finals = {seed: (one.final(), other.final()) for seed, (one, other) in pairs.items()}
    name = metric.name
    return {seed: one[name] - other[name] for seed, (one, other) in finals.items() if name in one and name in other}


def _difference(metric: Metric, pairs: Mapping[str, tuple[Run, Run]]) -> dict[str, Any]:
    values = _values(metric, pairs)
    return _entry(metric, list(values.values()), _documents(metric, [pairs[seed] for seed in values]))


def _together(metric: Metric, cells: Sequence[Mapping[str, tuple[Run, Run]]]) -> dict[str, Any]:
    """All cells with pairs at once, each counting the same: a mean a seed, over the seeds for which all have one."""
    whole = [(pairs, found) for pairs in cells if (found := _values(metric, pairs))]
    seeds = sorted(set.intersection(*(set(found) for _, found in whole))) if whole else []
    documents = _documents(metric, [pairs[seed] for pairs, _ in whole for seed in seeds])
    means = [float(np.mean([found[seed] for _, found in whole])) for seed in seeds]
    return {**_entry(metric, means, documents), "cells": len(whole), "of": len(cells)}


def _documents(metric: Metric, pairs: Sequence[tuple[Run, Run]]) -> tuple[float, float] | None:
    """Interval over documents of the mean difference; None unless all the runs kept records of the same texts."""
    sums = [(sums_of(one, metric), sums_of(other, metric)) for one, other in pairs]
    whole = [(one, other) for one, other in sums if one is not None and other is not None]
    return over_documents(whole) if len(whole) == len(pairs) else None


def _entry(metric: Metric, values: Sequence[float], documents: tuple[float, float] | None) -> dict[str, Any]:
    low, high = over_seeds(values) or (None, None)
    documents_low, documents_high = documents or (None, None)
    return {
        "n": len(values),
        "difference": float(np.mean(values)) if values else None,
        "low": low,
        "high": high,
        "documents_low": documents_low,
        "documents_high": documents_high,
        "verdict": verdict(metric.better, values, documents),
    }


def sums_of(run: Run, metric: Metric) -> Sums | None:
    """What the run's records keep of a figure of its last model, a text or a task each; None where they do not."""
    parts = metric.name.split("/")
    if len(parts) != 3 or parts[0] != "eval" or run.last is None:
        return None
    _, subject, figure = parts
    start = f"eval/{run.last}/{subject}/"
    for folder in run.artifacts.values():
        if (folder / "records.jsonl").is_file() and any(key.startswith(start) for key in read_summary(folder)):
            if subject in TEXTS:
                return _of_texts(folder / "records.jsonl", subject, figure) if figure in SUMS else None
            return _of_tasks(folder / "records.jsonl", figure) if figure in _VALUES else None
    return None


# What a record of a suite of tasks counts for, by the figure that is its mean.
_VALUES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "pass@1": lambda record: float(record["verdict"] == "passed"),
    "accuracy": lambda record: float(record["correct"]),
    "exact_match": lambda record: float(record["exact_match"]),
    "edit_similarity": lambda record: float(record["edit_similarity"]),
}


# The same baseline is compared with again and again. An artifact's folder is its content's name, so nothing goes stale.
@lru_cache(maxsize=4096)
def _of_texts(path: Path, subject: str, figure: str) -> Sums:
    above, below = SUMS[figure]
    factor = 1 / math.log(2) if figure == "bits_per_byte" else 1.0
    records = [record for record in lines(path) if record["text"] == subject]
    return Sums(
        tuple(f"{record['document']} {record['n_bytes']}" for record in records),
        tuple(record["document"] for record in records),
        factor * np.array([record[above] for record in records], dtype=np.float64),
        np.array([record[below] for record in records], dtype=np.float64),
    )


@lru_cache(maxsize=4096)
def _of_tasks(path: Path, figure: str) -> Sums:
    records = sorted(lines(path), key=lambda record: (record["task"], record["sample"]))
    return Sums(
        tuple(f"{record['task']} {record['sample']}" for record in records),
        tuple(record["group"] or record["task"] for record in records),
        np.array([_VALUES[figure](record) for record in records], dtype=np.float64),
        np.ones(len(records)),
    )
