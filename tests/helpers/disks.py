"""Small disks of their own, mounted for a test."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT_ON_LINUX = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs Linux and root"
)


class Disk:
    """A small disk, which can grow and be made read-only."""

    def __init__(self, folder: Path, kib: int) -> None:
        self.folder, self.kib = folder, kib
        folder.mkdir()
        done = self._mount("-t", "tmpfs", "-o", f"size={self.kib}k", "tmpfs")
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr}")

    def _mount(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *arguments, str(self.folder)], capture_output=True, text=True)

    def grow(self, kib: int) -> None:
        self.kib += kib
        assert self._mount("-o", f"remount,size={self.kib}k").returncode == 0

    def read_only(self, yes: bool) -> None:
        assert self._mount("-o", "remount,ro" if yes else "remount,rw").returncode == 0


@contextmanager
def small_disk(folder: Path, kib: int = 64) -> Iterator[Disk]:
    """A disk of so many KiB in a new folder; gone afterwards."""
    made = Disk(folder, kib)
    try:
        yield made
    finally:
        # Lazily: a file of a run that has failed may still be mapped into memory.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
