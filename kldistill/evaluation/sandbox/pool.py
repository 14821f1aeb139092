"""Judges programs in parallel: threads that each wait for one sandboxed process."""

import contextlib
import functools
import marshal
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Self

from kldistill.evaluation.sandbox import bubblewrap, pool, seccomp
from kldistill.evaluation.sandbox.bubblewrap import program
from kldistill.evaluation.sandbox.limits import Limits, Outcome, SandboxError, Verdict
from kldistill.runtime.config import require
from kldistill.runtime.progress import Bar

PATIENCE = 10  # wall limits until a sandbox that does not answer is given up; the machine may be busy
READY = "ready\n"
# Reads the supervisor's code and the seccomp filter, and hands them the rest, the program.
BOOT = (
    "import marshal,os,sys\n"
    "with open(0,'rb') as f: code,seccomp_filter=marshal.load(f); program=f.read()\n"
    "os.open('/dev/null',os.O_RDWR)\n"  # as standard input, since 0 is free
    "exec(code)\n"
    "main(program,seccomp_filter,*map(float,sys.argv[1:3]),*map(int,sys.argv[3:]))"
)


class Sandbox:
    """Runs programs that nobody has read, each in a sandbox of its own, and says what became of each.

    Args:
        limits: what every program may use.
        workers: programs at a time; ``None`` for one a core.
        allow_unsandboxed: where bubblewrap does not work, run programs as plain processes: same limits, empty
            environment, empty working folder, but as this user, with all files and the network in reach. Dangerous:
            only for a machine that you can throw away.

    Raises:
        SandboxError: bubblewrap does not work here, and ``allow_unsandboxed`` is not set.

    ``with Sandbox(limits) as sandbox: outcomes = sandbox.run(programs, "Judging")``. Leaving it kills what still runs.
    """

    def __init__(self, limits: Limits, *, workers: int | None = None, allow_unsandboxed: bool = False) -> None:
        require(workers is None or workers >= 1, "workers", workers, "must be at least 1, or None for one a core")
        reason = pool.unavailable()
        if reason is not None and not allow_unsandboxed:
            raise SandboxError(
                f"Generated programs need a sandbox: {reason}. Install bubblewrap (apt install bubblewrap) and allow "
                "user namespaces, or, in a machine that you can throw away, set eval.allow_unsandboxed=true."
            )
        self.limits = limits
        self.boxed = reason is None
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.closed = False
        self._pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="sandbox")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, program: str) -> Future[Outcome]:
        """Have ``program`` (Python source) run; its outcome comes later.

        Returns:
            The outcome; or ``SandboxError`` if the sandbox itself did not start, which says nothing about the program.
        """
        return self._pool.submit(judge, program, self.limits, boxed=self.boxed, sandbox=self)

    def run(self, programs: Sequence[str], description: str | None = None) -> list[Outcome]:
        """Outcomes of ``programs``, in their order; with ``description`` under a progress bar."""
        futures = [self.submit(program) for program in programs]
        try:
            if description is None:
                return [future.result() for future in futures]
            with Bar(description, total=len(futures), unit="programs") as bar:
                for future in as_completed(futures):
                    future.result()
                    bar.advance()
            return [future.result() for future in futures]
        finally:  # after an error or Ctrl-C
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Kill what still runs, forget what waits."""
        with self._lock:
            self.closed = True
            for process in self._running:
                if process.returncode is None:
                    kill(process)
        self._pool.shutdown(wait=True, cancel_futures=True)

    @contextlib.contextmanager
    def running(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """While it lasts, ``close`` kills the process."""
        with self._lock:
            self._running.add(process)
            if self.closed:
                kill(process)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)


def judge(program: str, limits: Limits, *, boxed: bool, sandbox: Sandbox | None = None) -> Outcome:
    """Run one program and wait for it; see ``Sandbox``.

    Args:
        boxed: in bubblewrap, or as a plain process.
        sandbox: is told when the process starts and ends.

    Raises:
        SandboxError: the sandbox did not start, or was closed meanwhile.
    """
    source = supervisor(boxed) + program.encode("utf-8", "surrogatepass")
    # A supervisor that ends without a verdict: the program's doing if it happens twice, else somebody else's.
    outcome = attempt(source, limits, boxed, sandbox) or attempt(source, limits, boxed, sandbox)
    return outcome or Outcome(Verdict.CRASHED, 0.0, 0.0, "its supervisor ended without a verdict")


def attempt(source: bytes, limits: Limits, boxed: bool, sandbox: Sandbox | None) -> Outcome | None:
    """Run one program as ``judge`` does, but once; ``None`` if there was no verdict."""
    longest = 60 + PATIENCE * limits.wall_seconds
    with contextlib.ExitStack() as stack:
        try:
            process = start(limits, boxed, stack)
        except OSError as error:  # no memory, no process ids
            raise SandboxError(f"the sandbox did not start: {error}") from None
        if sandbox is not None:
            stack.enter_context(sandbox.running(process))
        try:
            answer, _ = process.communicate(source, longest)
        except subprocess.TimeoutExpired:
            return Outcome(Verdict.TIMED_OUT, 0.0, longest, "the sandbox did not answer in time")
        finally:
            if process.returncode is None or not boxed:  # a plain process may leave others behind
                kill(process)
            process.communicate()
    if sandbox is not None and sandbox.closed:
        raise SandboxError("the sandbox was closed while the program ran")
    return understood(answer.decode("utf-8", "replace"))


def start(limits: Limits, boxed: bool, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """A process that waits for the supervisor's code; its folder, if it needs one, goes with ``stack``."""
    command = [*bubblewrap.python(), "-c", BOOT, *map(str, astuple(limits))]
    environment, folder = bubblewrap.ENVIRONMENT, "/"
    if boxed:
        command = bubblewrap.command(limits, command)
    else:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="kldistill-program-", ignore_cleanup_errors=True)
        )
        environment = {**environment, "TMPDIR": folder}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=folder,
        start_new_session=True,  # Ctrl-C is for the evaluation, which then kills this
    )


