"""Figures of one model on one suite from its records: rates with intervals, cost, adoption, and the difference to
another model on the same tasks.

A record is one JSON object per task and sample, see docs/metrics.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kldistill.evaluation.judge import pass_at_k
from kldistill.evaluation.sandbox import Verdict
from kldistill.evaluation.statistics import difference_interval, mcnemar, mean_interval

Record = Mapping[str, Any]
KS = (1, 10, 100)  # of pass@k, as far as there are samples


def rates(kind: str, records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Each rate of a suite as one value a task.

    Args:
        kind: of the suite's tasks (see ``Task``).

    Returns:
        ``{"pass@1": {task: value}}`` for programs (unbiased, Chen et al., 2021), ``exact_match`` and
        ``edit_similarity`` for texts (means over samples), ``accuracy`` for choices.
    """
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    if kind == "program":
        passed = {task: sum(r["verdict"] == Verdict.PASSED for r in found) for task, found in by_task.items()}
        n = min(len(found) for found in by_task.values())
        return {f"pass@{k}": {t: pass_at_k(len(by_task[t]), c, k) for t, c in passed.items()} for k in KS if k <= n}
    keys = {"exact_match": "exact_match", "edit_similarity": "edit_similarity"}
    if kind == "choice":
        keys = {"accuracy": "correct"}
    return {
        name: {task: sum(float(r[key]) for r in found) / len(found) for task, found in by_task.items()}
        for name, key in keys.items()
    }


def figures(kind: str, records: Sequence[Record], *, resamples: int, seed: int) -> dict[str, float]:
    """All figures of one model on one suite, without the suite's name in front; see docs/metrics.md."""
    groups = {record["task"]: record["group"] or record["task"] for record in records}
    found: dict[str, float] = {"tasks": len(groups)}
    for name, values in rates(kind, records).items():
        mean = sum(values.values()) / len(values)
        low, high = mean_interval([groups[t] for t in values], list(values.values()), resamples=resamples, seed=seed)
        found |= {name: mean, f"{name}/low": low, f"{name}/high": high}
    found["seconds_per_task"] = sum(record["seconds"] for record in records) / len(groups)
    if kind == "choice":
        return found
    found["tokens_per_task"] = sum(record["tokens"] for record in records) / len(groups)
    found["bytes_per_task"] = sum(record["bytes"] for record in records) / len(groups)
    spelt = sum(record.get("new_spelt", 0) for record in records)
    if spelt:
        found["adoption"] = sum(record["new_used"] for record in records) / spelt
        found["new_tokens_spelt"] = spelt
    if kind == "program":
        for verdict in Verdict:
            found[f"verdict/{verdict.value}"] = sum(record["verdict"] == verdict for record in records)
    return found


def compared(
    kind: str, records: Sequence[Record], others: Sequence[Record], *, resamples: int, seed: int
) -> dict[str, float]:
    """Differences to another model on the same tasks: ``<rate>/minus_original`` with its 95 % interval, and the exact
    two-sided p of McNemar's test where a task is either right or wrong.
    """
    groups = {record["task"]: record["group"] or record["task"] for record in records}
    found: dict[str, float] = {}
    theirs = rates(kind, others)
    for name, values in rates(kind, records).items():
        other = theirs[name]
        assert values.keys() == other.keys(), "both models were given the same tasks"
        pairs = [(values[task], other[task]) for task in values]
        low, high = difference_interval(
            [groups[task] for task in values], *zip(*pairs, strict=True), resamples=resamples, seed=seed
        )
        key = f"{name}/minus_original"
        found |= {key: sum(a - b for a, b in pairs) / len(pairs), f"{key}/low": low, f"{key}/high": high}
        if all(value in (0.0, 1.0) for pair in pairs for value in pair):
            gained, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
            found[f"{name}/mcnemar_p"] = mcnemar(gained, lost)
    return found
