"""scripts/results.py: the tables of docs/results are what the committed records give."""

import csv
import json
import math
import re
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from kldistill.evaluation.outcomes import compared
from kldistill.report.data import ReportError, find_runs
from kldistill.report.sweep.archive import PLACE, differences, pack, rebuild, unpacked
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


def test_no_committed_record_says_where_it_was_made() -> None:
    """Placeholders stand for absolute paths, in the archives and beside them."""
    results = ROOT / "docs" / "results"
    archives = sorted(results.glob("*.tar.xz"))
    assert archives
    found: dict[str, list[str]] = {}
    for path in results.iterdir():
        if path not in archives and path.suffix != ".png":
            found[path.name] = PLACE.findall(path.read_text(encoding="utf-8"))
    for path in archives:
        with unpacked(path) as folder:
            for file in folder.rglob("*"):
                if file.is_file():
                    text = file.read_text(encoding="utf-8")
                    found[f"{path.name}/{file.relative_to(folder)}"] = PLACE.findall(text)
    assert len(found) > 50
    assert {name: places for name, places in found.items() if places} == {}


def test_what_is_packed_says_nowhere_where_it_was_made(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"ce": 0.0, "kl": 0.02}, seeds=1, inits=1)
    before = gather(find_runs(sweep), sweep, "loss", "ce")
    place = "/home/someone/data"
    for file in sweep.rglob("run.json"):
        record = json.loads(file.read_text())
        record["config"]["corpus"] = {"path": place, "glob": "**/*.py", "url": "https://example.org/a/b"}
        record["error"] = f"ConfigError: {place}/x.txt: it\n{place}/y.txt is not there"
        record["about"] = {"rate": "nats/position", "program": f"file://{place}"}
        file.write_text(json.dumps(record))
        (file.parent / ".hydra" / "config.yaml").write_text(
            f"corpus:\n  path: {place}\n  list: [{place}/a,{place}/b]\n"
        )
        overrides = json.loads((file.parent / ".hydra" / "overrides.yaml").read_text())
        (file.parent / ".hydra" / "overrides.yaml").write_text(json.dumps([*overrides, f"outputs={place}"]))
        node = yaml.safe_load((file.parent / ".hydra" / "hydra.yaml").read_text())
        node["hydra"]["runtime"] |= {"cwd": place, "output_dir": f"{place}/outputs"}
        (file.parent / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(node))
    pack(sweep, tmp_path / "some.tar.xz")
    with unpacked(tmp_path / "some.tar.xz") as folder:
        texts = {file.name: file.read_text() for file in folder.rglob("*") if file.is_file()}
        assert all("someone" not in text and not PLACE.findall(text) for text in texts.values())
        record = json.loads(texts["run.json"])
        corpus = record["config"]["corpus"]
        assert corpus == {"path": "<path>/data", "glob": "**/*.py", "url": "https://example.org/a/b"}
        assert record["error"] == "ConfigError: <path>/x.txt: it\n<path>/y.txt is not there"
        assert record["about"] == {"rate": "nats/position", "program": "file://<path>/data"}
        assert yaml.safe_load(texts["config.yaml"])["corpus"]["list"] == ["<path>/a", "<path>/b"]
        after = gather(find_runs(folder), folder, "loss", "ce")
    assert after["means"] == before["means"] and after["differences"] == before["differences"]
    assert after["factors"] == before["factors"]


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


