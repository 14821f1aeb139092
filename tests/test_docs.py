"""The documents: examples run, and every figure has its entry."""

import doctest
import re
from pathlib import Path

import pytest

from kldistill.training.scoring import FIGURES
from tests.helpers.paths import ROOT

DOCS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
# Blocks marked ``pycon`` are examples that run; a document named here must have that many lines of them.
LEAST = {"method.md": 40, "python.md": 5}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_examples_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert found.failed == 0
    assert found.attempted >= LEAST.get(path.name, 0)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_examples_are_marked(path: Path) -> None:
    """A prompt outside a ``pycon`` block would be run as well, and a block without one would not."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert all((kind == "pycon") == (">>>" in block) for kind, block in blocks)
    assert text.count(">>> ") == sum(block.count(">>> ") for _, block in blocks)


def test_every_figure_has_an_entry() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z0-9_/<>{},]+)`", text))
    names = {f"eval/<model>/<text>/{name}" for name in FIGURES}
    for module in ("tokens/preflight", "model/stage", "rows/stage"):
        source = (ROOT / "kldistill" / f"{module}.py").read_text(encoding="utf-8")
        names |= set(re.findall(r'"((?:tokens|model|init)/[a-z0-9_/]+)":', source))
    assert len(names) > 30
    assert names <= documented


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target
