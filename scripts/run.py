"""``python scripts/run.py``: the same as the command ``kldistill``."""

from kldistill.cli import main

main()
