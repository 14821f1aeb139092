"""The documents: examples run, and every figure has its entry."""

import doctest
import re
from pathlib import Path

import pytest

from kldistill.scoring import FIGURES

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_examples_run(path: Path) -> None:
    found = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert found.failed == 0
    assert found.attempted > 20 or path.name != "method.md"


def test_every_figure_has_an_entry() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z0-9_/<>{},]+)`", text))
    names = {f"eval/<model>/<text>/{name}" for name in FIGURES}
    for module in ("preflight", "models", "init"):
        source = (ROOT / "kldistill" / f"{module}.py").read_text(encoding="utf-8")
        names |= set(re.findall(r'"((?:tokens|model|init)/[a-z0-9_/]+)":', source))
    assert len(names) > 30
    assert names <= documented


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target
