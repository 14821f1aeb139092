"""Results that are kept in the repository, and the tables that are rebuilt from them.

``NAME.tar.xz`` holds of every run of a sweep what its tables need: ``run.json``, Hydra's record, and the records of the
evaluations, one line a text or task. ``NAME.csv`` alone (a row a run) is what is left of sweeps whose records are gone:
their differences have no documents, and so no verdict. Nothing that is kept says where on a machine it was made.
"""

import csv
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from kldistill.report.data import RUN, ReportError, Run, find_runs
from kldistill.report.sweep.collect import gather
from kldistill.report.sweep.formats import as_csv, as_markdown
from kldistill.report.sweep.pairs import page
from kldistill.runtime.files import SUMMARY, extract

ARCHIVE = ".tar.xz"
_KEPT = ("records.jsonl", SUMMARY)
_DROPPED = ("completion", "prompt_sha256", "detail")  # of a record: the tables need none of them

# An absolute path in a text, in JSON or in YAML, but not the rest of a relative one, of an address or of a fraction. It
# begins with a character, which is found in a tenth of the time that looking at what is before each takes.
PLACE = re.compile(r"""/(?:(?<=\\n/)|(?<=file:///)|(?<![\w.:/<>*}|)~-]/))[A-Za-z_][^\s"'\\,;:()\[\]{}<>|]*""")


def pack(folder: Path, path: Path) -> None:
    """Write the archive of a sweep's runs. The same runs always give the same bytes, wherever they were made: absolute
    paths become ``<path>/`` and their last part.

    Args:
        folder: the sweep's folder, such as ``outputs/runs/kl_vs_ce``.
        path: where the archive is written, ``NAME.tar.xz``.

    Raises:
        ReportError: there is no run below ``folder``.
    """
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for run in find_runs(folder):
            name = run.below(folder)
            files = {path.relative_to(run.folder): path for path in (run.folder / ".hydra").glob("*.yaml")}
            if (run.folder / RUN).is_file():
                record = json.loads((run.folder / RUN).read_text(encoding="utf-8"))
                for step, artifact in run.artifacts.items():
                    kept = [artifact / file for file in _KEPT if (artifact / file).is_file()]
                    files |= {Path("artifacts", step, file.name): file for file in kept}
                    record["artifacts"][step] = f"artifacts/{step}"
                _add(archive, f"{name}/{RUN}", json.dumps(record, sort_keys=True))
            for where, file in sorted(files.items()):
                text = file.read_text(encoding="utf-8")
                _add(archive, f"{name}/{where.as_posix()}", kept_of(file.name, text))


def rebuild(path: Path, *, factor: str = "loss", baseline: str = "ce") -> dict[str, str]:
    """The tables of one archive or CSV file, by file name: ``NAME.md``, and of an archive ``NAME.csv`` too.

    Args:
        path: ``NAME.tar.xz`` or ``NAME.csv``.
        factor, baseline: see ``collect``.

    Raises:
        ReportError: the file has no run in it.
    """
    if path.suffix == ".csv":
        runs = from_csv(path)
        if not runs:
            raise ReportError(f"{path}: no run in it. It needs a row for each.")
        table = gather(runs, path.parent / path.stem, factor, baseline)
        note = "which keeps no records of single documents, so no difference gets a verdict"
        return {f"{path.stem}.md": _page(table, path.name, note)}
    name = path.name.removesuffix(ARCHIVE)
    with unpacked(path) as folder:
        table = gather(find_runs(folder), folder, factor, baseline)
    note = "which holds the record of every text and task"
    return {f"{name}.csv": as_csv(table), f"{name}.md": _page(table, path.name, note)}


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with the runs of an archive, as long as the context lasts."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / path.name.removesuffix(ARCHIVE)
        with tarfile.open(path) as archive:
            extract(archive, folder)
        yield folder


def differences(pairs: Path) -> dict[str, str]:
    """The page of the differences that a file lists, by file name (see ``kldistill.report.sweep.pairs``); its archives
    are beside it.

    Raises:
        ReportError: an entry names an archive, a run or a model that is not there.
    """
    with ExitStack() as stack:

        @cache
        def runs_of(archive: str) -> dict[str, Run]:
            path = pairs.parent / f"{archive}{ARCHIVE}"
            if not path.is_file():
                raise ReportError(f"{pairs}: there is no archive {path.name} beside it.")
            folder = stack.enter_context(unpacked(path))
            return {run.below(folder): run for run in find_runs(folder)}

        return {f"{pairs.stem}.md": page(pairs, runs_of)}


def from_csv(path: Path) -> list[Run]:
    """The runs of a sweep as its ``results.csv`` tells of them."""
    text = path.read_text(encoding="utf-8")
    columns = next(csv.reader(io.StringIO(text)))
    factors = columns[: columns.index("status")]
    metrics = columns[columns.index("model") + 1 : columns.index("run")]
    runs = []
    for row in csv.DictReader(io.StringIO(text)):
        own = {name: row[name] for name in factors}
        start = f"eval/{row['model']}/"
        values = {
            name.replace("eval/", start, 1) if name.startswith("eval/") else name: float(row[name])
            for name in metrics
            if row[name]
        }
        overrides = [f"{key}={value}" for key, value in own.items()]
        folder = path.parent / path.stem / row["run"]
        runs.append(Run(folder, row["status"], metrics=values, error=row["error"], overrides=overrides, choices=own))
    return runs


def _page(table: Mapping[str, Any], source: str, note: str) -> str:
    return f"Rebuilt by `python scripts/results.py` from `{source}`, {note}.\n\n{as_markdown(table)}"


def kept_of(name: str, text: str) -> str:
    """What is kept of a file of a run, by the file's name."""
    if name == "records.jsonl":
        return _short(text)
    if name == "hydra.yaml":  # of Hydra's own settings, which presets were taken
        choices = OmegaConf.select(OmegaConf.create(text), "hydra.runtime.choices")
        return OmegaConf.to_yaml(OmegaConf.create({"hydra": {"runtime": {"choices": choices or {}}}}))
    return text


def nowhere(text: str) -> str:
    """The text with absolute paths shortened to their last part."""
    return PLACE.sub(lambda found: f"<path>/{found[0].rstrip('/').rpartition('/')[2]}", text)


def _short(records: str) -> str:
    """Records without what no table needs."""
    lines = [json.loads(line) for line in records.splitlines()]
    return "".join(json.dumps({k: v for k, v in line.items() if k not in _DROPPED}) + "\n" for line in lines)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = nowhere(text).encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
