"""Every metric of an evaluation, a row each, and the one place that takes their names apart.

A name is ``eval/MODEL/SUBJECT/METRIC``, where the subject is a held-out text or a suite of tasks, with more parts
behind it for what goes with a value: ``eval/distilled/domain/bits_per_byte/low``. Without the model,
``eval/SUBJECT/METRIC`` is of a run's last model, so that runs which end with different stages can be compared.
docs/metrics.md defines each metric.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from kldistill.training.sums import SUMS

LOWER, HIGHER, NEITHER = "lower", "higher", ""
MODELS = {
    "original": "original",
    "control": "original, fine-tuned",
    "adapted": "original + adapter",
    "init": "extended",
    "distilled": "distilled",
    "carried": "distilled + adapter",
    "finetuned": "fine-tuned",
}
OLD_CUT = ("original", "control", "adapted")  # without new tokens
DOMAIN, GENERAL, GENERAL_CODE, WRITTEN, PLAIN = TEXTS = ("domain", "general", "general_code", "written", "plain")
KL_TEXTS = (DOMAIN, GENERAL, WRITTEN, PLAIN)  # on which runs are compared by their distance


class Name(NamedTuple):
    """The parts of a metric's name. ``model`` is empty for a run's last model, ``rest`` where nothing follows."""

    model: str
    subject: str
    metric: str
    rest: str = ""

    @property
    def of_text(self) -> bool:
        """Whether it is of a held-out text, rather than of a suite of tasks."""
        return self.subject in TEXTS

    def __str__(self) -> str:
        return "/".join(part for part in ("eval", *self) if part)


@lru_cache(maxsize=4096)  # a report takes the same names apart again and again
def parse(key: str) -> Name | None:
    """A metric's name taken apart; None for metrics that are not of the evaluation."""
    head, *parts = key.split("/")
    model = parts.pop(0) if parts and parts[0] in MODELS else ""
    if head != "eval" or len(parts) < 2:
        return None
    return Name(model, parts[0], parts[1], "/".join(parts[2:]))


class Metric(NamedTuple):
    """What tables, charts and comparisons need to know of a metric.

    Attributes:
        name: as in ``eval/MODEL/SUBJECT/NAME``; in ``present`` the whole name of a run's last model.
        label: for tables and charts.
        unit: shown beside the label.
        better: ``lower``, ``higher``, or nothing where neither is better in itself.
        percent: whether it is shown in per cent.
        compared: the texts on which the runs of a sweep are compared by it.
        evidence: whether a difference in it may get a verdict. Not where another metric has it in it already, as
            bits/byte has the nats of the new tokens.
        trained: whether some losses train on it, so that it says nothing for the arms which do.
    """

    name: str
    label: str
    unit: str
    better: str
    percent: bool = False
    compared: tuple[str, ...] = ()
    evidence: bool = True
    trained: bool = False

    def show(self, value: float | None, sign: bool = False) -> str:
        """The value for a table; with ``sign`` as a difference."""
        if value is None:
            return "–"
        plus = "+" if sign else ""
        if self.percent:
            return f"{100 * value:{plus}.1f} {'pp' if sign else '%'}"
        return f"{value:{plus},.0f}" if self.unit == "s" else f"{value:{plus}.3f}"

    def for_subject(self, subject: str) -> "Metric":
        """The row of this metric on one text or suite, under the name that a run's last model has it by."""
        label = f"{self.label}, {subject}" if subject in TEXTS else f"{subject}, {self.label}"
        return self._replace(name=str(Name("", subject, self.name)), label=label)


