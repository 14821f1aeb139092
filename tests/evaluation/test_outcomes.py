"""Figures from records: rates by hand, pass@k, and the comparison of two models."""

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
