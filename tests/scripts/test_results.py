"""scripts/results.py: the tables of docs/results are what the committed records give."""

import csv
import json
import math
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kldistill.evaluation.outcomes import compared
from kldistill.report.data import find_runs
from kldistill.report.sweep.archive import pack, rebuild
from kldistill.report.sweep.collect import gather
from kldistill.report.sweep.formats import as_csv
from tests.helpers import scripts
from tests.helpers.paths import ROOT
from tests.helpers.report_material import write_sweep


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return scripts.script("results")


def test_every_committed_table_is_rebuilt_byte_for_byte(script: ModuleType, capsys: pytest.CaptureFixture) -> None:
    tables = sorted(path.name for path in (ROOT / "docs" / "results").glob("*.md"))
    assert {"kl_vs_ce.md", "kl_vs_ce_finetune.md"} <= set(tables)
    assert script.main(["--check"]) == 0, capsys.readouterr().out


def test_the_figures_of_canonical_solutions_are_those_of_their_records() -> None:
    records: dict[str, list[dict[str, Any]]] = {}
    for line in (ROOT / "docs/results/solutions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        records.setdefault(record["model"], []).append(record | {"sample": 0, "group": ""})
    page = (ROOT / "docs/results/quickstart.md").read_text(encoding="utf-8")
    for model, own in records.items():
        bits = statistics.mean(record["nats"] / math.log(2) / record["bytes"] for record in own)
        tokens = statistics.mean(record["tokens"] for record in own)
        difference = compared("solution", own, records["original"])
        value, *ends = (difference[f"bits_per_byte/minus_original{end}"] for end in ("", "/low", "/high"))
        said = "" if model == "original" else f"{value:+.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
        assert f"| {model} | {bits:.3f} | {said}{' ' if said else ''}| {tokens:.1f} |" in page


def test_means_of_the_grid_are_those_of_its_rows() -> None:
    """Of one cell by hand, so that the table is not merely the same as itself."""
    rows = csv.DictReader((ROOT / "docs/results/kl_vs_ce.csv").read_text(encoding="utf-8").splitlines())
    own = [float(row["eval/domain/bits_per_byte"]) for row in rows if (row["init"], row["loss"]) == ("mean", "kl")]
    (line,) = (
        line
        for line in (ROOT / "docs/results/kl_vs_ce.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| mean | kl | 3 |")
    )
    assert f"{sum(own) / 3:.3f} [" in line


def test_a_sweep_is_packed_and_its_tables_come_back(script: ModuleType, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "grid", {"ce": 0.0, "kl": 0.02}, inits=2)
    table = gather(find_runs(sweep), sweep, "loss", "ce")
    results = tmp_path / "results"
    results.mkdir()
    assert script.main(["--check", "--pack", str(sweep), "grid"], results) == 1, "its tables are not there yet"
    assert script.main([], results) == 0 and script.main(["--check"], results) == 0
    assert (results / "grid.csv").read_text() == as_csv(table)
    text = (results / "grid.md").read_text()
    assert "| mean | kl | Bits per byte, domain | +0.020 |" in text and "| 3 | 10 |" in text, "documents are kept"
    again = tmp_path / "again.tar.xz"
    pack(sweep, again)
    assert again.read_bytes() == (results / "grid.tar.xz").read_bytes()
    (results / "grid.md").write_text(text.replace("+0.020", "+0.021", 1))
    assert script.main(["--check"], results) == 1, "a table that was edited by hand is found"


def test_without_records_of_documents_there_is_no_verdict(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "grid", {"ce": 0.0, "kl": 0.02}, inits=2)
    table = gather(find_runs(sweep), sweep, "loss", "ce")
    (tmp_path / "only.csv").write_text(as_csv(table), encoding="utf-8")
    text = rebuild(tmp_path / "only.csv")["only.md"]
    assert "| mean | kl | Bits per byte, domain | +0.020 | – | 3 | – | – | no records |" in text
    assert "better |" not in text and "worse |" not in text
