"""What the tests of the stage ``interpret`` share: a corpus artifact, rows, and the stage run on them."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from kldistill import interpret
from kldistill.interpret import pictures
from kldistill.interpret.config import InterpretConfig
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import embedding_of
from kldistill.runtime.job import Job
from tests.helpers.setting import documents

SMALL: dict[str, Any] = {
    "n_contexts": 4, "context_bytes": 200, "n_uses": 8, "attention_contexts": 2, "neighbours": 3, "completions": 0,
}  # fmt: skip

SHARED = {"n_contexts": 5, "n_uses": 9, "attention_contexts": 3, "completions": 3}  # by two: uneven parts of each


def write_corpus(folder: Path, n: int = 8) -> Path:
    """A corpus artifact that has only a test split."""
    lines = [json.dumps(document._asdict()) for document in documents(n, start=20)]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_rows(model: Path, folder: Path, n: int, seed: int, tied: bool = False) -> Path:
    """Random rows for ``n`` new tokens."""
    folder.mkdir(exist_ok=True)
    width = embedding_of(load_original(model)).embedding_dim
    generator = torch.Generator().manual_seed(seed)
    made = [0.3 * torch.randn(n, width, generator=generator) for _ in range(2)]
    Rows(made[0], None if tied else made[1]).save(folder)
    return folder


def run(
    inputs: dict[str, Path], out: Path, job: Job | None = None, draw: bool = False, **settings: Any
) -> dict[str, Any]:
    """Run the stage; the content of interpret.json, which the main process of several writes. Figures take longer than
    all the rest: only with ``draw``.
    """
    out.mkdir(exist_ok=True)
    drawing = pictures.draw if draw else lambda _report, _points, _out: {}
    with patch.object(pictures, "draw", drawing):
        interpret.build(InterpretConfig(**{**SMALL, **settings}), inputs, out, job or Job())
    written = out / "interpret.json"
    return json.loads(written.read_text()) if written.is_file() else {}
