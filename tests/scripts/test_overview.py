"""The README's picture can be drawn from what is committed, and knows every loss and start of the grid."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


def test_the_picture_is_drawn_from_committed_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["overview.py", "--out", str(tmp_path / "overview.png")])
    runpy.run_path(str(ROOT / "scripts" / "overview.py"), run_name="__main__")
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert "docs/results/overview.png" in (ROOT / "README.md").read_text(encoding="utf-8")
