"""Files of one JSON object a line that survive a killed writer, and nothing secret in them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def read_lines(path: Path) -> list[str]:
    """The whole lines of a JSON-lines file; a torn end (of a process killed while writing) is left out."""
    whole: list[str] = []
    if not path.exists():
        return whole
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            content = json.loads(line)
        except ValueError:
            break
        if not isinstance(content, dict):
            break
        whole.append(line.decode())
    return whole


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Replace a file in one step: readers see the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8", errors=errors)
    os.replace(temporary, path)


def truncate(path: Path, lines: Sequence[str]) -> None:
    """Cut a file to its first lines, which are ``lines``."""
    if path.exists():
        os.truncate(path, sum(len(line.encode()) + 1 for line in lines))


def replace(path: Path, lines: Sequence[str]) -> None:
    """Write other lines in one step: there is no moment at which some are missing."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def append(path: Path, line: str) -> None:
    """Add one line."""
    with path.open("ab") as file:
        file.write(f"{line}\n".encode())


def dump(content: Mapping[str, Any]) -> str:
    """One line of JSON, redacted.

    Raises:
        TypeError, ValueError: if ``content`` holds something that JSON cannot express exactly.
    """
    return json.dumps(redact(content), ensure_ascii=False, allow_nan=False)


def redact(content: Any) -> Any:
    """``content`` with the values of the secret environment variables replaced, in strings at any depth, keys too."""
    if isinstance(content, str):
        for name in SECRETS:
            if len(value := os.environ.get(name, "").strip()) >= 6:  # no key is shorter
                content = content.replace(value, f"<{name}>")
        return content
    if isinstance(content, Mapping):
        return {redact(key): redact(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redact(value) for value in content]
    return content
