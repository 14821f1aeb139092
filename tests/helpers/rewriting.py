"""The assertions of test files, rewritten once: each worker would do it for itself, at the same time as the others."""

import sys

import pytest
from _pytest.assertion import rewrite

from tests.helpers import interpreter
from tests.helpers.paths import ROOT


def rewrite_all(config: pytest.Config) -> None:
    """Leave what pytest makes of every test file where the forks that are workers look for it."""
    state = config.stash[rewrite.assertstate_key]
    usual, sys.pycache_prefix = sys.pycache_prefix, interpreter.bytecode()
    try:
        for path in (ROOT / "tests").rglob("test_*.py"):
            folder = rewrite.get_cache_dir(path)
            kept = folder / (path.stem + rewrite.PYC_TAIL)
            if rewrite.try_makedirs(folder) and rewrite._read_pyc(path, kept, state.trace) is None:
                origin, code = rewrite._rewrite_test(path, config)
                rewrite._write_pyc(state, code, origin, kept)
    finally:
        sys.pycache_prefix = usual