# Of held-out texts. Each is a ratio of sums over texts: ``kldistill.training.sums.SUMS``.
TEXT_METRICS = {
    row.name: row
    for row in (
        Metric("bits_per_byte", "Bits per byte", "bits/byte", LOWER, compared=(DOMAIN, GENERAL)),
        Metric("tokens_per_1000_bytes", "Tokens per 1,000 bytes", "tokens", NEITHER),
        Metric("kl_to_teacher", "KL to teacher", "nats/position", LOWER, compared=KL_TEXTS, trained=True),
        Metric(
            "kl_per_byte",
            "KL to teacher per byte",
            "nats/byte",
            LOWER,
            compared=(DOMAIN, GENERAL, WRITTEN),
            trained=True,
        ),
        Metric("bits_per_byte_masked", "Bits per byte, masked", "bits/byte", LOWER, compared=(DOMAIN,), evidence=False),
        Metric(
            "kl_to_teacher_masked", "KL to teacher, masked", "nats/position", LOWER, compared=(DOMAIN,), evidence=False
        ),
        Metric("refused_mass", "Mass on what cannot follow", "probability", NEITHER),
        Metric("new_token_share", "Share of new tokens", "share", NEITHER, percent=True),
        Metric("adoption", "Adoption", "probability", HIGHER, percent=True, compared=(DOMAIN,)),
        Metric("new_token_nats", "Nats of a new token", "nats/new token", LOWER, compared=(DOMAIN,), evidence=False),
        Metric("unresolved_mass", "Unresolved mass", "probability", NEITHER),
        Metric("left_out", "Positions left out", "share", NEITHER, percent=True),
        Metric("contradictions", "Contradicting cuts", "share", NEITHER, percent=True),
        Metric("marginal_gap", "Bits per byte in other cuts", "bits/byte", NEITHER, compared=(DOMAIN,)),
        Metric("canonical_mass", "Mass of the canonical cut", "share", NEITHER, percent=True),
        Metric("old_mass", "Mass of cuts in old tokens", "share", NEITHER, percent=True),
    )
}
# Of suites of tasks, means over tasks.
TASK_METRICS = {
    row.name: row
    for row in (
        Metric("exact_match", "exact match", "of tasks", HIGHER, percent=True),
        Metric("edit_similarity", "edit similarity", "of tasks", HIGHER, percent=True),
        Metric("accuracy", "accuracy", "of tasks", HIGHER, percent=True),
        Metric("bits_per_choice", "bits per choice", "bits", LOWER),
        Metric("bits_per_byte", "bits per byte", "bits/byte", LOWER),
        Metric("adoption", "adoption in free text", "of new tokens", HIGHER, percent=True),
    )
}
SAVED = Metric("tokens/saved", "Tokens saved", "of all test documents", HIGHER, percent=True)
SECONDS = Metric("distill/seconds", "Training time", "s", NEITHER)
assert TEXT_METRICS.keys() == SUMS.keys(), "a metric of a text has a row here and its sums there"


def task_metric(name: str) -> Metric | None:
    """The row of a metric of suites by which models are compared; None for costs, counts and verdicts."""
    if re.fullmatch(r"pass@\d+", name):
        return Metric(name, name, "of tasks", HIGHER, percent=True)
    return TASK_METRICS.get(name)


def is_rate(name: str) -> bool:
    """Whether a metric of suites is a mean over tasks, which has an interval, and a difference to the original."""
    return name != "adoption" and task_metric(name) is not None


def in_percent(name: str) -> bool:
    """Whether a metric of suites is shown in per cent."""
    row = task_metric(name)
    return row is not None and row.percent


def rates(metrics: Mapping[str, float]) -> list[Name]:
    """The rates of all models on all suites: suite by suite, in the order of the pipeline's models."""
    names = [name for key in metrics if (name := parse(key)) and name.model and not name.of_text and not name.rest]
    names = [name for name in names if is_rate(name.metric)]
    suites = list(dict.fromkeys(name.subject for name in names))
    models = list(MODELS)
    return sorted(names, key=lambda name: (suites.index(name.subject), models.index(name.model)))


def present(finals: Iterable[Mapping[str, float]]) -> list[Metric]:
    """What the runs of a sweep are compared by, as far as any of them has it: held-out text first, then suites.

    Args:
        finals: the metrics of every run, those of its last model without the model's name.
    """
    keys = list(dict.fromkeys(key for final in finals for key in final))
    of_texts = [row.for_subject(text) for row in TEXT_METRICS.values() for text in row.compared]
    rows = [row for row in (SAVED, *of_texts) if row.name in keys]
    for name in map(parse, keys):
        if name and not name.model and not name.of_text and not name.rest and (row := task_metric(name.metric)):
            rows.append(row.for_subject(name.subject))
    return [*rows, SECONDS] if SECONDS.name in keys else rows
