"""Figures from records: rates by hand, pass@k, and the comparison of two models."""

import math
from typing import Any

import pytest

from kldistill.evaluation.outcomes import compared, rates, summarise


def program(task: str, *verdicts: str, seconds: float = 1.0) -> list[dict[str, Any]]:
    """Records of one task, one per sample."""
    head = {"task": task, "group": "", "tokens": 10, "bytes": 30, "seconds": seconds}
    return [{**head, "sample": at, "verdict": verdict} for at, verdict in enumerate(verdicts)]


def test_pass_at_one_is_the_share_that_passes() -> None:
    records = program("a", "passed") + program("b", "failed") + program("c", "timed_out") + program("d", "passed")
    found = summarise("program", records)
    assert found["pass@1"] == 0.5
    assert found["tasks"] == 4
    assert found["verdict/passed"] == 2 and found["verdict/failed"] == 1 and found["verdict/timed_out"] == 1
    assert found["verdict/crashed"] == found["verdict/blocked"] == 0
    assert "pass@1/low" not in found and found["documents"] == 4, "too few for an interval"
    more = summarise(
        "program", [record for at in range(8) for record in program(f"t{at}", "passed" if at % 2 else "failed")]
    )
    assert more["pass@1/low"] < 0.5 < more["pass@1/high"] and more["documents"] == 8
    assert "pass@10" not in found and "adoption" not in found


def test_pass_at_k_needs_k_samples_of_every_task() -> None:
    verdicts = ["passed"] * 3 + ["failed"] * 7
    found = rates("program", program("a", *verdicts) + program("b", *["failed"] * 10))
    assert found["pass@1"] == {"a": pytest.approx(0.3), "b": 0.0}
    assert found["pass@10"] == {"a": 1.0, "b": 0.0}


def test_samples_of_a_text_are_averaged_within_their_task() -> None:
    head = {"group": "g", "tokens": 5, "bytes": 9, "seconds": 0.1}
    records = [
        {**head, "task": "a", "sample": 0, "exact_match": True, "edit_similarity": 1.0, "new_used": 1, "new_spelt": 2},
        {**head, "task": "a", "sample": 1, "exact_match": False, "edit_similarity": 0.5, "new_used": 2, "new_spelt": 2},
        {**head, "task": "b", "sample": 0, "exact_match": False, "edit_similarity": 0.0, "new_used": 0, "new_spelt": 0},
    ]
    found = summarise("text", records)
    assert found["exact_match"] == 0.25
    assert found["edit_similarity"] == 0.375
    assert found["tokens_per_task"] == 7.5
    assert found["adoption"] == 0.75 and found["new_tokens_spelt"] == 4


def test_two_models_are_compared_task_by_task() -> None:
    ours = [record for at in range(12) for record in program(f"t{at}", "passed")]
    theirs = [record for at in range(12) for record in program(f"t{at}", "failed" if at < 9 else "passed")]
    found = compared("program", ours, theirs)
    assert found["pass@1/minus_original"] == 0.75
    assert 0 < found["pass@1/minus_original/low"] < 0.75 <= found["pass@1/minus_original/high"]
    assert found["pass@1/mcnemar_p"] == pytest.approx(2 / 2**9)


def test_a_model_does_not_differ_from_itself() -> None:
    records = [record for at in range(9) for record in program(f"t{at}", "passed" if at % 2 else "failed")]
    found = compared("program", records, records)
    assert found["pass@1/minus_original"] == found["pass@1/minus_original/low"] == 0
    assert found["pass@1/mcnemar_p"] == 1.0


def test_other_tasks_cannot_be_compared() -> None:
    with pytest.raises(AssertionError, match="same tasks"):
        compared("program", program("a", "passed"), program("b", "passed"))


def line(task: str, right: bool, *seen: str) -> dict[str, Any]:
    """The record of a line to complete that stands in the places ``seen`` already."""
    head = {"task": task, "sample": 0, "group": task, "tokens": 5, "bytes": 9, "seconds": 0.1, "seen": list(seen)}
    return head | {"exact_match": right, "edit_similarity": float(right)}


def test_lines_that_were_seen_are_reported_apart_and_not_in_the_headline() -> None:
    ours = [line(f"new{n}", n < 2) for n in range(10)] + [
        line("a", True, "train"),
        line("b", True, "train", "snippets"),
        line("c", True, "prompt"),
        line("d", False, "train", "prompt"),
    ]
    found = summarise("text", ours)
    assert found["exact_match"] == 0.2 and found["tasks"] == 10
    assert found["exact_match_in_train"] == pytest.approx(2 / 3) and found["tasks_in_train"] == 3
    assert found["exact_match_in_snippets"] == 1.0 and found["tasks_in_snippets"] == 1
    assert found["exact_match_in_prompt"] == 0.5 and found["tasks_in_prompt"] == 2
    # The original model does not know which snippets the other one is trained on.
    theirs = [
        record | {"exact_match": False, "seen": [s for s in record["seen"] if s != "snippets"]} for record in ours
    ]
    pairs = compared("text", ours, theirs)
    assert pairs["exact_match/minus_original"] == pytest.approx(0.2)
    assert pairs["exact_match_in_snippets/minus_original"] == 1.0
    assert pairs["exact_match_in_prompt/minus_original"] == 0.5
    alone = summarise("text", [line(f"new{n}", True) for n in range(12)])
    assert not any("_in_" in name for name in alone)


def test_bits_per_byte_of_solutions_are_means_over_tasks_and_compared_in_pairs() -> None:
    def records(nats: float) -> list[dict[str, Any]]:
        head = {"sample": 0, "group": "", "tokens": 3, "bytes": 8, "seconds": 0.1}
        return [{**head, "task": f"t{at}", "nats": (nats + at) * math.log(2)} for at in range(10)]

    ours, theirs = records(8.0), records(7.2)
    found = summarise("solution", ours)
    assert found["bits_per_byte"] == pytest.approx((8.0 + 4.5) / 8)
    assert found["bits_per_byte/low"] < found["bits_per_byte"] < found["bits_per_byte/high"]
    assert (found["tasks"], found["tokens_per_task"], found["bytes_per_task"]) == (10, 3, 8)
    difference = compared("solution", ours, theirs)
    assert difference["bits_per_byte/minus_original"] == pytest.approx(0.1)
    assert difference["bits_per_byte/minus_original/low"] == pytest.approx(0.1)
    assert "bits_per_byte/mcnemar_p" not in difference
