"""The table of metrics, and the reader of their names."""

import pytest

from kldistill.evaluation.metrics import TEXT_METRICS, Name, parse, present, rates
from kldistill.training.sums import SUMS
from tests.helpers.paths import ROOT

NAMES = {
    "eval/distilled/domain/bits_per_byte": Name("distilled", "domain", "bits_per_byte"),
    "eval/distilled/domain/bits_per_byte/low": Name("distilled", "domain", "bits_per_byte", "low"),
    "eval/original/humaneval/verdict/timed_out": Name("original", "humaneval", "verdict", "timed_out"),
    "eval/init/mbpp/pass@1/minus_original/high": Name("init", "mbpp", "pass@1", "minus_original/high"),
    "eval/domain/bits_per_byte": Name("", "domain", "bits_per_byte"),
    "eval/completion/exact_match/low": Name("", "completion", "exact_match", "low"),
}


@pytest.mark.parametrize("key", NAMES)
def test_a_name_is_taken_apart_and_put_together_again(key: str) -> None:
    assert parse(key) == NAMES[key]
    assert str(NAMES[key]) == key


@pytest.mark.parametrize("key", ["tokens/saved", "distill/seconds", "eval", "eval/distilled", "eval/distilled/domain"])
def test_what_is_no_metric_of_an_evaluation_has_no_parts(key: str) -> None:
    assert parse(key) is None


def test_rates_come_suite_by_suite_in_the_order_of_the_pipeline() -> None:
    metrics = dict.fromkeys(
        (
            *("eval/distilled/mbpp/pass@1", "eval/distilled/mbpp/pass@1/low", "eval/distilled/mbpp/adoption"),
            *("eval/distilled/mbpp/tasks", "eval/original/choice/accuracy", "eval/original/mbpp/pass@1"),
            *("eval/mbpp/pass@1", "eval/original/domain/bits_per_byte", "tokens/saved"),
        ),
        0.1,
    )
    expected = ["eval/original/mbpp/pass@1", "eval/distilled/mbpp/pass@1", "eval/original/choice/accuracy"]
    assert [str(name) for name in rates(metrics)] == expected


def test_a_sweep_compares_what_its_runs_have() -> None:
    final = dict.fromkeys(
        (
            *("eval/mbpp/pass@10", "eval/mbpp/pass@10/low", "eval/mbpp/tokens_per_task", "eval/mbpp/adoption"),
            *("eval/general/bits_per_byte", "eval/general/adoption", "distill/seconds", "tokens/saved"),
        ),
        0.5,
    )
    rows = present([{}, final])
    assert [row.name for row in rows] == [
        *("tokens/saved", "eval/general/bits_per_byte", "eval/mbpp/pass@10", "eval/mbpp/adoption", "distill/seconds"),
    ]  # fmt: skip
    assert rows[1].label == "Bits per byte, general" and rows[2].label == "mbpp, pass@10"
    assert rows[3].label == "mbpp, adoption in free text"


def test_every_metric_of_a_text_has_its_sums_and_its_row() -> None:
    assert TEXT_METRICS.keys() == SUMS.keys()
    assert all(row.label and row.unit for row in TEXT_METRICS.values())


def test_no_other_module_takes_names_apart() -> None:
    """Six did, each in its own way."""
    sources = [*(ROOT / "kldistill").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    apart = {path.relative_to(ROOT).as_posix() for path in sources if 'split("/")' in path.read_text("utf-8")}
    assert apart == {"kldistill/evaluation/metrics.py"}
