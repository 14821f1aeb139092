"""Runs programs that are trusted: published solutions, and mutants of them. No sandbox, so nothing a model wrote."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.helpers.patience import PATIENCE

# Of processor time: a busy machine must not fail a program.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
exec(sys.argv[1], {"__name__": "__main__"})
"""


def passes(programs: Sequence[str], seconds: int = 20) -> list[bool]:
    """For each program whether it runs to its end, within some seconds of processor time."""

    def run(program: str) -> bool:
        command = [sys.executable, "-I", "-S", "-c", LIMITED, program, str(seconds)]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE, cwd=folder, stdin=subprocess.DEVNULL)
        return done.returncode == 0

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, programs))
