"""Devices and precision: what accelerate keeps for the life of a process, and what each stage may choose anew."""

from pathlib import Path

import pytest
import torch

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.devices import (
    ON_ACCELERATOR,
    ON_CPU,
    accelerator,
    check_compiler,
    device_of,
    process_state,
    sizes,
    suited,
)
from kldistill.runtime.errors import ConfigError

CPU = RuntimeConfig(device="cpu")


def test_each_stage_has_its_own_precision() -> None:
    """Evaluation computes in float32 before and after a stage that trains in bfloat16."""
    assert device_of(CPU) == torch.device("cpu")
    seen = []
    for precision in ("no", "bf16", "no"):
        made = accelerator(CPU, precision)
        assert made.mixed_precision == precision
        with made.autocast():
            seen.append(torch.ones(1, 4).matmul(torch.ones(4, 4)).dtype)
    assert seen == [torch.float32, torch.bfloat16, torch.float32]


def test_a_launchers_precision_does_not_overrule_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert accelerator(CPU, "no").mixed_precision == "no"


def test_a_device_that_is_not_here_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"runtime.device='cuda': accelerate gives 'cpu' on this machine"):
        device_of(RuntimeConfig(device="cuda"))


def test_alone_there_is_one_process() -> None:
    state = process_state(CPU)
    assert (state.process_index, state.num_processes) == (0, 1)


def test_who_asks_for_compiled_layers_needs_the_compiler_that_torch_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On Linux g++, or what CXX names; a machine that has others alone would end at its first step."""
    from torch._inductor import config, cpp_builder

    def search(named: str, *present: str) -> None:
        """Look for a compiler where these programs alone are present, as if CXX were ``named``."""
        folder = tmp_path / "-".join((named, *present))
        folder.mkdir()
        for name in present:
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(config.cpp, "cxx", (None, named))
        cpp_builder.cpp_compiler_search.cache_clear()
        try:
            check_compiler()
        finally:
            cpp_builder.cpp_compiler_search.cache_clear()

    search("g++", "g++")
    search("clang++", "clang++")
    with pytest.raises(ConfigError, match=r"runtime.compile=true: torch needs .* finds no g\+\+ that works here.*CXX="):
        search("g++", "gcc", "clang", "clang++", "cc", "c++")
    with pytest.raises(ConfigError, match="finds no other that works here"):
        search("other", "g++")
    with pytest.raises(ConfigError, match=r"runtime.compile.*does not go with runtime.shard=true"):
        RuntimeConfig(compile=True, shard=True)


def test_what_is_done_at_a_time_suits_the_device_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (False, True):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda there=there: there)
        assert sizes(RuntimeConfig(device="cpu")) == ON_CPU
        assert sizes(RuntimeConfig(device="auto")) == (ON_ACCELERATOR if there else ON_CPU)
        assert sizes(RuntimeConfig(device="cuda")) == ON_ACCELERATOR
        assert suited("cpu") == ON_CPU and suited(torch.device("cuda:1")) == suited("mps") == ON_ACCELERATOR
        for device in ("cpu", "auto", "cuda"):
            said = sizes(RuntimeConfig(device=device, pass_tokens=7, chunk=9))
            assert said == (ON_CPU if device == "cpu" or (device == "auto" and not there) else ON_ACCELERATOR)._replace(
                pass_tokens=7, chunk=9
            )
