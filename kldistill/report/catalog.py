"""The figures that runs are compared by: names, units, which way is better, and the sums that their records keep.

Names are those of docs/metrics.md without the model: ``eval/domain/bits_per_byte`` is that of a run's last model.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

LOWER, HIGHER, NEITHER = "lower", "higher", ""


class Metric(NamedTuple):
    """One figure.

    Attributes:
        name: in ``Run.final()``.
        label: for tables and charts.
        unit: shown beside the label.
        better: ``lower``, ``higher``, or nothing where neither is better in itself.
        percent: whether it is shown in per cent.
    """

    name: str
    label: str
    unit: str
    better: str
    percent: bool = False

    def show(self, value: float | None, sign: bool = False) -> str:
        """The value for a table; with ``sign`` as a difference."""
        if value is None:
            return "–"
        plus = "+" if sign else ""
        if self.percent:
            return f"{100 * value:{plus}.1f} {'pp' if sign else '%'}"
        return f"{value:{plus},.0f}" if self.unit == "s" else f"{value:{plus}.3f}"


METRICS = (
    Metric("tokens/saved", "Tokens saved", "of all test documents", HIGHER, percent=True),
    Metric("eval/domain/bits_per_byte", "Bits per byte, domain", "bits/byte", LOWER),
    Metric("eval/general/bits_per_byte", "Bits per byte, general", "bits/byte", LOWER),
    Metric("eval/domain/kl_to_teacher", "KL to teacher, domain", "nats/position", LOWER),
    Metric("eval/general/kl_to_teacher", "KL to teacher, general", "nats/position", LOWER),
    Metric("eval/plain/kl_to_teacher", "KL to teacher, plain", "nats/position", LOWER),
    Metric("eval/domain/new_token_nats", "Nats of a new token", "nats", LOWER),
    Metric("eval/domain/adoption", "Adoption, domain", "probability", HIGHER, percent=True),
)
SECONDS = Metric("distill/seconds", "Training time", "s", NEITHER)

_RATES = {
    "exact_match": ("exact match", HIGHER),
    "edit_similarity": ("edit similarity", HIGHER),
    "accuracy": ("accuracy", HIGHER),
    "adoption": ("adoption in free text", HIGHER),
}

# What the records of the stage evaluate keep of every text: a figure is factor * sum(above) / sum(below).
SUMS = {
    "bits_per_byte": ("nats", "n_bytes"),
    "kl_to_teacher": ("kl", "n_common"),
    "new_token_nats": ("new_nats", "n_new"),
    "adoption": ("adopted", "n_new"),
}
TEXTS = ("domain", "general", "plain")


def is_rate(name: str) -> bool:
    """Whether a suite's figure is one that models are compared by."""
    return name in _RATES or re.fullmatch(r"pass@\d+", name) is not None


def present(finals: Iterable[Mapping[str, float]]) -> list[Metric]:
    """The metrics that any of the runs has: those of held-out text first, then those of the suites of tasks."""
    finals = list(finals)
    found = [metric for metric in METRICS if any(metric.name in final for final in finals)]
    suites: dict[str, Metric] = {}
    for final in finals:
        for key in final:
            parts = key.split("/")
            if len(parts) == 3 and parts[0] == "eval" and parts[1] not in TEXTS and is_rate(parts[2]):
                label, better = _RATES.get(parts[2], (parts[2], HIGHER))
                suites.setdefault(key, Metric(key, f"{parts[1]}, {label}", "of tasks", better, percent=True))
    if any(SECONDS.name in final for final in finals):
        return [*found, *suites.values(), SECONDS]
    return [*found, *suites.values()]
