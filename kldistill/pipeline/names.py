"""Names of run folders: an experiment's, and in it each run's by its overrides, so that the same command finds it."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from kldistill.runtime.secrets import redact

# Overrides that say how or where to run, not what: they do not enter the name of a run's folder.
_NOT_IN_NAME = ("experiment=", "stages=", "force=", "objective=", "logger", "runtime.", "outputs=", "hydra")
_LONGEST = 120
_DIGEST = 8


def experiment_name(choice: str | None) -> str:
    """Folder of a run's or a sweep's experiment; ``default`` where none was chosen."""
    return _escape(choice) if choice else "default"


def overrides_name(overrides: Sequence[str], parent: str | None = None) -> str:
    """Folder of one run inside its experiment: its overrides, sorted, escaped and bounded; ``default`` for none.

    Deterministic, so that the same command resumes. A path stands there with its last part, and where all would be too
    long, keys with theirs and values with their beginnings. Such a name, or one that lost characters to the escaping,
    ends with a digest, so runs of different things never share a folder. Nothing secret enters it.

    Args:
        parent: the experiment's folder. Where it holds the run under the name that earlier versions gave it, that is
            the name.
    """
    kept = sorted(redact(text) for text in overrides if not text.lstrip("+~").startswith(_NOT_IN_NAME))
    if not kept:
        return "default"
    plain = ",".join(kept)
    name = _escape(plain)
    if name == plain and len(name) <= _LONGEST:
        return name
    digest = f"-{hashlib.sha256(plain.encode()).hexdigest()[:_DIGEST]}"
    room = _LONGEST - len(digest)
    earlier = name[:room] + digest
    if parent is not None and (Path(parent) / earlier).is_dir():
        return earlier
    whole = [(key, _last_parts(value)) for key, _, value in (text.partition("=") for text in kept)]
    brief = [(key.rpartition(".")[2], value) for key, value in whole]
    for pairs, most in ((whole, None), (whole, 32), (brief, 32), (brief, 12)):
        name = _escape(",".join(f"{key}={value[:most]}" if value else key for key, value in pairs))
        if len(name) <= room:
            break
    return name[:room] + digest


def _last_parts(value: str) -> str:
    """A value in which the last part stands for each path, the name of a model on the hub included."""
    return ",".join(PurePath(part).name or part for part in re.sub(r"[\[\]'\"]", "", value).split(","))


def _escape(text: str) -> str:
    return re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII).strip(".") or "_"
