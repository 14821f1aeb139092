"""The table of new tokens: what the tokens stage counted, and what the interpret stage found, a row a token."""

import json
from typing import Any, NamedTuple

from kldistill.report.data import Run, lines
from kldistill.tokens.artifact import TOKENS, read_new_tokens
from kldistill.tokens.definition import token_bytes
from kldistill.training.load import load_tokenizer


class Row(NamedTuple):
    """One new token.

    Attributes:
        string, pieces: what it stands for, and the old tokens that it replaces, as text.
        count: uses in the train text.
        held_out: uses in validation and test text, if preflight's report is there.
        n, nats, adoption, target: from the interpret stage, None without it: uses looked at; mean of -log of the
            student's probability there; that probability; and the one that the teacher's pushed forward gives.
    """

    id: int
    string: str
    pieces: list[str]
    count: int
    held_out: int | None
    n: int | None
    nats: float | None
    adoption: float | None
    target: float | None


def rows(run: Run) -> list[Row]:
    """All new tokens, most used first; empty where the tokens artifact is gone."""
    path = run.file("tokens", TOKENS)
    if path is None:
        return []
    uses = {token["id"]: token.get("held_out") for token in preflight(run).get("tokens", [])}
    measured = {row["id"]: row for row in interpreted(run)}
    texts = _texts(run)
    table = []
    for token in read_new_tokens(path.parent):
        own = measured.get(token.id, {})
        table.append(
            Row(
                token.id,
                token.string,
                [texts[piece] if texts else f"#{piece}" for piece in token.pieces],
                token.count,
                uses.get(token.id),
                *(own.get(key) for key in ("n", "nll", "adoption", "target")),
            )
        )
    return sorted(table, key=lambda row: (-row.count, row.id))


def preflight(run: Run) -> dict[str, Any]:
    """Preflight's report of the tokens artifact; empty where it is gone."""
    path = run.file("tokens", "preflight.json")
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))


def interpreted(run: Run) -> list[dict[str, Any]]:
    """What the interpret stage measured of every new token."""
    return lines(run.file("interpret", "new_tokens.jsonl"))


def _texts(run: Run) -> list[str]:
    """The text of every old token; empty where the model's artifact is gone."""
    if run.file("model", "model.json") is None:
        return []
    return [data.decode(errors="replace") for data in token_bytes(load_tokenizer(run.artifacts["model"], None))]
