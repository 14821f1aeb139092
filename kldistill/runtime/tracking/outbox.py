"""What a dashboard is sent of a run: each line once, however often the run is started again."""

import json
from pathlib import Path
from typing import Any

from kldistill.runtime.files import append, read_lines, truncate


class Outbox:
    """Remembers lines of ``metrics.jsonl`` and ``tables.jsonl`` in a file of its own.

    The file is written when the logger is closed: of a process that was killed, the logger may have lost what it was
    sent last, so that is sent again, to the same steps.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_lines(path)
        truncate(path, lines)
        self._path = path
        self._sent = set(lines)
        self._unconfirmed: list[str] = []

    def take(self, line: str) -> dict[str, Any] | None:
        """The content of a line that is to be sent now; None for one that was sent before."""
        if line in self._sent:
            return None
        self._sent.add(line)
        self._unconfirmed.append(line)
        return json.loads(line)

    def confirm(self) -> None:
        """Remember for good what was sent, now that the logger has it."""
        for line in self._unconfirmed:
            append(self._path, line)
        self._unconfirmed.clear()


def media(package: Any, path: Path) -> Any:
    """A picture or a page in the classes of ``package``: wandb's, or Trackio's of the same names."""
    page = path.suffix in (".html", ".svg")
    return package.Html(path.read_text(), inject=False) if page else package.Image(str(path))


def axis(stage: str) -> str:
    """The x-axis of a stage's figures."""
    return f"{stage}/step"


def figures(content: dict[str, Any]) -> dict[str, Any]:
    """The figures of a line of ``metrics.jsonl``, and its step under the name of the stage's x-axis.

    A figure that was not finite is null in the line, and is left out.
    """
    own = ("stage", "step", "time")
    finite = {key: value for key, value in content.items() if key not in own and value is not None}
    return finite if content["step"] is None else {axis(content["stage"]): content["step"], **finite}
