"""Figures are made and described, and their files are blank: for tests that read the page and not the pictures, which
take longer to paint than all else there. Imports nothing of this repository, and matplotlib only where it is asked.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

WISH = {"KLDISTILL_UNPAINTED": "1"}  # in the environment of a fork (see interpreter.py)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="72pt"/>'
# A dot.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a4944415478da63f80f00010101001cb08c990000000049454e44ae426082"
)


@contextmanager
def unpainted() -> Iterator[None]:
    """Here a saved figure leaves a blank picture."""
    with patch("matplotlib.figure.Figure.savefig", blank):
        yield


def for_good() -> None:
    """In this process, if its environment wishes it."""
    if WISH.items() <= os.environ.items():
        patch("matplotlib.figure.Figure.savefig", blank).start()


def blank(figure: Any, target: Any, format: str | None = None, **settings: Any) -> None:
    """The smallest picture of its kind, in a file or at a path."""
    content = {"svg": SVG, "png": PNG}[format or Path(target).suffix[1:]]
    if hasattr(target, "write"):
        target.write(content.decode())
    else:
        Path(target).write_bytes(content)
