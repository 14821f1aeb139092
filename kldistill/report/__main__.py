"""``python -m kldistill.report FOLDER...``: pages of runs, tables and pages of sweeps, at any time."""

import argparse
import sys
from pathlib import Path

from kldistill.report import collect, render_run
from kldistill.report.data import RUN, find_runs
from kldistill.runtime.errors import KldistillError
from kldistill.runtime.secrets import shown


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit code: 1 where a folder has no runs, with the reason on standard error."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Write the page of a run (a folder with run.json), or the table and the page of all runs below a "
        "folder: results.csv, results.md, results.json, report.html.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run, or of a sweep")
    parser.add_argument("--factor", default="loss", help="what a sweep's runs are compared by (default: %(default)s)")
    parser.add_argument(
        "--baseline", default="ce", help="the value of the factor to compare with (default: %(default)s)"
    )
    parser.add_argument("--runs", action="store_true", help="of a sweep, make the page of every run too")
    options = parser.parse_args(arguments)
    try:
        for folder in options.folders:
            _report(folder, options)
    except KldistillError as error:
        print(shown(str(error)), file=sys.stderr)
        return 1
    return 0


def _report(folder: Path, options: argparse.Namespace) -> None:
    if (folder / RUN).is_file():
        print(render_run(folder))
        return
    if options.runs:
        for run in find_runs(folder):
            if (run.folder / RUN).is_file():
                print(render_run(run.folder))
    collect(folder, factor=options.factor, baseline=options.baseline)
    print(folder / "report.html")


if __name__ == "__main__":
    sys.exit(main())
