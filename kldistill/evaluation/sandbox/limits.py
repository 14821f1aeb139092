"""What a program may use, and what became of it."""

from dataclasses import dataclass
from enum import StrEnum

from kldistill.runtime.config import require
from kldistill.runtime.errors import ConfigError


class SandboxError(ConfigError):
    """There is no sandbox here, or it broke down: no verdict on any program."""


class Verdict(StrEnum):
    """What became of a program.

    Attributes:
        PASSED: it ran to its end, all its assertions included.
        FAILED: it does not compile, an exception (of whatever kind) reached its top, or it ended before its last line
            (``sys.exit(0)``, ``os._exit(0)``).
        TIMED_OUT: it used up its CPU or wall seconds.
        CRASHED: a signal killed it, it wanted too much memory, or it wrote too much output.
        BLOCKED: the sandbox denied it something (network, files, disk space, processes), and that was its end. A
            program that catches the error and goes on is judged by its end like any other.
    """

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    BLOCKED = "blocked"


@dataclass
class Limits:
    """Limits of one program.

    Attributes:
        cpu_seconds: seconds of all its threads, user and system. This limit decides, as a busy machine does not change
            what a program uses of it.
        wall_seconds: seconds of the clock, less what the program waited for a core; for programs that wait for
            something else. Keep it far above ``cpu_seconds``.
        memory_bytes: bytes of its address space.
        processes: its threads at a time, the main one included. It cannot start processes, except without a sandbox,
            where all of them count and each has the memory.
        file_bytes: bytes of one file, of everything in ``/tmp``, and of everything in ``/dev/shm``.
        output_bytes: bytes on standard output and standard error together.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 120.0
    memory_bytes: int = 1 << 30
    processes: int = 32
    file_bytes: int = 16 << 20
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for key in ("cpu_seconds", "wall_seconds"):
            require(getattr(self, key) > 0, f"eval.limits.{key}", getattr(self, key), "must be above 0")
        rule = "must be at least 67108864 (64 MiB); Python itself needs half of that"
        require(self.memory_bytes >= 1 << 26, "eval.limits.memory_bytes", self.memory_bytes, rule)
        rule = "must be at least 4096, one page"
        require(self.file_bytes >= 4096, "eval.limits.file_bytes", self.file_bytes, rule)
        for key in ("processes", "output_bytes"):
            require(getattr(self, key) >= 1, f"eval.limits.{key}", getattr(self, key), "must be at least 1")


@dataclass
class Outcome:
    """What became of one program.

    Attributes:
        verdict: what became of it, in one word.
        cpu_seconds: seconds of it and its children, user and system.
        wall_seconds: seconds from its first line to its end, without the start of the sandbox.
        detail: one short line, such as ``AssertionError: 3 is not 4``; empty if it passed.
    """

    verdict: Verdict
    cpu_seconds: float
    wall_seconds: float
    detail: str = ""
