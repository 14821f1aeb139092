"""``python scripts/run.py``: the same as the command ``kldistill``."""

from kldistill.pipeline.cli import main

main()
