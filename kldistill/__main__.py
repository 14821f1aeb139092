"""``python -m kldistill``: the same as the command ``kldistill``."""

from kldistill.cli import main

main()