def understood(answer: str) -> Outcome | None:
    """The supervisor's answer as an outcome; ``None`` if it started a program, but gave no verdict."""
    if not answer.startswith(READY):
        raise SandboxError(f"the sandbox did not start: {' '.join(answer.split())[-300:] or 'it said nothing'}")
    fields = answer.removeprefix(READY).rstrip("\n").split("\t")
    if len(fields) != 4:
        return None
    return Outcome(Verdict(fields[0]), float(fields[1]), float(fields[2]), fields[3])


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its session; inside bubblewrap everything dies with it."""
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)


@functools.cache
def supervisor(boxed: bool) -> bytes:
    """Code of the supervisor, compiled once for this very interpreter instead of once a program, and its filter."""
    path = Path(__file__).with_name("supervisor.py")
    code = compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    return marshal.dumps((code, seccomp.filter_program(platform.machine()) if boxed else None))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


PROBE = "import ctypes, resource, select, json\nassert json.loads('[1]') == [1]\n"


@functools.cache
def unavailable() -> str | None:
    """Why programs cannot run in bubblewrap here, in one line; ``None`` if they can. Tries it, once a process."""
    from kldistill.evaluation.sandbox.pool import judge  # it needs the command above

    if not sys.platform.startswith("linux"):
        return "bubblewrap needs Linux"
    if not seccomp.machine_is_known():
        return (
            f"there is no filter of system calls for {platform.machine()}, only for {', '.join(seccomp.AUDIT_ARCHES)}"
        )
    if (path := program()) is None:
        return "bubblewrap is not installed"
    if "--size" not in subprocess.run([path, "--help"], capture_output=True, text=True, check=False).stdout:
        return "this bubblewrap is too old, 0.6 or later is needed"
    try:
        outcome = judge(PROBE, Limits(), boxed=True)
    except SandboxError as error:
        return f"the kernel, or the container around this, forbids it: {error}"
    return None if outcome.verdict is Verdict.PASSED else f"Python does not work in it: {outcome.detail}"
