"""Metrics of one model on one suite, from its records.

They are rates with intervals, cost, adoption, and the difference to another model on the same tasks.
A record is one JSON object per task and sample, see docs/metrics.md.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy import logaddexp

from kldistill.evaluation.judge import pass_at_k
from kldistill.evaluation.sandbox import Verdict
from kldistill.evaluation.statistics import difference_interval, mcnemar, mean_interval, with_ends

Record = Mapping[str, Any]
KS = (1, 10, 100)  # of pass@k, as far as there are samples
# Where a line to write can stand already; lines that stand nowhere are the suite's figures.
SEEN_IN = ("train", "snippets", "prompt")


def unseen(records: Sequence[Record]) -> list[Record]:
    """Records of tasks whose answer stands nowhere already (all of suites that do not look): the suite's figures."""
    return [record for record in records if not record.get("seen")]


def rates(kind: str, records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Each rate of a suite as one value a task.

    Args:
        kind: the kind of the suite's tasks (see ``Task``).

    Returns:
        ``{"pass@1": {task: value}}`` for programs (unbiased, Chen et al., 2021), ``exact_match`` and
        ``edit_similarity`` for texts (means over samples), ``accuracy`` and ``bits_per_choice`` for choices,
        ``bits_per_byte`` of canonical completions for solutions.
    """
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    if kind == "program":
        passed = {task: sum(r["verdict"] == Verdict.PASSED for r in samples) for task, samples in by_task.items()}
        n = min(len(samples) for samples in by_task.values())
        return {f"pass@{k}": {t: pass_at_k(len(by_task[t]), c, k) for t, c in passed.items()} for k in KS if k <= n}
    if kind == "solution":
        return {"bits_per_byte": {t: r["nats"] / math.log(2) / r["bytes"] for t, (r,) in by_task.items()}}
    if kind == "choice":
        return {
            "accuracy": {task: float(r["correct"]) for task, (r,) in by_task.items()},
            "bits_per_choice": {task: bits_of_choice(r["log_probabilities"]) for task, (r,) in by_task.items()},
        }
    keys = {"exact_match": "exact_match", "edit_similarity": "edit_similarity"}
    return {
        name: {task: sum(float(r[key]) for r in samples) / len(samples) for task, samples in by_task.items()}
        for name, key in keys.items()
    }


def bits_of_choice(log_probabilities: Sequence[float]) -> float:
    """What it takes to tell the first option, given that it is one of them: -log2 of its share of their probability."""
    return float(logaddexp.reduce(log_probabilities) - log_probabilities[0]) / math.log(2)


def summarise(kind: str, records: Sequence[Record]) -> dict[str, float]:
    """All metrics of one model on one suite, without the suite's name in front; see docs/metrics.md.

    Rates are of the ``unseen`` tasks; those of lines that stand in the training split, in the training snippets or in
    their own prompt have ``_in_train``, ``_in_snippets`` or ``_in_prompt`` behind their names.
    """
    groups = {record["task"]: record["group"] or record["task"] for record in records}
    headline = {record["task"] for record in unseen(records)}
    metrics: dict[str, float] = {"tasks": len(headline), "documents": len({groups[task] for task in headline})}
    for suffix, chosen in _strata(records):
        if suffix:
            metrics[f"tasks{suffix}"] = len({record["task"] for record in chosen})
        for rate, values in rates(kind, chosen).items():
            interval = mean_interval([groups[task] for task in values], list(values.values()))
            metrics |= with_ends(rate + suffix, sum(values.values()) / len(values), interval)
    metrics["seconds_per_task"] = sum(record["seconds"] for record in records) / len(groups)
    if kind == "choice":
        return metrics
    metrics["tokens_per_task"] = sum(record["tokens"] for record in records) / len(groups)
    metrics["bytes_per_task"] = sum(record["bytes"] for record in records) / len(groups)
    spelt = sum(record.get("new_spelt", 0) for record in records)
    if spelt:
        metrics["adoption"] = sum(record["new_used"] for record in records) / spelt
        metrics["new_tokens_spelt"] = spelt
    if kind == "program":
        for verdict in Verdict:
            metrics[f"verdict/{verdict.value}"] = sum(record["verdict"] == verdict for record in records)
    return metrics


def compared(kind: str, records: Sequence[Record], others: Sequence[Record]) -> dict[str, float]:
    """Differences to another model on the same tasks: ``<rate>/minus_original`` with its 95 % interval.

    Where a task is either right or wrong, the exact two-sided p of McNemar's test is there too.
    """
    groups = {record["task"]: record["group"] or record["task"] for record in records}
    metrics: dict[str, float] = {}
    assert groups.keys() == {record["task"] for record in others}, "both models were given the same tasks"
    for suffix, chosen in _strata(records):
        tasks = {record["task"] for record in chosen}
        theirs = rates(kind, [record for record in others if record["task"] in tasks])
        for rate, values in rates(kind, chosen).items():
            other, name = theirs[rate], rate + suffix
            pairs = [(values[task], other[task]) for task in values]
            interval = difference_interval([groups[task] for task in values], *zip(*pairs, strict=True))
            metrics |= with_ends(f"{name}/minus_original", sum(a - b for a, b in pairs) / len(pairs), interval)
            if all(value in (0.0, 1.0) for pair in pairs for value in pair):
                gained, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
                metrics[f"{name}/mcnemar_p"] = mcnemar(gained, lost)
    return metrics


def _strata(records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Records in groups, with the suffix of their metrics' names: unseen tasks, then those that stand in each place."""
    yield "", unseen(records)
    for place in SEEN_IN:
        chosen = [record for record in records if place in record.get("seen", ())]
        if chosen:
            yield f"_in_{place}", chosen
