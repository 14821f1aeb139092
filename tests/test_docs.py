"""The documents: examples and shell lines run, links lead somewhere, and every figure has its entry."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from kldistill.evaluation.metrics import SAVED, SECONDS, TASK_METRICS, TEXT_METRICS
from kldistill.pipeline import compose
from kldistill.pipeline.checks import check
from tests.helpers import runs, shell_lines
from tests.helpers.paths import ROOT

DOCS = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# Blocks marked ``pycon`` are examples that run; a document named here must have that many lines of them.
LEAST = {"method.md": 40, "python.md": 5}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert found.failed == 0
    assert found.attempted >= LEAST.get(path.name, 0)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_are_marked(path: Path) -> None:
    """A prompt outside a ``pycon`` block would be run as well, and a block without one would not."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert all((kind == "pycon") == (">>>" in block) for kind, block in blocks)
    assert text.count(">>> ") == sum(block.count(">>> ") for _, block in blocks)


def test_every_figure_has_an_entry() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z0-9_/<>{},]+)`", text))
    names = {f"eval/<model>/<text>/{name}" for name in TEXT_METRICS} | {SAVED.name, SECONDS.name}
    names |= {f"eval/<model>/<suite>/{name}" for name in TASK_METRICS}
    for module in ("tokens/preflight", "model/stage", "rows/stage"):
        source = (ROOT / "kldistill" / f"{module}.py").read_text(encoding="utf-8")
        names |= set(re.findall(r'"((?:tokens|model|init)/[a-z0-9_/]+)":', source))
    assert len(names) > 30
    assert names <= documented


def test_the_document_gives_every_metric_of_a_text_the_unit_that_tables_give_it() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `eval/<model>/<text>/(\w+)` \| ([^|]+) \|", text, flags=re.MULTILINE))
    assert {name: rows[name].replace(" / ", "/") for name in TEXT_METRICS} == {
        name: row.unit for name, row in TEXT_METRICS.items()
    }


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def folder_of_a_user(root: Path) -> Path:
    """Where the commands are given: with the files that they name, and a home with a project in it."""
    runs.write_corpus(root / "home" / "src" / "project")
    (root / "terms.txt").write_text("attention_mask\nself.config\n")
    (root / "mbpp.jsonl").write_text("")
    (root / "outputs" / "runs" / "quickstart" / "default" / "wandb" / "offline-run-1").mkdir(parents=True)
    return root


def overrides_of(arguments: list[str]) -> list[str]:
    """The overrides among the arguments, of a sweep the first of every list of values; this machine has no GPU."""
    kept = [compose.with_home(text) for text in arguments if not text.startswith(("-", "runtime.device="))]
    return [re.sub(r"^([^=]*=[^\[\],{]*),.*$", r"\1", text) for text in kept]


@cache
def check_overrides(overrides: tuple[str, ...]) -> None:
    """Compose and check a configuration, each once: documents repeat their commands."""
    cfg = compose.typed(runs.config(overrides))
    if not cfg.eval.suites or shell_lines.has_sandbox():
        check(cfg)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shell_line_means_something(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line goes through a real shell to stand-ins; what reaches kldistill is composed and checked."""
    folder = folder_of_a_user(tmp_path)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    shells = [found for found in (shutil.which("bash"), shutil.which("zsh")) if found]
    for block in shell_lines.blocks(path):
        cut = [shell_lines.commands(block, shell, folder) for shell in shells]
        assert all(words == cut[0] for words in cut), f"shells differ on: {block}"
        assert len(cut[0]) == len(block.strip().splitlines()), block
        for words in cut[0]:
            if words[0] == "python" and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file(), words
            arguments = shell_lines.arguments(words)
            if arguments is None or "--help" in arguments:
                continue
            check_overrides(tuple(overrides_of(arguments)))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_lines_are_marked_and_safe_in_zsh(path: Path) -> None:
    """zsh takes brackets for a pattern and, as people use it, has no comments: no line may need bash."""
    text = path.read_text(encoding="utf-8")
    started = re.compile(r"^    (?:" + "|".join(shell_lines.PROGRAMS) + r"|\.ci/run)(?: |$)", flags=re.MULTILINE)
    assert not started.search(text), "mark shell lines by ```sh, so that they are tested"
    for block in shell_lines.blocks(path):
        for line in block.splitlines():
            bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
            assert not re.search(r"[\[\]?#(){}!]", bare), line
            assert "*" not in bare or line.startswith("wandb sync "), line


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_kldistill_line_runs(path: Path, tmp_path: Path) -> None:
    """The same lines as whole runs of a tiny model, each in a process of its own as a user starts it."""
    folder = folder_of_a_user(tmp_path)
    bash = shutil.which("bash")
    assert bash
    environment = os.environ | {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    ours = ("model", "corpus", "logger", "runtime.device", "hydra/launcher", "hydra.launcher", "export.push_to_hub")
    for block in shell_lines.blocks(path):
        for words in shell_lines.commands(block, bash, folder):
            arguments = shell_lines.arguments(words)
            if arguments is None or any(text.startswith("eval.suites") and "bpp" in text for text in arguments):
                continue  # tests/evaluation has the suites
            own = [text for text in overrides_of(arguments) if not text.startswith(ours)]
            small = [text for text in runs.SMALL if text.split("=")[0] not in {word.split("=")[0] for word in own}]
            project = [f"corpus.path={folder / 'home' / 'src' / 'project'}"]
            steps = ["finetune.steps=1"] if any(text.startswith("finetune=") for text in own) else []
            done = subprocess.run(
                [sys.executable, "-m", "kldistill", *own, *small, *project, *steps, "eval.suites=[]"],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
