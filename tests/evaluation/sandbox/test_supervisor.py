"""What the supervisor makes of what it sees, and of what it cannot see, without a sandbox."""

import errno
import os
from typing import Any

import pytest

from kldistill.evaluation.sandbox import supervisor


class Ended:
    """A child that has ended by itself after so many CPU seconds."""

    def __init__(self, seconds: float, status: int = 0):
        self.seconds, self.status = seconds, status

    def spent(self) -> float:
        return self.seconds


def test_what_was_used_after_the_last_look_counts() -> None:
    proof = b"proof"
    within: Any = Ended(0.9)
    assert supervisor.ended(within, proof, 1.0, proof) == ("passed", "")
    for message in (proof, b"failed\tAssertionError", b""):
        beyond: Any = Ended(1.8)
        assert supervisor.ended(beyond, message, 1.0, proof) == ("timed_out", "more than 1 CPU seconds")


def test_a_killed_program_within_its_limit_has_crashed() -> None:
    killed: Any = Ended(0.1, status=9)
    assert supervisor.ended(killed, b"", 1.0, b"proof") == ("crashed", "killed by signal 9")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESRCH])
def test_a_process_that_has_just_ended_is_no_fault(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    assert looked(monkeypatch, number) == 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOMEM])
def test_a_blind_supervisor_gives_no_verdict(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        looked(monkeypatch, number)


def looked(monkeypatch: pytest.MonkeyPatch, number: int) -> int:
    """Threads counted where reading a process's ``stat`` fails with an error of this number."""

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(supervisor, "open", refuse, raising=False)
    return supervisor.Watched(os.getpid(), alone=True).look()
