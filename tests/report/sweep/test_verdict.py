"""Verdicts of a sweep: what stands in their way, and how often chance alone gets one."""

import csv
from collections.abc import Iterator

import numpy as np
import pytest

from kldistill.evaluation.metrics import LOWER, SAVED, SECONDS, TEXT_METRICS, Metric
from kldistill.evaluation.statistics import Estimate, Sums, difference_over_documents
from kldistill.report.data import FINISHED, Run
from kldistill.report.sweep.verdict import OPEN, difference, judge, trains_on_kl
from tests.helpers.paths import ROOT

SURE = Estimate(-0.11, ((1e-6, 13),), 14)
ALIKE = [-0.1, -0.11, -0.12]


@pytest.mark.parametrize(
    ("values", "documents", "expected"),
    [
        (ALIKE, SURE, OPEN),
        (ALIKE, None, "no records"),
        (ALIKE, SURE._replace(n=7), "too few documents"),
        (ALIKE[:1], SURE, "one seed"),
        ([0.0, 0.0], SURE, "same"),
        ([], None, "missing"),
    ],
)
def test_what_stands_in_the_way_of_a_verdict(values: list[float], documents: Estimate | None, expected: str) -> None:
    assert difference(values, documents, by_document=True)[1] == expected


def test_the_interval_is_of_seeds_and_documents_together() -> None:
    both, _ = difference(ALIKE, SURE, by_document=True)
    assert both is not None
    assert both.variance == pytest.approx(0.01**2 / 3 + SURE.variance)
    alone, _ = difference(ALIKE[:1], SURE, by_document=True)
    assert alone == SURE
    runs, verdict = difference(ALIKE, None, by_document=False)
    assert runs is not None and (runs.n, verdict) == (3, OPEN)


def entry(metric: str, p: float, value: float = -0.1) -> dict:
    return {"metric": metric, "difference": value, "p": p, "p_holm": None, "verdict": OPEN}


def test_verdicts_are_adjusted_for_all_that_was_asked() -> None:
    metrics = {name: Metric(name, name, "", better) for name, better in (("a", "lower"), ("b", "higher"), ("c", ""))}
    metrics["d"] = Metric("d", "d", "", "lower", evidence=False)
    entries = [entry("a", 0.01), entry("a", 0.03), entry("b", 0.001), entry("c", 0.0), entry("d", 0.0)]
    entries.append({**entry("a", 0.0), "verdict": "trained on it"})
    judge(entries, metrics)
    assert [found["verdict"] for found in entries] == ["better", "better", "worse", OPEN, OPEN, "trained on it"]
    assert [found["p_holm"] for found in entries[:3]] == pytest.approx([0.02, 0.03, 0.003])
    entries = [entry("a", 0.03), entry("a", 0.03)]
    judge(entries, metrics)
    assert {found["verdict"] for found in entries} == {"cannot tell"}, "each alone would be one"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"loss": {"name": "mine", "terms": {"x": {"_target_": "kldistill.losses.kl"}}}}, True),
        ({"loss": {"name": "kl", "terms": {"x": {"_target_": "kldistill.losses.ce"}}}}, False),
        ({"loss": {"name": "kl_ce"}}, True),
        ({"loss": {"name": "ce"}, "finetune": {"method": "lora", "anchor": "kl"}}, True),
        ({"loss": {"name": "ce"}, "finetune": {"method": "none", "anchor": "kl"}}, False),
    ],
)
def test_a_run_says_whether_it_trains_on_the_kl(config: dict, expected: bool) -> None:
    assert trains_on_kl(Run(ROOT, FINISHED, config)) is expected


def test_kl_is_no_evidence_for_an_arm_that_trains_on_it() -> None:
    estimate, verdict = difference(ALIKE, SURE, by_document=True, trained=True)
    assert estimate is not None and verdict == "trained on it"
    assert TEXT_METRICS["kl_to_teacher"].trained and TEXT_METRICS["kl_per_byte"].trained
    assert not TEXT_METRICS["new_token_nats"].evidence, "bits/byte has it in it"


GRID = ROOT / "docs" / "results" / "kl_vs_ce.csv"
MEASURED = ("eval/domain/bits_per_byte", "eval/general/bits_per_byte", "eval/domain/adoption")
MEASURED += ("eval/completion/exact_match", "eval/completion/edit_similarity")


def noise() -> dict[tuple[str, str], tuple[float, float]]:
    """Of every init and metric of the grid: standard deviation over seeds, and half-width of a run's interval."""
    rows = list(csv.DictReader(GRID.read_text(encoding="utf-8").splitlines()))
    found = {}
    for init in {row["init"] for row in rows}:
        for metric in MEASURED:
            own = [row for row in rows if row["init"] == init and row[metric]]
            arms = [[float(row[metric]) for row in own if row["loss"] == loss] for loss in ("ce", "kl", "kl_ce")]
            seeds = float(np.sqrt(np.mean([np.var(values, ddof=1) for values in arms])))
            ends = [(float(row[f"{metric}/low"]), float(row[f"{metric}/high"])) for row in own]
            found[init, metric] = seeds, float(np.mean([high - low for low, high in ends])) / 2
    return found


def null_sweep(rng: np.random.Generator, grid: dict, n_documents: int) -> Iterator[dict]:
    """The differences of a sweep whose three arms are equally good. A run's value varies from seed to seed as in the
    grid; documents are of very unequal size and differ as its intervals say, a tenth of that from arm to arm.
    """
    names = tuple(str(number) for number in range(n_documents))
    size = rng.lognormal(size=n_documents)
    for (_, metric), (seeds, half) in grid.items():
        spread = half / 1.96 * np.sqrt(n_documents)
        document = rng.normal(size=n_documents)
        arms = []
        for _ in range(3):
            own = document + 0.1 * rng.normal(size=n_documents)
            runs = seeds * rng.normal(size=(3, 1)) + 0.02 * spread * rng.normal(size=(3, n_documents))
            values = 1 + spread * own + runs
            arms.append([Sums(names, names, value * size, size) for value in values])
        for arm in arms[1:]:
            pairs = list(zip(arm, arms[0], strict=True))
            values = [float((one.above - other.above).sum() / size.sum()) for one, other in pairs]
            estimate, verdict = difference(values, difference_over_documents(pairs), by_document=True)
            assert estimate is not None
            yield {**entry(metric, estimate.p_value(), estimate.value), "verdict": verdict}


@pytest.mark.parametrize("n_documents", [14, 60])
def test_a_sweep_of_equal_arms_hardly_ever_gets_a_verdict(n_documents: int) -> None:
    """Two intervals, each asked at 5 %, gave 15 to 19 % of the cells one; here it is 5 % of whole sweeps at most."""
    rng, grid, sweeps = np.random.default_rng(0), noise(), 60
    metrics = {name: Metric(name, name, "", LOWER) for name in MEASURED}
    wrong = 0
    for _ in range(sweeps):
        entries = list(null_sweep(rng, grid, n_documents))
        assert len(entries) == 40
        judge(entries, metrics)
        wrong += any(found["verdict"] in ("better", "worse") for found in entries)
    assert wrong / sweeps <= 0.05


def test_numbers_are_shown_with_their_unit() -> None:
    share, bits = SAVED, TEXT_METRICS["bits_per_byte"]
    assert share.show(0.1706) == "17.1 %"
    assert share.show(-0.01, sign=True) == "-1.0 pp"
    assert bits.show(0.02, sign=True) == "+0.020"
    assert bits.show(None) == "–"
    assert SECONDS.show(1234.5) == "1,234"
