"""Without bubblewrap: the refusal, and the plain process that a user may choose instead. Also what needs no sandbox."""

import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kldistill.evaluation.sandbox import (
    Limits,
    Outcome,
    Sandbox,
    SandboxError,
    Verdict,
    bubblewrap,
    pool,
    seccomp,
    unavailable,
)
from kldistill.runtime.errors import ConfigError
from tests.helpers.patience import PATIENCE
from tests.helpers.sandboxes import processes_with, small, wait_until

MARK = 100_000 + os.getpid()  # a limit by which these processes, and no other suite's, are found
Run = Callable[[str], Outcome]


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without bubblewrap."""
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    unavailable.cache_clear()
    yield
    unavailable.cache_clear()


@pytest.fixture
def run(absent: None) -> Iterator[Run]:
    """Runs a program unsandboxed; afterwards nothing is left."""
    with Sandbox(small(output_bytes=MARK), workers=1, allow_unsandboxed=True) as sandbox:
        yield lambda program: sandbox.submit(textwrap.dedent(program)).result(timeout=PATIENCE)
    assert wait_until(lambda: not processes_with(str(MARK)))


def test_refuses_without_bubblewrap(absent: None) -> None:
    with pytest.raises(SandboxError, match="bubblewrap is not installed") as caught:
        Sandbox(small())
    assert isinstance(caught.value, ConfigError)
    assert "apt install bubblewrap" in str(caught.value)
    assert "eval.allow_unsandboxed=true" in str(caught.value)


@pytest.mark.parametrize(
    ("usage", "script", "reason"),
    [
        ("--size", "echo 'bwrap: No permissions to create a new namespace'; exit 1", "forbids it: .*No permissions"),
        ("--tmpfs", "exit 0", "too old, 0.6 or later"),
        ("--size", r"printf 'ready\nfailed\t0\t0\tImportError: ctypes\n'", "Python does not work in it: ImportError"),
    ],
)
def test_says_why_bubblewrap_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, usage: str, script: str, reason: str
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f'#!/bin/sh\nif [ "$1" = --help ]; then echo {usage}; exit; fi\n{script}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    unavailable.cache_clear()
    try:
        with pytest.raises(SandboxError, match=reason):
            Sandbox(small())
    finally:
        unavailable.cache_clear()


def test_refuses_machines_whose_system_calls_are_unknown(monkeypatch: pytest.MonkeyPatch, absent: None) -> None:
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: "/usr/bin/bwrap")
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "vax")
    with pytest.raises(SandboxError, match="no filter of system calls for vax, only for x86_64, aarch64"):
        Sandbox(small())


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("assert 1 + 1 == 2", Verdict.PASSED),
        ("assert 1 + 1 == 3", Verdict.FAILED),
        ("import sys\nsys.exit(0)", Verdict.FAILED),
        ("import os\nos._exit(0)", Verdict.FAILED),
        ("raise BaseException", Verdict.FAILED),
        ("import os\nos.kill(os.getppid(), 9)\nwhile True: pass", Verdict.CRASHED),
        ("import os\nos.kill(os.getpid(), 11)", Verdict.CRASHED),
        ("x = bytearray(1 << 40)", Verdict.CRASHED),
        ("while True:\n    print('x' * 1000)", Verdict.CRASHED),
        ("while True: pass", Verdict.TIMED_OUT),
        ("open('big', 'wb').write(bytes(1 << 22))", Verdict.BLOCKED),
        (
            "import os, time\nfor _ in range(20):\n    if os.fork() == 0:\n        time.sleep(1000)\ntime.sleep(1000)",
            Verdict.BLOCKED,
        ),
        ("import os, sys\nif os.fork() == 0:\n    assert True\nelse:\n    os.wait()\n    assert False", Verdict.FAILED),
    ],
)
def test_verdicts_of_plain_processes(run: Run, program: str, verdict: Verdict) -> None:
    assert run(program).verdict is verdict


def test_plain_processes_get_no_secrets_and_an_empty_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "opensesame")
    program = (
        "import os\nassert not os.listdir() and 'opensesame' not in str(os.environ)\nraise ValueError(os.getcwd())"
    )
    outcome = run(program)
    folder = Path(outcome.detail.removeprefix("ValueError: "))
    assert folder.name.startswith("kldistill-program-")
    assert not folder.exists()


def test_a_supervisor_that_ends_without_a_verdict_gets_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Outcome | None] = [None, Outcome(Verdict.PASSED, 0.5, 1.0)]
    monkeypatch.setattr(pool, "attempt", lambda *arguments: tries.pop(0))
    assert pool.judge("", small(), boxed=False).verdict is Verdict.PASSED
    tries += [None, None]
    assert pool.judge("", small(), boxed=False).verdict is Verdict.CRASHED


def test_answers_of_the_supervisor_are_read_strictly() -> None:
    assert pool.understood("ready\npassed\t0.5\t1.0\t\n") == Outcome(Verdict.PASSED, 0.5, 1.0)
    assert pool.understood("ready\n") is None
    with pytest.raises(SandboxError, match="did not start: bwrap: no"):
        pool.understood("bwrap: no\n")
    with pytest.raises(SandboxError, match="it said nothing"):
        pool.understood("")


def test_the_filter_of_system_calls_is_well_formed() -> None:
    for machine in seccomp.AUDIT_ARCHES:
        steps = seccomp.filter_program(machine)
        assert len(steps) % 8 == 0 and len(steps) < 8 * 4096
        assert steps[-8:] == b"\x06\0\0\0\0\0\xff\x7f"  # allow, at the end only
        assert steps.count(b"\x06\0\0\0\0\0\xff\x7f") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu_seconds", 0),
        ("wall_seconds", -1),
        ("memory_bytes", 1 << 20),
        ("processes", 0),
        ("file_bytes", 100),
        ("output_bytes", 0),
    ],
)
def test_limits_are_checked(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^eval\.limits\.{key}="):
        Limits(**{key: value})  # pyright: ignore[reportArgumentType]


def test_number_of_workers_is_checked() -> None:
    with pytest.raises(ConfigError, match="workers=0"):
        Sandbox(small(), workers=0)
