"""Small files: what is written is read again, and stands in one place of the code."""

import io
import re
import tarfile
from pathlib import Path

import pytest

from kldistill.runtime.files import SUMMARY, extract, read_summary, write_summary
from tests.helpers.paths import ROOT


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_summary(tmp_path) == {}
    figures = {"tokens/saved": 0.1234567890123456, "model/tied": 1}
    write_summary(tmp_path, figures)
    assert read_summary(tmp_path) == figures


def test_there_is_one_writer_and_one_reader_of_summaries() -> None:
    """Code that names the file itself would be a second one; docstrings may name it."""
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "kldistill").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(rf'"{re.escape(SUMMARY)}"', line)
    }
    assert found == {"kldistill/runtime/files.py"}


def test_an_archive_gives_its_files_and_nothing_elsewhere(tmp_path: Path) -> None:
    def packed(name: str, **kind: object) -> Path:
        with tarfile.open(tmp_path / "some.tar.xz", "w:xz") as archive:
            member = tarfile.TarInfo(name)
            member.size = 0 if kind else 4
            for key, value in kind.items():
                setattr(member, key, value)
            archive.addfile(member, None if kind else io.BytesIO(b"text"))
        return tmp_path / "some.tar.xz"

    folder = tmp_path / "out"
    folder.mkdir()
    with tarfile.open(packed("run/run.json")) as archive:
        extract(archive, folder)
    assert (folder / "run" / "run.json").read_text() == "text"
    with tarfile.open(packed("link", type=tarfile.SYMTYPE, linkname="/etc")) as archive:
        extract(archive, folder)
    assert [path.name for path in folder.iterdir()] == ["run"]
    with tarfile.open(packed("../beside.txt")) as archive, pytest.raises(ValueError, match="would lie outside"):
        extract(archive, folder)
    assert not (tmp_path / "beside.txt").exists()
