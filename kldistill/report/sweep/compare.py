"""The runs of a sweep as numbers: means over seeds, and paired differences to the baseline."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kldistill.evaluation.metrics import MODELS, OLD_CUT, Metric, parse
from kldistill.evaluation.outcomes import unseen
from kldistill.evaluation.statistics import Sums, difference_over_documents, mean_over_runs
from kldistill.report.data import FINISHED, Run, lines
from kldistill.report.sweep.factors import SEED
from kldistill.report.sweep.verdict import difference, judge, trains_on_kl
from kldistill.runtime.files import read_summary
from kldistill.training.sums import SUMS

Labels = Mapping[str, str]
ALL = "all"


def means(runs: Sequence[Run], labels: Sequence[Labels], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """One entry for each cell (everything but the seed) and metric.

    It has ``cell``, ``metric``, ``n``, ``mean`` and the 95 % interval over seeds (``low``, ``high``; None with one
    seed, whose interval over documents is in the run's row).
    """
    entries = []
    for cell, members in _grouped(runs, labels, (SEED,)).items():
        finals = [run.final() for run, _ in members]
        for metric in metrics:
            values = [final[metric.name] for final in finals if metric.name in final]
            if values:
                estimate = mean_over_runs(values)
                low, high = estimate.interval() if estimate else (None, None)
                entry = {"cell": dict(cell), "metric": metric.name, "n": len(values), "mean": float(np.mean(values))}
                entries.append({**entry, "low": low, "high": high})
    return entries


def references(runs: Sequence[Run], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """What no arm of the sweep is, on the same texts and tasks: the original model, fine-tuned, and with an adapter.

    One entry for each of these models and metric: ``model``, ``metric``, ``n`` different values, their ``mean``, and
    ``low`` and ``high``. A fine-tuned model may have a value a seed, and then the interval is that of the mean. The
    others have one, with its own interval: where runs looked at more texts or tasks than others, the narrowest.
    """
    entries = []
    for model in OLD_CUT:
        for metric in metrics:
            name = parse(metric.name)
            if name is None:
                continue
            key = str(name._replace(model=model))
            found = [run.metrics for run in runs if run.status == FINISHED and key in run.metrics]
            if not found:
                continue
            if model != "control":
                found = [min(found, key=lambda own: _width(own, key))]
            # The same model scored twice differs by rounding at most.
            values = [float(value) for value in np.unique(np.round([own[key] for own in found], 6))]
            estimate = mean_over_runs(values)
            ends = estimate.interval() if estimate else (found[0].get(f"{key}/low"), found[0].get(f"{key}/high"))
            mean = float(np.mean(values)) if estimate else found[0][key]
            entry = {"model": MODELS[model], "metric": metric.name, "n": len(values), "mean": mean}
            entries.append({**entry, "low": ends[0], "high": ends[1]})
    return entries


def _width(metrics: Mapping[str, float], key: str) -> float:
    """Of a metric's interval; infinite where it has none."""
    return metrics.get(f"{key}/high", math.inf) - metrics.get(f"{key}/low", -math.inf)


def differences(
    runs: Sequence[Run], labels: Sequence[Labels], metrics: Sequence[Metric], factor: str, baseline: str
) -> list[dict[str, Any]]:
    """Every value of ``factor`` minus the baseline, within everything else, seed included.

    Returns:
        One entry per cell, value and metric: ``cell``, ``value``, ``metric``, ``n`` pairs (seeds), the number of
        ``documents``, the mean ``difference``, its 95 % interval over both (``low``, ``high``), its p-value ``p``, that
        adjusted for all the differences asked (``p_holm``), and the ``verdict``. Where there are several cells, those
        of value and metric are also taken together, as ``cell`` None: one mean a seed over the cells that have pairs
        (``cells``, of ``of``).
    """
    by_value: dict[str, dict[tuple, list[tuple[Run, Labels]]]] = {}
    for run, label in zip(runs, labels, strict=True):
        cell = tuple((key, value) for key, value in label.items() if key not in (factor, SEED))
        by_value.setdefault(label[factor], {}).setdefault(cell, []).append((run, label))
    against = by_value.pop(baseline, {})
    entries = []
    for value, cells in by_value.items():
        paired = {cell: _pairs(cells.get(cell, []), against.get(cell, [])) for cell in (cells | against)}
        for metric in metrics:
            common = {"value": value, "metric": metric.name}
            for cell, pairs in paired.items():
                entries.append({"cell": dict(cell), **common, **_cell(metric, pairs)})
            if len(paired) > 1:
                entries.append({"cell": None, **common, **_together(metric, list(paired.values()))})
    judge(entries, {metric.name: metric for metric in metrics})
    return entries


def _grouped(
    runs: Sequence[Run], labels: Sequence[Labels], without: Sequence[str]
) -> dict[tuple, list[tuple[Run, Labels]]]:
    """Finished runs by their labels except those of some factors."""
    by_cell: dict[tuple, list[tuple[Run, Labels]]] = {}
    for run, own in zip(runs, labels, strict=True):
        if run.status == FINISHED:
            key = tuple((name, value) for name, value in own.items() if name not in without)
            by_cell.setdefault(key, []).append((run, own))
    return by_cell


def _pairs(ones: Sequence[tuple[Run, Labels]], others: Sequence[tuple[Run, Labels]]) -> dict[str, tuple[Run, Run]]:
    """Finished runs of both sides by seed."""
    theirs = {label.get(SEED, ""): run for run, label in others if run.status == FINISHED}
    ours = {label.get(SEED, ""): run for run, label in ones if run.status == FINISHED}
    return {seed: (run, theirs[seed]) for seed, run in ours.items() if seed in theirs}


def _values(metric: Metric, pairs: Mapping[str, tuple[Run, Run]]) -> dict[str, float]:
    """Difference of every pair in which both sides have the figure, by seed."""
    finals = {seed: (one.final(), other.final()) for seed, (one, other) in pairs.items()}
    name = metric.name
    return {seed: one[name] - other[name] for seed, (one, other) in finals.items() if name in one and name in other}


def _cell(metric: Metric, pairs: Mapping[str, tuple[Run, Run]]) -> dict[str, Any]:
    values = _values(metric, pairs)
    return _entry(metric, list(values.values()), [pairs[seed] for seed in values])


def _together(metric: Metric, cells: Sequence[Mapping[str, tuple[Run, Run]]]) -> dict[str, Any]:
    """All cells with pairs at once, each counting the same: a mean a seed, over the seeds for which all have one."""
    whole = [(pairs, values) for pairs in cells if (values := _values(metric, pairs))]
    seeds = sorted(set.intersection(*(set(values) for _, values in whole))) if whole else []
    means = [float(np.mean([values[seed] for _, values in whole])) for seed in seeds]
    entry = _entry(metric, means, [pairs[seed] for pairs, _ in whole for seed in seeds])
    return {**entry, "cells": len(whole), "of": len(cells)}


def _entry(metric: Metric, values: Sequence[float], pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    """One difference as plain numbers, from one value a seed and from the runs whose records tell of the documents."""
    sums = [(sums_of(one, metric), sums_of(other, metric)) for one, other in pairs]
    whole = [(one, other) for one, other in sums if one is not None and other is not None]
    documents = difference_over_documents(whole) if whole and len(whole) == len(pairs) else None
    trained = metric.trained and any(trains_on_kl(run) for pair in pairs for run in pair)
    by_document = parse(metric.name) is not None
    estimate, verdict = difference(values, documents, by_document=by_document, trained=trained)
    low, high = estimate.interval() if estimate else (None, None)
    return {
        "n": len(values),
        "documents": documents.n if documents else None,
        "difference": float(np.mean(values)) if values else None,
        "low": low,
        "high": high,
        "p": estimate.p_value() if estimate and len(values) > 1 else None,
        "p_holm": None,
        "verdict": verdict,
    }


def sums_of(run: Run, metric: Metric, model: str | None = None) -> Sums | None:
    """What the run's records keep of a figure of one model (None: its last), a text or a task each; None where they do
    not.
    """
    name, model = parse(metric.name), model or run.last
    if name is None or model is None:
        return None
    for folder in run.artifacts.values():
        if (folder / "records.jsonl").is_file() and (model, name.subject) in _subjects(folder):
            path = folder / "records.jsonl"
            if name.of_text:
                return _of_texts(path).get((name.subject, name.metric))
            return _of_tasks(path).get(name.metric)
    return None


# What a record of a suite of tasks counts for, above and below the line: a metric is the ratio of their sums.
_TASK_SUMS: dict[str, Callable[[Mapping[str, Any]], tuple[float, float]]] = {
    "pass@1": lambda record: (float(record["verdict"] == "passed"), 1.0),
    "accuracy": lambda record: (float(record["correct"]), 1.0),
    "exact_match": lambda record: (float(record["exact_match"]), 1.0),
    "edit_similarity": lambda record: (float(record["edit_similarity"]), 1.0),
    "bits_per_byte": lambda record: (record["nats"] / math.log(2) / record["bytes"], 1.0),
    "adoption": lambda record: (float(record.get("new_used", 0)), float(record.get("new_spelt", 0))),
}


# The same baseline is compared with again and again. An artifact's folder is its content's name, so nothing goes stale.
@lru_cache(maxsize=4096)
def _subjects(folder: Path) -> frozenset[tuple[str, str]]:
    """The models and the texts or suites that an artifact has metrics of."""
    return frozenset(name[:2] for name in map(parse, read_summary(folder)) if name is not None)


@lru_cache(maxsize=4096)
def _of_texts(path: Path) -> dict[tuple[str, str], Sums]:
    """Of every text and figure that the records tell of, as they are read once."""
    by_text: dict[str, list[Any]] = {}
    for record in lines(path):
        by_text.setdefault(record["text"], []).append(record)
    found = {}
    for text, records in by_text.items():
        names = tuple(f"{record['document']} {record['n_bytes']}" for record in records)
        documents = tuple(record["document"] for record in records)
        for metric, sums in SUMS.items():
            if all(sums.above in record and sums.below in record for record in records):
                above = np.array([record[sums.above] for record in records], dtype=np.float64)
                below = np.array([record[sums.below] for record in records], dtype=np.float64)
                found[text, metric] = Sums(names, documents, sums.factor * above, below)
    return found


@lru_cache(maxsize=4096)
def _of_tasks(path: Path) -> dict[str, Sums]:
    """Of every figure that the records of a suite tell of, as they are read once."""
    records = sorted(unseen(lines(path)), key=lambda record: (record["task"], record["sample"]))
    names = tuple(f"{record['task']} {record['sample']}" for record in records)
    groups = tuple(record["group"] or record["task"] for record in records)
    found = {}
    for metric, of in _TASK_SUMS.items():
        with suppress(KeyError):  # a figure of suites of another kind
            found[metric] = Sums(names, groups, *np.array([of(record) for record in records], dtype=np.float64).T)
    return found
