"""Runs programs that are trusted: published solutions, and mutants of them. No sandbox, so nothing a model wrote."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor


def passes(programs: Sequence[str], seconds: float = 20) -> list[bool]:
    """For each program whether it runs to its end."""

    def run(program: str) -> bool:
        command = [sys.executable, "-I", "-c", program]
        with tempfile.TemporaryDirectory() as folder:
            try:
                return subprocess.run(command, capture_output=True, timeout=seconds, cwd=folder).returncode == 0
            except subprocess.TimeoutExpired:
                return False

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, programs))
