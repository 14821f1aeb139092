"""Small files: what is written is read again, and stands in one place of the code."""

import re
from pathlib import Path

from kldistill.runtime.files import SUMMARY, read_summary, write_summary
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
