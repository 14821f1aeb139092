"""Work in forks of a process that has its imports behind it: for drivers, which have trained nothing themselves."""

import gc
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import kldistill
from kldistill.pipeline import compose


def warm() -> None:
    """Do once what every run would do for itself: import all of the package, and compose its defaults."""
    for module in pkgutil.walk_packages(kldistill.__path__, "kldistill."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    compose.defaults()
    gc.collect()
    gc.freeze()  # or each fork would go through all of it again, and so copy the memory that it shares


def forked(work: Callable[[], object], log: Path | None = None) -> int:
    """Start ``work`` in a child process; its pid. The child ends with 0, or with 1 after an exception that it prints.

    Args:
        log: gets all that the child says, at its end; None leaves it where this process writes.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if log is not None:
            said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
