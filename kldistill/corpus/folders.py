"""The files below a folder that its user wrote. What programs put beside them is known by the folder it lies in."""

import logging
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kldistill.runtime.errors import CorpusError
from kldistill.runtime.own import is_own

log = logging.getLogger(__name__)

# Folders by their names: kldistill's own results, other people's code, and what is made from the sources.
_DEPENDENCIES = ("node_modules", "bower_components", "vendor", "third_party", "site-packages", "Pods")
_BUILD = ("build", "_build", "dist", "CMakeFiles")
OF_PROGRAMS = {"outputs": "outputs"} | dict.fromkeys(_DEPENDENCIES, "dependencies") | dict.fromkeys(_BUILD, "build")
# Folders by a file in them. The tag (https://bford.info/cachedir) is in Cargo's target/ and in many caches.
MARKS = {"pyvenv.cfg": "virtual_environment", "CACHEDIR.TAG": "build"}
# Files of rows, by how they end, with the name of their format in ``datasets``.
_ROWS = {".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".arrow": "arrow"}
_BRACES = re.compile(r"\{([^{}]*)\}")


def expanded(path: str, key: str) -> Path:
    """A path with ``~`` expanded. Raises ``CorpusError``, which names the ``key``, for a user that does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nouser
        raise CorpusError(f"{key}={path!r}: {error} Write the path out.") from error


def existing(path: str) -> Path:
    """``corpus.path`` as a folder or a file. Raises ``CorpusError`` if there is none."""
    root = expanded(path, "corpus.path")
    if not (root.is_dir() or root.is_file()):
        raise CorpusError(f"corpus.path={path!r}: there is no such folder or file (looked for {root.absolute()}).")
    return root


def as_dataset(files: Sequence[Path]) -> str:
    """How to say that a column of these files is the text, if they are of rows: the formats that ``datasets`` reads."""
    for file in files:
        suffix = next((suffix for suffix in _ROWS if file.name.endswith((suffix, f"{suffix}.gz"))), None)
        if suffix is not None:
            of_rows = f"corpus=hf_dataset corpus.path={_ROWS[suffix]} 'corpus.data_files=[\"{file.absolute()}\"]'"
            return f"{of_rows} corpus.text_field=COLUMN"
    return ""


def patterns_of(glob: str) -> list[str]:
    """A pattern with braces as several without: ``*.{py,md}`` is ``*.py`` and ``*.md``."""
    match = _BRACES.search(glob)
    if match is None:
        return [glob]
    start, end = glob[: match.start()], glob[match.end() :]
    return [pattern for part in match[1].split(",") for pattern in patterns_of(start + part + end)]


def name_of(path: Path) -> str:
    """A relative path as a document's name; bytes that are not UTF-8, as file systems allow them, are spelt out."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def files_below(root: Path, glob: str) -> Iterator[tuple[str, Path, str]]:
    """All files that match a pattern, sorted by path: the name, the path, and why the file is left out.

    The reason is empty for files that their user wrote. Hidden files and folders (``.git``, ``.venv``) are not given.

    Raises:
        CorpusError: ``glob`` is not a pattern.
    """
    try:
        matches = {match for pattern in patterns_of(glob) for match in root.glob(pattern) if match.is_file()}
    except (ValueError, NotImplementedError) as error:
        raise CorpusError(f"corpus.glob={glob!r}: {error}; give a pattern such as '**/*.py'.") from None
    ignored = ignored_by_git(root, {folder for match in matches for folder in match.relative_to(root).parents[:-1]})
    marked: dict[Path, str] = {}
    for match in sorted(matches):
        relative = match.relative_to(root)
        if any(part.startswith(".") for part in relative.parts):
            continue
        folders = list(relative.parents)[:-1]
        reason = next((OF_PROGRAMS[folder.name] for folder in folders if folder.name in OF_PROGRAMS), "")
        for folder in folders:
            if folder not in marked:
                there = (MARKS[name] for name in MARKS if (root / folder / name).is_file())
                marked[folder] = "outputs" if is_own(root / folder) else next(there, "")
            reason = reason or marked[folder]
        if not reason and any(path in ignored for path in (relative, *folders)):
            reason = "git_ignored"
        yield name_of(relative), match, reason


def without_match(root: Path, glob: str) -> str:
    """What to tell of a pattern that no file of the user's matches: what is left out, and which files there are."""
    left_out = [reason for _, _, reason in files_below(root, glob)]
    if left_out:
        return f" ({len(left_out):,} match, all in folders that programs write: {', '.join(sorted(set(left_out)))})."
    own = [path for _, path, reason in files_below(root, "**/*") if not reason]
    counts = Counter(path.suffix for path in own if path.suffix)
    if not counts:
        return f"; there are {len(own):,} files, none with a suffix." if own else "; there are no files at all."
    common = counts.most_common(5)
    most = ", ".join(f"{suffix} ({number:,})" for suffix, number in common)
    return (
        f". Most files end in {most}. Say which you want, as in 'corpus.glob=\"**/*{common[0][0]}\"' or, for several, "
        "'corpus.glob=\"**/*.{md,rst}\"'."
    )


def ignored_by_git(root: Path, folders: Iterable[Path]) -> set[Path]:
    """Files and folders below ``root`` that git ignores, relative to ``root``; none outside of a repository.

    Args:
        folders: below ``root``, relative to it. Those that are repositories of their own are asked as well: the one
            around them knows nothing of their files.
    """
    real = root.resolve()  # a link into a repository is in it
    around = any((folder / ".git").exists() for folder in (real, *real.parents))
    tops = [*([Path()] if around else []), *(folder for folder in sorted(folders) if (real / folder / ".git").exists())]
    git = shutil.which("git")
    if tops and git is None:
        log.warning("git is not installed, so files that %s lists in .gitignore are not left out.", root)
    return {top / path for top in tops for path in (_ignored_in(real / top, git) if git else [])}


def _ignored_in(folder: Path, git: str) -> list[Path]:
    """What the repository that a folder lies in ignores below the folder, relative to it."""
    # A repository's own configuration can name programs to run; this one may be anybody's.
    safe = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    asked = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    done = subprocess.run([git, *safe, "-C", str(folder), *asked], capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        log.warning("git does not say what is ignored in %s (%s); nothing is left out for that.", folder, said)
        return []
    return [Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name]
