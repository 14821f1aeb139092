"""The stage that answers tasks: complete records, judged, resumable, compared with the original model."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kldistill.evaluation import answer
from kldistill.evaluation.config import GenerateConfig, GenerateWithVllmConfig, VllmConfig
from kldistill.evaluation.sandbox import unavailable
from kldistill.evaluation.suites.task import Task, write
from kldistill.model import tiny
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.job import Job
from tests.helpers import fake_vllm
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.interpreter import python
from tests.helpers.launched import together
from tests.helpers.paths import HELPERS

LINES = [line for line in tiny.training_text()[0].splitlines() if len(line) > 50][:12]
Build = Callable[..., list[dict[str, Any]]]


def text_tasks(n: int = 6) -> list[Task]:
    """Lines to finish."""
    return [
        Task(f"line{at}", "text", line[:30], budget=40, stop=["\n"], reference=line[30:], group=f"document{at}")
        for at, line in enumerate(LINES[:n])
    ]


@pytest.fixture(scope="module")
def folders(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An original and an extended model."""
    model = tiny_model()
    tokens = fake_tokens(model)
    rows = tmp_path_factory.mktemp("rows")
    weight = load_original(model).get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    Rows(torch.randn(24, weight.shape[1], generator=generator) * weight.std()).save(rows)
    return {"model": model, "tokens": tokens, "rows": rows}


@pytest.fixture
def build(folders: dict[str, Path], tmp_path: Path) -> Build:
    """``build(tasks, out, original=None, backend="transformers", **settings)``: run the stage, and give its records."""

    def make(
        tasks: list[Task], out: str, original: str | None = None, backend: str = "transformers", **settings: Any
    ) -> list[dict[str, Any]]:
        (tmp_path / "tasks").mkdir(exist_ok=True)
        write(tmp_path / "tasks" / "tasks.jsonl", tasks)
        inputs = {"model": folders["model"], "tasks": tmp_path / "tasks"}
        if original is not None:
            inputs |= folders | {"original": tmp_path / original}
        of = "original" if original is None else "distilled"
        (tmp_path / out).mkdir(exist_ok=True)
        cfg = {"transformers": GenerateConfig, "vllm": GenerateWithVllmConfig}[backend](of, "some", **settings)
        answer.build(cfg, inputs, tmp_path / out, Job(RuntimeConfig(generation_batch=3)))
        return [json.loads(line) for line in (tmp_path / out / "records.jsonl").read_text().splitlines()]

    return make


def summary(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in records]


def test_every_task_has_one_record_in_the_order_of_the_tasks(build: Build, tmp_path: Path) -> None:
    tasks = text_tasks()
    records = build(tasks, "original")
    assert [record["task"] for record in records] == [task.id for task in tasks]
    for record, task in zip(records, tasks, strict=True):
        assert len(record["prompt_sha256"]) == 16 and record["group"] == task.group
        assert record["bytes"] == len(record["completion"].encode()) <= task.budget
        assert "\n" not in record["completion"]
        assert 0 <= record["edit_similarity"] <= 1
        assert isinstance(record["exact_match"], bool)
    found = summary(tmp_path / "original")
    assert found["eval/original/some/tasks"] == len(tasks)
    name = "eval/original/some/edit_similarity"
    assert found[name] == pytest.approx(sum(record["edit_similarity"] for record in records) / len(tasks))
    assert found["eval/original/some/documents"] == len(tasks) < 8 and f"{name}/low" not in found, "too few"
    assert found["eval/original/some/tokens_per_task"] == sum(record["tokens"] for record in records) / len(tasks)