def test_every_difference_that_the_documents_tell_is_one_of_the_records() -> None:
    """An interval of a difference in README or docs/results/quickstart.md stands in differences.md, or in the table of
    canonical solutions, which a test of its own recomputes.
    """
    rows = (ROOT / "docs/results/differences.md").read_text(encoding="utf-8").splitlines()
    ends = [tuple(float(end) for end in re.findall(r"[-+][\d.]+", row.split("|")[4])) for row in rows if "| [" in row]
    per_cent = [
        tuple(float(end) for end in re.findall(r"([-+][\d.]+) pp", row)[-2:])
        for row in rows
        if " pp" in row and "| [" in row  # where no answer differs, there is no interval
    ]
    known = {f"{low:.3f}, {high:.3f}" for low, high in ends}
    known |= {f"{low / 100:.3f}, {high / 100:.3f}" for low, high in per_cent}
    known |= {f"{low:.1f}, {high:.1f}" for low, high in per_cent}
    said = []
    for name in ("README.md", "docs/results/quickstart.md"):
        text = (ROOT / name).read_text(encoding="utf-8").partition("## Canonical solutions")
        for part in (text[0], text[2].partition("## Then a fine-tuning")[2]):
            said += re.findall(r"[-+]\d\.\d+(?: [a-z/]+)? \[(-?\d+\.\d+,\s-?\d+\.\d+)\]", part)
    said = [re.sub(r"\s", " ", interval) for interval in said]
    assert len(said) > 15
    solutions = {"-0.008, 0.001", "-0.011, -0.004"}
    zero = {interval.replace("-0.000", "0.000") for interval in known} | known | solutions
    assert [interval for interval in said if interval not in zero] == []


def test_a_difference_of_models_that_are_not_there_is_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_sweep(runs, {"ce": 0.0}, seeds=1, inits=1)
    pack(runs, tmp_path / "mine.tar.xz")
    names = sorted(run.below(runs) for run in find_runs(runs))
    ours = {"archive": "mine", "run": names[0], "model": "distilled"}

    def asked(theirs: dict[str, str]) -> Path:
        (tmp_path / "differences.yaml").write_text(yaml.safe_dump([{"name": "a", "ours": ours, "theirs": theirs}]))
        return tmp_path / "differences.yaml"

    with pytest.raises(ReportError, match=r"no archive other\.tar\.xz"):
        differences(asked(ours | {"archive": "other"}))
    with pytest.raises(ReportError, match="has no run 'nowhere'"):
        differences(asked(ours | {"run": "nowhere"}))
    with pytest.raises(ReportError, match="no records of the same"):
        differences(asked(ours | {"model": "finetuned"}))


def test_a_difference_of_several_seeds_is_that_of_the_sweeps_own_table(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path / "runs", {"ce": 0.0, "kl": 0.02}, seeds=3, inits=1)
    pack(runs, tmp_path / "mine.tar.xz")
    names = sorted(run.below(runs) for run in find_runs(runs))

    def shown(ours: list[str], theirs: list[str] | str) -> list[list[str]]:
        sides = {
            side: {"archive": "mine", "run": of, "model": "distilled"}
            for side, of in zip(("ours", "theirs"), (ours, theirs), strict=True)
        }
        (tmp_path / "differences.yaml").write_text(yaml.safe_dump([{"name": "a", **sides}]))
        page = differences(tmp_path / "differences.yaml")["differences.md"]
        return [row for line in page.splitlines() if (row := [cell.strip() for cell in line.split("|")])[1:2] == ["a"]]

    kl, ce = ([name for name in names if f"loss={loss}" in name] for loss in ("kl", "ce"))
    assert len(kl) == len(ce) == 3
    (entry,) = (
        entry
        for entry in gather(find_runs(runs), runs, "loss", "ce")["differences"]
        if entry["metric"] == "eval/domain/bits_per_byte" and entry["value"] == "kl"
    )
    (row,) = (row for row in shown(kl, ce) if row[2] == "Bits per byte, domain")
    ends = f"[{entry['low']:+.3f}, {entry['high']:+.3f}]"
    assert row[3:7] == [f"{entry['difference']:+.3f}", ends, str(entry["documents"]), "3"]
    alone = [float(shown([name], ce[0])[0][3]) for name in kl]  # one run stands beside all of the other side's
    assert float(shown(kl, ce[0])[0][3]) == pytest.approx(statistics.mean(alone), abs=2e-3)
    with pytest.raises(ReportError, match="one side has 3 runs, the other 2"):
        shown(kl, ce[:2])


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
