"""Nothing secret in a file, a log or a dashboard: neither credentials in addresses nor secret environment variables."""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from kldistill.runtime.console import spelt

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_PLAIN = re.compile("KEYBOARD|KEYMAP|TOKENIZER", re.IGNORECASE)  # these only sound like it
_SHORTEST = 6  # characters; no key is shorter, and shorter values stand in too much ordinary text
# scheme://user:password@host, also with the user alone, which is how access tokens are written
_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#'\"<>]+@")
# ?token=...&sig=..., as in signed addresses
_QUERY = re.compile(
    r"(?P<key>[?&][\w.-]*(?:key|token|secret|password|signature|credential|sig)=)[^\s&#'\"<>]+", re.IGNORECASE
)


def redact(content: Any) -> Any:
    """``content`` without what is secret, in strings at any depth, keys of mappings too.

    Secret are the values of environment variables whose name says KEY, TOKEN, SECRET or PASSWORD (from six characters
    on; ``<NAME>`` takes their place), the user and password of an address (``https://<credentials>@host/``), and the
    values of such words in an address's query.
    """
    return _redact(content, secrets())


def redact_lines(lines: Iterable[str | bytes]) -> list[Any]:
    """What lines of JSON hold, with nothing secret in it.

    Records are read by the ten thousand, and next to none of them holds anything to be looked for: that is seen on the
    text. JSON may spell a character in several ways, so a line with a backslash is always looked through.
    """
    values, found = secrets(), list[Any]()
    for line in lines:
        text, content = line if isinstance(line, str) else line.decode(), json.loads(line)
        plain = "\\" not in text and "://" not in text and not any(value in text for value, _ in values)
        found.append(content if plain else _redact(content, values))
    return found


def secrets() -> list[tuple[str, str]]:
    """Every secret of the environment, as it may stand in text, with its variable's name; the longest first."""
    names_by_value: dict[str, str] = {}
    for name, value in os.environ.items():
        value = value.strip()
        if len(value) >= _SHORTEST and _SECRET.search(name) and not _PLAIN.search(name):
            names_by_value |= {form: name for form in (quote(value, safe=""), value)}
    return sorted(names_by_value.items(), key=lambda item: -len(item[0]))


def _redact(content: Any, values: list[tuple[str, str]]) -> Any:
    if isinstance(content, str):
        for value, name in values:
            content = content.replace(value, f"<{name}>")
        if "://" in content:
            content = _ADDRESS.sub(r"\g<scheme><credentials>@", content)
            content = _QUERY.sub(r"\g<key><secret>", content)
        return content
    if isinstance(content, Mapping):
        return {_redact(key, values): _redact(value, values) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_redact(value, values) for value in content]
    return content


def shown(text: str, keep: str = "\n") -> str:
    """Text for a console or a log: nothing secret in it, and control characters spelt, but for those in ``keep``."""
    return spelt(redact(text), keep)


class Formatter(logging.Formatter):
    """Formats log records as its base class does, leaves out what is secret, and spells control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, with its traceback if it has one."""
        return shown(super().format(record), keep="\n\t")
