"""The table at the end of a run."""

from kldistill.evaluation.table import (
    COLUMNS,
    SUITES_COLUMNS,
    TITLE,
    final_names,
    final_rows,
    final_table,
    suite_rows,
    suites_title,
    title_of,
    with_interval,
)

METRICS = {
    "tokens/old_size": 49152,
    "tokens/new_size": 49664,
    "eval/original/domain/tokens_per_1000_bytes": 300.0,
    "eval/original/domain/bits_per_byte": 0.985,
    "eval/original/domain/bits_per_byte/low": 0.9,
    "eval/original/domain/bits_per_byte/high": 1.051,
    "eval/original/general/bits_per_byte": 1.2,
    "eval/original/domain/documents": 14,
    "eval/original/general/documents": 9,
    "eval/distilled/domain/tokens_per_1000_bytes": 240.0,
    "eval/distilled/domain/kl_per_byte": 0.075,
    "eval/distilled/domain/bits_per_byte": 1.0111,
    "eval/distilled/general/bits_per_byte": 1.25,
    "eval/distilled/domain/kl_to_teacher": 0.3,
    "eval/distilled/general/kl_to_teacher": 0.05,
    "eval/distilled/domain/new_token_share": 0.155,
}


def test_rows_of_the_models_that_were_evaluated() -> None:
    original, distilled = final_rows(METRICS)
    assert len(COLUMNS) == len(original) == len(distilled)
    assert original == [
        "original",
        "49,152",
        "300.0",
        "–",
        "0.985 [0.90,1.05]",
        "1.200",
        "–",
        "–",
        "–",
        "–",
        "14 / 9",
        "–",
        "–",
        "–",
    ]
    assert distilled == [
        "distilled", "49,664", "240.0", "20.0%", "1.011", "1.250", "0.300", "0.050", "0.075", "15.5%", "– / –",
        "–", "–", "–",
    ]  # fmt: skip


def test_columns_that_are_not_always_measured_are_there_where_they_were() -> None:
    columns, rows = final_table(METRICS)
    always = COLUMNS[:-3]
    assert columns == always and {len(row) for row in rows} == {len(columns)}
    assert title_of(columns, rows) == TITLE
    gap = {"eval/distilled/domain/marginal_gap": 0.0131}
    gap |= {"eval/distilled/domain/marginal_gap/low": 0.0085, "eval/distilled/domain/marginal_gap/high": 0.0178}
    columns, rows = final_table(METRICS | gap)
    assert columns == [*always, "other cuts"] and [row[-1] for row in rows] == ["–", "0.013 [0.01,0.02]"]
    assert "other cuts: bits/B" in title_of(columns, rows) and "masked" not in title_of(columns, rows)
    masked = {"eval/distilled/domain/bits_per_byte_masked": 0.99, "eval/distilled/domain/kl_to_teacher_masked": 0.2}
    columns, rows = final_table(METRICS | masked)
    assert columns == [*always, "masked bits/B", "masked KL"] and [row[-2:] for row in rows][1] == ["0.990", "0.200"]
    assert "masked" in title_of(columns, rows) and max(map(len, title_of(columns, rows).split("\n"))) <= 120


def test_a_model_with_an_adapter_is_compared_with_the_original_with_it() -> None:
    more = {"eval/carried/domain/tokens_per_1000_bytes": 240.0, "eval/carried/humaneval/pass@1": 0.1}
    metrics = {**METRICS, **more, "eval/carried/humaneval/tasks": 3.0}
    columns, rows = final_table(metrics)
    told = "distilled + adapter: compared with original + adapter"
    assert told in title_of(columns, rows) and told in suites_title(suite_rows(metrics))
    assert told not in title_of(*final_table(METRICS)) and told not in suites_title(suite_rows(METRICS))


def test_models_come_in_the_order_of_the_pipeline() -> None:
    more = {f"eval/{of}/domain/tokens_per_1000_bytes": 240.0 for of in ("finetuned", "init")}
    names = [row[0] for row in final_rows({**more, **METRICS})]
    assert names == ["original", "extended", "distilled", "fine-tuned"]


def test_no_rows_without_an_evaluation_of_the_original() -> None:
    assert final_rows({}) == []
    assert final_rows({"eval/init/domain/tokens_per_1000_bytes": 240.0}) == []


def test_a_figure_that_is_missing_is_a_dash() -> None:
    assert with_interval({}, "eval/init/domain/kl_to_teacher") == "–"
    added_tokens = {name: value for name, value in METRICS.items() if "/kl_" not in name}
    assert final_rows(added_tokens)[1][6:9] == ["–", "–", "–"]


def test_a_row_for_every_suite_model_and_rate() -> None:
    metrics = {
        "eval/original/humaneval/tasks": 164.0,
        "eval/original/humaneval/documents": 164,
        "eval/original/humaneval/pass@1": 0.05,
        "eval/original/humaneval/pass@1/low": 0.02,
        "eval/original/humaneval/pass@1/high": 0.09,
        "eval/original/humaneval/tokens_per_task": 60.25,
        "eval/original/humaneval/verdict/timed_out": 2.0,
        "eval/distilled/humaneval/tasks": 164.0,
        "eval/distilled/humaneval/pass@1": 0.04,
        "eval/distilled/humaneval/pass@1/low": 0.01,
        "eval/distilled/humaneval/pass@1/high": 0.08,
        "eval/distilled/humaneval/pass@1/minus_original": -0.01,
        "eval/distilled/humaneval/pass@1/minus_original/low": -0.03,
        "eval/distilled/humaneval/pass@1/minus_original/high": 0.01,
        "eval/distilled/humaneval/pass@1/mcnemar_p": 0.5,
        "eval/distilled/humaneval/adoption": 0.75,
        "eval/original/domain/bits_per_byte": 0.8,
        "eval/original/domain/bits_per_byte/low": 0.7,
    }
    first, second = suite_rows(metrics | final_names(metrics))
    assert first == [
        "humaneval", "164", "164", "original", "pass@1", "0.050 [0.02,0.09]", "–", "–", "60.2", "–", "–", "2",
    ]  # fmt: skip
    assert second[2:8] == ["–", "distilled", "pass@1", "0.040 [0.01,0.08]", "-0.010 [-0.03,0.01]", "0.500"]
    assert second[10] == "75.0%"
    assert len(first) == len(second) == len(SUITES_COLUMNS)


def test_the_last_model_stands_under_names_of_its_own() -> None:
    metrics = {
        "eval/original/humaneval/pass@1": 0.1,
        "eval/distilled/humaneval/pass@1": 0.2,
        "eval/distilled/domain/bits_per_byte": 0.9,
    }
    assert final_names(metrics) == {"eval/humaneval/pass@1": 0.2}
    tuned = metrics | {"eval/finetuned/humaneval/pass@1": 0.3, "eval/finetuned/plain/kl_to_teacher": 0.1}
    assert final_names(tuned) == {"eval/humaneval/pass@1": 0.3}
    assert final_names({"eval/original/humaneval/pass@1": 0.1}) == {}
