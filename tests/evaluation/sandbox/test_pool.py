"""The sandbox with ordinary programs, and how it is run."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator

import pytest

from kldistill.evaluation.sandbox import Outcome, Sandbox, SandboxError, Verdict, bubblewrap, pool
from tests.helpers.patience import PATIENCE
from tests.helpers.sandboxes import needs_bubblewrap, processes_with, small, wait_until

pytestmark = needs_bubblewrap
Run = Callable[[str], Outcome]

ORDINARY = {
    "nothing": "",
    "assertions": "def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3\nassert add('a', 'b') == 'ab'",
    "standard library": """
        import abc, array, ast, asyncio, base64, bisect, calendar, cmath, collections, contextlib, copy, csv, ctypes
        import dataclasses, datetime, decimal, difflib, doctest, enum, fractions, functools, hashlib, heapq, html
        import inspect, io, itertools, json, logging, math, multiprocessing, operator, os, pathlib, pickle, platform
        import pprint, queue, random, re, secrets, shutil, socket, statistics, string, struct, subprocess, sys, tempfile
        import textwrap, threading, time, timeit, traceback, types, typing, unicodedata, unittest, urllib.request, uuid
        import warnings, weakref, zlib
        import concurrent.futures, importlib.metadata, xml.etree.ElementTree, zoneinfo
        assert math.isclose(statistics.mean([1, 2]), 1.5) and hashlib.sha256(b"").hexdigest().startswith("e3b0")
        """,
    "recursion": """
        import sys
        def depth(n):
            return 0 if n == 0 else 1 + depth(n - 1)
        assert depth(900) == 900
        sys.setrecursionlimit(20_000)
        assert depth(15_000) == 15_000
        """,
    "as a script": """
        import dataclasses, pickle, sys, typing
        @dataclasses.dataclass
        class Point:
            x: "int" = 1
        def double(x):
            '''
            >>> double(2)
            4
            '''
            return 2 * x
        assert __name__ == "__main__" and len(sys.argv) == 1
        assert typing.get_type_hints(Point) == {"x": int}
        assert pickle.loads(pickle.dumps(Point())) == Point(1)
        if __name__ == "__main__":
            import doctest
            assert doctest.testmod() == (0, 1)
        """,
    "threads": """
        import asyncio, threading
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]
        async def three():
            await asyncio.sleep(0.01)
            return await asyncio.to_thread(lambda: 3)
        assert asyncio.run(three()) == 3
        """,
    "signals": """
        import signal, time
        got = []
        signal.signal(signal.SIGALRM, lambda *a: got.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.05)
        assert got == [1]
        """,
    "own files": """
        import os, tempfile
        assert os.listdir() == [] and os.getcwd() == "/tmp"
        with open("a.txt", "w") as f:
            f.write("ü" * 1000)
        with tempfile.TemporaryFile() as f:
            f.write(b"x")
        assert os.path.getsize("a.txt") == 2000
        """,
    "output": "import sys\nprint('ü' * 1000)\nprint('x' * 1000, file=sys.stderr)",
    "caught": "try:\n    open('/etc/shadow')\nexcept OSError:\n    pass\nelse:\n    assert False",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(small(cpu_seconds=5, memory_bytes=512 << 20), workers=2) as made:
        yield made


@pytest.fixture
def run(sandbox: Sandbox) -> Run:
    return lambda program: sandbox.submit(textwrap.dedent(program)).result(timeout=PATIENCE)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_programs_pass(run: Run, name: str) -> None:
    outcome = run(ORDINARY[name])
    assert (outcome.verdict, outcome.detail) == (Verdict.PASSED, "")
    assert 0 <= outcome.cpu_seconds < 5


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("assert 1 == 2, 'one is\\nnot\\ttwo'", "AssertionError: one is not two"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = = 1", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("open('missing.txt')", "FileNotFoundError: [Errno 2] No such file or directory: 'missing.txt'"),
        ("input()", "EOFError: EOF when reading a line"),
        ("raise ValueError('x' * 10_000)", "ValueError: " + "x" * 188),
        ("import torch", "ModuleNotFoundError: No module named 'torch'"),
    ],
)
def test_wrong_programs_fail_with_one_short_line(run: Run, program: str, detail: str) -> None:
    outcome = run(program)
    assert (outcome.verdict, outcome.detail) == (Verdict.FAILED, detail)


@pytest.mark.parametrize("program", ["x = '\ud800'", "x = '\0'", "# coding: latin-1\nassert len('ü') == 2"])
def test_any_text_gets_a_verdict(run: Run, program: str) -> None:
    assert run(program).verdict is Verdict.FAILED


def test_a_set_has_the_same_order_each_time(run: Run) -> None:
    first, second = (run("raise ValueError(list({'a', 'b', 'c', 'd', 'e', 'f'}))") for _ in range(2))
    assert first.detail == second.detail


def test_waiting_costs_no_cpu_time() -> None:
    with Sandbox(small(), workers=1) as sandbox:
        outcome = sandbox.submit("import time\ntime.sleep(0.5)").result(timeout=PATIENCE)
    assert outcome.verdict is Verdict.PASSED
    assert outcome.cpu_seconds < 0.25 < 0.5 <= outcome.wall_seconds


def test_a_crowded_machine_fails_no_program() -> None:
    program = "import time\nwhile time.process_time() < 0.1: pass"
    workers = 4 * pool.cores()
    with Sandbox(small(wall_seconds=0.3), workers=workers) as crowded:
        outcomes = crowded.run([program] * workers)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.PASSED] * workers
    assert max(outcome.wall_seconds for outcome in outcomes) > 0.3  # they were in each other's way


def test_wall_limit_is_reported_as_time_not_as_a_wrong_answer() -> None:
    with Sandbox(small(wall_seconds=0.3), workers=1) as sandbox:
        outcome = sandbox.submit("import threading\nthreading.Event().wait()").result(timeout=PATIENCE)
    assert outcome.verdict is Verdict.TIMED_OUT
    assert outcome.detail.startswith("more than 0.3 seconds, 0.0")


def test_run_keeps_the_order_and_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    class Recorded(pool.Bar):
        def advance(self, amount: float = 1) -> None:
            seen.append(amount)
            super().advance(amount)

    monkeypatch.setattr(pool, "Bar", Recorded)
    programs = [f"import time\ntime.sleep({0.1 if n == 0 else 0})\nraise ValueError({n})" for n in range(6)]
    with Sandbox(small(), workers=3) as sandbox:
        assert [outcome.detail for outcome in sandbox.run(programs)] == [f"ValueError: {n}" for n in range(6)]
        assert seen == []
        assert [outcome.detail for outcome in sandbox.run(programs, "Judging")] == [
            f"ValueError: {n}" for n in range(6)
        ]
        assert seen == [1] * 6
        assert sandbox.run([], "Judging") == []


def test_leaving_kills_what_runs_and_gives_no_verdict() -> None:
    with Sandbox(small(), workers=1) as sandbox:
        running, waiting = (sandbox.submit("import time\ntime.sleep(60)") for _ in range(2))
        while not running.running():
            time.sleep(0.01)
        time.sleep(0.1)
    with pytest.raises(SandboxError, match="closed while the program ran"):
        running.result(timeout=PATIENCE)
    assert waiting.cancelled()


def test_a_killed_evaluation_leaves_nothing_behind() -> None:
    mark = str(7_000_000 + os.getpid())  # another suite may run beside this one
    code = f"""
        from kldistill.evaluation.sandbox import Limits, Sandbox
        sandbox = Sandbox(Limits(output_bytes={mark}), workers=2)
        sandbox.submit("import time\\ntime.sleep(100)")
        sandbox.submit("while True: pass")
        print(flush=True)
        """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    # Of each: bubblewrap, supervisor, perhaps program.
    assert wait_until(lambda: process.poll() is not None or len(processes_with(mark)) >= 2 + 2)
    assert process.poll() is None, "both programs run longer than this takes"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert wait_until(lambda: not processes_with(mark))


def test_a_sandbox_that_does_not_start_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(small(), workers=1) as sandbox:
        monkeypatch.setattr(bubblewrap, "command", lambda limits, inner: ["bwrap", "--no-such-option"])
        with pytest.raises(SandboxError, match=r"did not start: bwrap: Unknown option"):
            sandbox.run(["assert True"])
        monkeypatch.setattr(bubblewrap, "command", lambda limits, inner: ["/no/such/program"])
        with pytest.raises(SandboxError, match="did not start"):
            sandbox.run(["assert True"])