def test_vllm_answers_and_is_judged_alike(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the extended model: every record and every figure."""
    made = fake_vllm.install(monkeypatch).made
    tasks = text_tasks()
    for out, original in (("original", None), ("extended", "original")):
        ours = build(tasks, f"{out}-vllm", original and f"{original}-vllm", backend="vllm")
        assert timeless(ours) == timeless(build(tasks, out, original))
        assert summary(tmp_path / f"{out}-vllm").keys() == summary(tmp_path / out).keys()
    assert len(made) == 2 and not any(engine.open for engine in made)
    own = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "enforce_eager": True}
    build(tasks, "settings", backend="vllm", vllm=VllmConfig(**own))
    of_plain, of_own = vars(made[0].args), vars(made[-1].args)
    assert {key: value for key, value in of_own.items() if key not in of_plain} == own, "what is null is vLLM's affair"


@pytest.mark.parametrize("backend", ["transformers", "vllm"])
@pytest.mark.parametrize("settings", [{}, {"n_samples": 2, "temperature": 0.9}], ids=["greedy", "sampled"])
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_answers(
    build: Build, tmp_path: Path, settings: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch)
    tasks, settings = text_tasks(), {**settings, "backend": backend}
    whole = build(tasks, "whole", **settings)
    n = settings.get("n_samples", 1)
    (tmp_path / "killed").mkdir()
    lines = (tmp_path / "whole" / "records.jsonl").read_text().splitlines(keepends=True)
    # Two tasks are there; of another only one sample, or half a line.
    kept = lines[n : 3 * n]
    torn = lines[4 * n] if n > 1 else lines[4][:40]
    (tmp_path / "killed" / "records.jsonl").write_text("".join(kept) + torn)
    again = build(tasks, "killed", **settings)
    assert timeless(again) == timeless(whole)
    assert [record for record in again if record["task"] in ("line1", "line2")] == [json.loads(line) for line in kept]


def test_two_processes_share_the_tasks_and_give_the_answers_of_one(
    build: Build, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Also where an interrupted run of three processes has left some: by each some, and a task without all samples."""
    tasks, settings = text_tasks(), {"n_samples": 2, "temperature": 0.7}
    whole = build(tasks, "whole", **settings)
    lines = (tmp_path / "whole" / "records.jsonl").read_text().splitlines(keepends=True)
    out = tmp_path / "shared"
    out.mkdir()
    (out / "records.jsonl").write_text("".join(lines[:2]))
    (out / "records.0.jsonl").write_text(lines[4])
    (out / "records.2.jsonl").write_text("".join(lines[8:10]) + lines[6][:40])
    arguments = [folders["model"], tmp_path / "tasks", out, "2"]
    ends = together([python(), HELPERS / "answers_driver.py", *arguments])
    assert [code for _, code in ends] == [0, 0], ends
    given = [json.loads((tmp_path / f"given{rank}.json").read_text()) for rank in range(2)]
    assert given == [["line1", "line3"], ["line2", "line5"]]
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert timeless(records) == timeless(whole)
    assert sorted(file.name for file in out.iterdir()) == ["records.jsonl", "summary.json"]


def test_the_extended_model_is_compared_on_the_same_tasks(build: Build, tmp_path: Path) -> None:
    tasks = text_tasks(8)
    before = build(tasks, "original")
    after = build(tasks, "distilled", original="original")
    found = summary(tmp_path / "distilled")
    mean = sum(a["edit_similarity"] - b["edit_similarity"] for a, b in zip(after, before, strict=True)) / len(tasks)
    key = "eval/distilled/some/edit_similarity/minus_original"
    assert found[key] == pytest.approx(mean)
    assert found[f"{key}/low"] <= mean <= found[f"{key}/high"]
    assert 0 <= found["eval/distilled/some/exact_match/mcnemar_p"] <= 1
    assert all({"new_used", "new_spelt"} <= record.keys() for record in after)
    assert not any("minus_original" in name for name in summary(tmp_path / "original"))


def test_lines_of_the_training_snippets_are_told_apart(
    build: Build, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = text_tasks(4)
    tasks[3] = dataclasses.replace(tasks[3], seen=["train"])
    (tmp_path / "teacher").mkdir()
    snippet = {"document": "d", "text": f"first\n{LINES[1]}\n    {LINES[3]}\n", "ids": []}
    (tmp_path / "teacher" / "train.jsonl").write_text(json.dumps(snippet) + "\n")
    assert [record["seen"] for record in build(tasks, "original")] == [[], [], [], ["train"]]
    monkeypatch.setitem(folders, "teacher", tmp_path / "teacher")
    records = build(tasks, "distilled", original="original")
    assert [record["seen"] for record in records] == [[], ["snippets"], [], ["train", "snippets"]]
    found = summary(tmp_path / "distilled")
    assert found["eval/distilled/some/tasks"] == 2 and found["eval/distilled/some/tasks_in_snippets"] == 2
    assert "eval/distilled/some/edit_similarity_in_snippets/minus_original" in found


def test_solutions_are_read_and_both_models_read_the_same_bytes(build: Build, tmp_path: Path) -> None:
    """Also with more samples asked for, as there is nothing to draw."""
    tasks = [dataclasses.replace(task, kind="solution", budget=0, stop=[]) for task in text_tasks()]
    ours, theirs = build(tasks, "original", n_samples=3), build(tasks, "extended", original="original")
    assert [record["task"] for record in ours] == [record["task"] for record in theirs] == [task.id for task in tasks]
    for mine, other, task in zip(ours, theirs, tasks, strict=True):
        assert mine["bytes"] == other["bytes"] >= len(task.reference.encode()) and mine["nats"] > 0
        assert mine["tokens"] >= other["tokens"]
    found = summary(tmp_path / "extended")
    bits = [record["nats"] / math.log(2) / record["bytes"] for record in theirs]
    name = "eval/distilled/some/bits_per_byte"
    assert found[name] == pytest.approx(sum(bits) / len(bits))
    before = summary(tmp_path / "original")["eval/original/some/bits_per_byte"]
    assert found[f"{name}/minus_original"] == pytest.approx(found[name] - before)


def test_choices_are_ranked_by_their_total_log_probability(build: Build, tmp_path: Path) -> None:
    line = LINES[0]
    options = [line[20:40], "#" * 20, "(" * 20, "zq" * 10]
    tasks = [Task(f"task{at}", "choice", LINES[at][:20], options=options) for at in range(4)]
    records = build(tasks, "original")
    for record in records:
        best = max(record["log_probabilities"])
        assert record["correct"] == (record["log_probabilities"][0] == best)
        assert all(value < 0 for value in record["log_probabilities"])
    found = summary(tmp_path / "original")
    assert found["eval/original/some/accuracy"] == sum(record["correct"] for record in records) / 4
    shares = [torch.tensor(record["log_probabilities"], dtype=torch.float64).softmax(0)[0].item() for record in records]
    bits = sum(-math.log2(share) for share in shares) / 4
    assert found["eval/original/some/bits_per_choice"] == pytest.approx(bits, rel=1e-4)
    assert "eval/original/some/tokens_per_task" not in found


@pytest.mark.skipif(unavailable() is not None, reason=f"no sandbox: {unavailable()}")
def test_programs_run_in_the_sandbox(build: Build, tmp_path: Path) -> None:
    # Whatever the model writes is a comment, so the assertion alone decides.
    tasks = [
        Task("right", "program", "# a", budget=16, stop=["\n"], before="#", after="\nassert 1 + 1 == 2\n"),
        Task("wrong", "program", "# b", budget=16, stop=["\n"], before="#", after="\nassert 1 + 1 == 3\n"),
    ]
    records = build(tasks, "original")
    assert [record["verdict"] for record in records] == ["passed", "failed"]
    assert "AssertionError" in records[1]["detail"]
    found = summary(tmp_path / "original")
    assert found["eval/original/some/pass@1"] == 0.5
    assert found["eval/original/some/verdict/failed"] == 1
    assert found["eval/original/some/verdict/timed_out"] == 0
