"""Digests that are remembered: read once, and read again whenever something has touched the file."""

import hashlib
import os
from pathlib import Path

import pytest

from kldistill.runtime import digests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were really read, with an empty memory of the test's own that takes every file."""
    read: list[Path] = []

    def counting(file: Path) -> str:
        read.append(file)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "sha256", counting)
    monkeypatch.setattr(digests, "LEAST", 1)
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    return read


def test_a_file_is_read_once_until_it_is_touched(reads: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    first = digests.remembered_sha256(file)
    assert first == digests.remembered_sha256(file) == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 1
    # Same size, and the time of the last change set back to what it was: only the system's own time tells.
    times = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.remembered_sha256(file) == hashlib.sha256(b"two").hexdigest()
    assert len(reads) == 2


def test_another_file_at_the_same_path_is_read(reads: list[Path], tmp_path: Path) -> None:
    file, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    digests.remembered_sha256(file)
    other.replace(file)
    assert digests.remembered_sha256(file) == hashlib.sha256(b"two").hexdigest()
    file.write_bytes(b"longer")
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    assert digests.remembered_sha256(link) == digests.remembered_sha256(file) == hashlib.sha256(b"longer").hexdigest()
    assert len(reads) == 3


def test_what_was_changed_a_moment_ago_is_not_remembered(
    reads: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(digests, "SETTLED", 3600.0)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    assert digests.remembered_sha256(file) == digests.remembered_sha256(file)
    assert len(reads) == 2


def test_a_damaged_memory_or_none_at_all_costs_time_and_nothing_else(reads: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    right = digests.remembered_sha256(file)
    (note,) = (tmp_path / "cache").rglob("*.json")
    for damage in ("", "[]", '{"state": 1}'):
        note.write_text(damage)
        assert digests.remembered_sha256(file) == right
    assert len(reads) == 4
    note.unlink()
    note.parent.rmdir()
    note.parent.write_text("a file where the folder should be")
    assert digests.remembered_sha256(file) == right


def test_small_files_are_not_remembered(reads: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(digests, "LEAST", 1000)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(b"small")
    digests.remembered_sha256(file)
    digests.remembered_sha256(file)
    assert len(reads) == 2 and not (tmp_path / "cache").exists()


def test_a_file_that_is_not_there_is_an_error(reads: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digests.remembered_sha256(tmp_path / "none")
