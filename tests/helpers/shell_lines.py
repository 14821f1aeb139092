"""The shell lines of the documents, and what a real shell makes of them."""

import os
import re
import subprocess
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE

PROGRAMS = ("kldistill", "pip", "python", "accelerate", "wandb", "trackio", "pytest", "pre-commit", "hf", "sudo", "apt")
# Writes what it was called as and with, as the shell has cut it: NUL after each word, a record separator at the end.
STUB = """#!/bin/sh
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\036'; } >> "$RECORD"
"""


def documents() -> list[Path]:
    """Every document that may hold commands."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> list[str]:
    """The blocks of a document that are marked ``sh``."""
    return re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(block: str, shell: str, folder: Path) -> list[list[str]]:
    """The words of every command that ``shell`` starts for a block, run in ``folder`` where stand-ins are."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (folder / ".ci").mkdir(exist_ok=True)
    for file in [*(programs / name for name in PROGRAMS), folder / ".ci" / "run"]:
        file.write_text(STUB)
        file.chmod(0o755)
    record = folder / "record"
    record.unlink(missing_ok=True)
    environment = {"PATH": str(programs), "RECORD": str(record), "HOME": str(folder / "home")}
    flags = ["--noprofile", "--norc"] if shell.endswith("bash") else ["-f"]
    done = subprocess.run(
        [shell, *flags, "-e", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    assert not done.stderr, done.stderr
    records = record.read_bytes().split(b"\x1e")[:-1] if record.is_file() else []
    return [[word.decode() for word in entry.split(b"\0")[:-1]] for entry in records]


def arguments(words: list[str]) -> list[str] | None:
    """The overrides of a command that starts kldistill in whatever way; None for another program."""
    if words[0] == "kldistill":
        return words[1:]
    if words[0] == "accelerate" and "kldistill" in words:
        return words[words.index("kldistill") + 1 :]
    return None


def has_sandbox() -> bool:
    """Whether bubblewrap is here: configurations with generated programs are refused without it."""
    return any((Path(folder) / "bwrap").exists() for folder in os.environ.get("PATH", "").split(os.pathsep))
