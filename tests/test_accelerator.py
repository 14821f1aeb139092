"""What the other tests say of a CPU, on this machine's accelerator: skipped where there is none.

pytest -n 1 tests/test_accelerator.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from kldistill.evaluation.generation.batching import Request, generate
from kldistill.evaluation.generation.decoding import Decoding
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.losses.fused import fused, measure
from kldistill.model.load import load_original, load_original_tokenizer
from tests.helpers.artifacts import MakeModel
from tests.helpers.runs import run, write_corpus
from tests.losses.test_fused import TERMS, some_chunk

pytestmark = pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator here")

LEARNS = ["distill=lora", "loss=kl_ce_light_masked", "distill.steps=12", "distill.general=0", "eval.masked=true"]
TASKS = ["eval.suites=[completion]", "eval.completion.n=12"]


def here() -> torch.device:
    """The accelerator."""
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def _another_device() -> Iterator[None]:
    """accelerate keeps a process's first device."""
    PartialState._reset_state()
    yield
    PartialState._reset_state()


def test_losses_and_gradients_are_those_of_the_cpu() -> None:
    for seed in range(20):
        chunk, logits, teacher, _ = some_chunk(seed)
        total, _ = fused(TERMS, logits, teacher, chunk.alignment)
        (wanted,) = torch.autograd.grad(total, logits)
        moved = logits.detach().to(here()).requires_grad_()
        there, alignment = teacher.to(here()), chunk.to(here()).alignment
        found, _ = fused(TERMS, moved, there, alignment)
        (gradient,) = torch.autograd.grad(found, moved)
        torch.testing.assert_close(found.cpu(), total, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient.cpu(), wanted, rtol=1e-12, atol=1e-12)
        for one, other in zip(measure(moved, there, alignment), measure(logits, teacher, chunk.alignment), strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-12)


def test_greedy_and_sampled_texts_are_those_of_the_cpu(tiny_model: MakeModel) -> None:
    folder = tiny_model()
    tokenizer = load_original_tokenizer(folder)
    requests = [Request(f"def name_{index}(self", 40, ("\n",)) for index in range(20)]
    for decoding in (Decoding(), Decoding(temperature=0.8, seed=3)):
        texts: dict[str, dict[int, Any]] = {}
        for device in ("cpu", str(here())):
            model = load_original(folder, device)
            written = generate(model, Spelling(tokenizer), requests, batch_size=8, decoding=decoding)
            texts[device] = {index: [one.text for one in all_of_it] for index, all_of_it in written}
        assert texts["cpu"] == texts[str(here())]


def figures(record: dict[str, Any]) -> dict[str, float]:
    """What a run measured of quality."""
    words = ("bits_per_byte", "kl_to_teacher", "unresolved", "adoption", "edit_similarity")
    return {name: value for name, value in record["metrics"].items() if any(word in name for word in words)}


def test_a_run_comes_to_the_same_as_on_the_cpu(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    wanted = figures(run(corpus, tmp_path / "cpu", *LEARNS, *TASKS))
    PartialState._reset_state()
    found = figures(run(corpus, tmp_path / "there", *LEARNS, *TASKS, f"runtime.device={here().type}"))
    assert len(wanted) > 8 and wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=2e-3, abs=2e-3), name


def test_a_run_in_bfloat16_comes_near_it(tmp_path: Path, tiny_model: MakeModel) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    of = [*LEARNS, "model=hf", f"model.path={tiny_model()}", f"runtime.device={here().type}"]
    wanted = figures(run(corpus, tmp_path / "float32", *of))
    for name, more in {"autocast": "distill.precision=bf16", "whole": "model.dtype=bfloat16"}.items():
        found = figures(run(corpus, tmp_path / name, *of, more))
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, rel=0.05, abs=0.05), (name, key)
