"""Rebuilds the tables of docs/results from the records that are committed there: python scripts/results.py [--check]

With --pack FOLDER NAME, it first puts the records of a sweep's runs there, as docs/results/NAME.tar.xz.
"""

import argparse
import sys
from pathlib import Path

from kldistill.report.sweep.archive import ARCHIVE, differences, pack, rebuild
from kldistill.runtime.errors import KldistillError

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PAIRS = "differences.yaml"  # which models are compared with which


def main(arguments: list[str] | None = None, results: Path = RESULTS) -> int:
    """The command. Returns its exit code: 1 where --check finds a table that is not what its records give."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; name the tables that would change")
    parser.add_argument("--pack", nargs=2, metavar=("FOLDER", "NAME"), help="keep the records of a sweep's runs first")
    given = parser.parse_args(arguments)
    stale = []
    try:
        if given.pack:
            pack(Path(given.pack[0]), results / f"{given.pack[1]}{ARCHIVE}")
        archives = sorted(results.glob(f"*{ARCHIVE}"))
        packed = {path.name.removesuffix(ARCHIVE) for path in archives}
        tables = [*archives, *(path for path in sorted(results.glob("*.csv")) if path.stem not in packed)]
        for path in [*tables, *results.glob(PAIRS)]:
            made = differences(path) if path.name == PAIRS else rebuild(path)
            for name, text in made.items():
                target = results / name
                if not target.is_file() or target.read_text(encoding="utf-8") != text:
                    stale.append(name)
                    if not given.check:
                        target.write_text(text, encoding="utf-8")
    except KldistillError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'Not what their records give' if given.check else 'Rewritten'}: {', '.join(stale) or 'none'}")
    return int(given.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
