"""How many new tokens help: tokens saved against their number, for every boundary, from one count of the text each.

Merges are chosen greedily, so the first 512 of 16,384 are what 512 would have been: one run gives the whole curve. It
is that of the text the merges are learnt on; held-out text saves a little less (``tokens/saved``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.boundaries import BOUNDARIES, widen
from kldistill.tokens.definition import Definition
from kldistill.tokens.merges import Merge, Rules, choose
from kldistill.tokens.words import count_words

LIMIT = 16_384
LEAST = 1e-5  # of the text's tokens: what a new token must save to be worth a row


class Curve(NamedTuple):
    """One boundary's curve.

    Attributes:
        tokens: old tokens in the text.
        saved: tokens that each merge saved when it was made, in order.
    """

    tokens: int
    saved: list[int]

    def share(self, n: int) -> float:
        """Share of the text's tokens that the first ``n`` new tokens save."""
        return sum(self.saved[:n]) / max(self.tokens, 1)


def curve_of(merges: Sequence[Merge], tokens: int) -> Curve:
    """The curve of merges that were chosen on a text of ``tokens`` old tokens."""
    return Curve(tokens, [merge.saved for merge in merges])


def knee(curve: Curve) -> int:
    """``tokens.n_new=auto``: up to the last new token that saves at least one of 100,000 tokens of the text."""
    worth = np.flatnonzero(np.array(curve.saved) >= LEAST * curve.tokens)
    return int(worth[-1]) + 1 if len(worth) else min(1, len(curve.saved))


def sizes(limit: int) -> list[int]:
    """Numbers of new tokens at which a curve is shown: powers of two from 64, and ``limit``."""
    return sorted({*(2**k for k in range(6, 30) if 2**k < limit), limit})


def curves(
    spec: dict[str, Any],
    size: int,
    texts: Iterable[str],
    rules: Callable[[dict[str, Any]], Rules],
    *,
    limit: int,
    min_count: int,
    min_documents: int,
    workers: int,
) -> dict[str, Curve]:
    """The curve of every boundary that the tokenizer can carry.

    Args:
        spec: definition of the old tokenizer.
        size: V, the number of its ids.
        texts: what merges are learnt on.
        rules: makes the rules for a widened definition; anew for each, as they come to know the new tokens.
        limit: new tokens at most.
        min_count, min_documents, workers: as ``choose`` and ``count_words`` take them.
    """
    by_boundary = {}
    for boundary in BOUNDARIES:
        try:
            wide = Definition(widen(spec, boundary), size, boundary)
        except TokenizerError:
            continue
        words = count_words(wide, texts, workers)
        chosen = choose(words, rules(wide.spec), limit, min_count, min_documents=min_documents)
        by_boundary[boundary] = curve_of(chosen, words.tokens)
    return by_boundary


def as_table(by_boundary: Mapping[str, Curve], limit: int, row_bytes: int) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of what people read: shares saved, and the memory of so many rows in float32."""
    columns = ["new tokens", *(f"saved, {boundary}" for boundary in by_boundary), "rows, MB"]
    rows: list[list[object]] = []
    for n in sizes(limit):
        if any(len(curve.saved) >= n for curve in by_boundary.values()):
            shares = [f"{curve.share(n):.1%}" if len(curve.saved) >= n else "" for curve in by_boundary.values()]
            rows.append([n, *shares, round(n * row_bytes / 1e6, 1)])
    return columns, rows


def as_json(by_boundary: Mapping[str, Curve], limit: int, row_bytes: int) -> dict[str, Any]:
    """What ``curve.json`` holds: for every boundary pairs (new tokens, share saved), and where its knee is."""
    return {
        "row_bytes": row_bytes,
        "tokens": {boundary: curve.tokens for boundary, curve in by_boundary.items()},
        "knee": {boundary: knee(curve) for boundary, curve in by_boundary.items()},
        "saved": {
            boundary: [[n, curve.share(n)] for n in sizes(limit) if len(curve.saved) >= n]
            for boundary, curve in by_boundary.items()
        },
    }
