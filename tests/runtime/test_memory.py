"""Memory that has come to its end: told with what to lower, whoever says so; nothing else is taken for it."""

import re
from pathlib import Path

import pytest
import torch

from kldistill.evaluation import score
from kldistill.pipeline import compose
from kldistill.pipeline.steps import steps_of
from kldistill.runtime import memory
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ConfigError, MemoryShortageError
from tests.helpers.runs import config, run, write_corpus

ON_CPU = RuntimeConfig(device="cpu", score_batch=7)
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13.29 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_a_shortage_says_what_to_lower(error: Exception) -> None:
    with pytest.raises(MemoryShortageError) as told, memory.told("evaluate_distilled", ON_CPU):
        raise error
    assert str(told.value) == (
        "evaluate_distilled: this machine has no memory left. Any of these helps: lower runtime.score_batch (7 now); "
        "lower runtime.chunk (128 now); end what else uses it. The same command then goes on from what is finished."
    )


def test_what_another_error_came_from_counts_and_what_is_none_passes() -> None:
    wrapped = ValueError("the batch cannot be made")
    wrapped.__cause__ = SHORTAGES[0]
    lower = r"^distill: .*lower runtime\.pass_tokens .*set distill\.gradient_checkpointing=true"
    with pytest.raises(MemoryShortageError, match=lower), memory.told("distill", ON_CPU):
        raise wrapped
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ConfigError("eval: is out of memory")):
        with pytest.raises(type(other), match=re.escape(str(other))), memory.told("distill", ON_CPU):
            raise other


def test_a_device_tells_how_much_is_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (13 * 10**9, 140 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 68_600_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    with pytest.raises(MemoryShortageError) as told, memory.told("generate_distilled_mbpp", RuntimeConfig()):
        raise SHORTAGES[0]
    assert "NVIDIA H200 (13.0 of 140.0 GB free, 68.6 held by this process) has no memory left" in str(told.value)
    assert "lower runtime.generation_batch (256 now); load the weights in model.dtype=bfloat16" in str(told.value)


def test_every_step_that_runs_a_model_has_a_way_out() -> None:
    more = ["finetune=lora", "finetune.control=true", "eval.written=3", "eval.suites=[humaneval]"]
    steps = steps_of(compose.typed(config(more)))
    heavy = [name for name, step in steps.items() if step.together or name.startswith("write")]
    without = [name for name in heavy if not name.startswith(tuple(memory.WAYS))]
    assert without == ["interpret"], without


def test_a_run_that_has_no_memory_left_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(score, "evaluate_original", full)
    corpus = write_corpus(tmp_path / "corpus")
    with pytest.raises(MemoryShortageError, match=r"^evaluate_original: this machine has no memory left"):
        run(corpus, tmp_path / "outputs", "stages=[evaluate_original]")
