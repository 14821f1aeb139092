"""The teacher's last hidden states of some snippets, on disk: they depend on the model and the text alone.

Hidden states, not logits: at a vocabulary of 49,152 they are 85 times smaller, and one product with the head gives
the logits back. A sweep over losses, initialisations and seeds computes them once.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kldistill.corpus.documents import Part
from kldistill.corpus.snippets import Snippet
from kldistill.rows.student import Student
from kldistill.runtime.progress import Bar
from kldistill.runtime.shares import ALONE, Share
from kldistill.tokens.encoding import Encoded
from kldistill.training.padding import by_length, pad

# What numpy calls the numbers of a file, by the type of the model: its own, so nothing is lost and nothing is wasted.
# numpy has no bfloat16; those are stored as their 16 bits.
_STORED = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2"}


class States(NamedTuple):
    """Snippets with the teacher's ids and, unless there is no teacher, its last hidden states.

    Attributes:
        snippets: the texts.
        ids: the teacher's ids of each, the first token in front.
        offsets: where the states of each begin in ``values``, and their end.
        values: np.memmap of shape (tokens of all snippets, D), or None.
        sizes: how many ids each part of each snippet has (see ``kldistill.tokens.encoding.Encoded``).
    """

    snippets: list[Snippet]
    ids: list[list[int]]
    offsets: list[int]
    values: Any
    sizes: list[list[int]]

    @classmethod
    def of(cls, snippets: Sequence[Snippet], encoded: Sequence[Encoded], values: Any = None) -> "States":
        """Snippets, as they were encoded."""
        ids = [one.ids for one in encoded]
        return cls(
            list(snippets), ids, [0, *itertools.accumulate(map(len, ids))], values, [one.sizes for one in encoded]
        )

    def hidden(self, index: int) -> Float[Tensor, "T D"]:
        """The states of one snippet, one per token, in float32 whatever the model's type."""
        start = self.offsets[index]
        stored = torch.from_numpy(np.array(self.values[start : start + len(self.ids[index])]))
        return (stored.view(torch.bfloat16) if stored.dtype == torch.int16 else stored).float()


@torch.no_grad()
def write(
    folder: Path,
    name: str,
    model: Student | None,
    snippets: Sequence[Snippet],
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    device: torch.device | str,
    description: str,
    share: Share = ALONE,
) -> None:
    """Store ``snippets`` with their ids as ``NAME.jsonl`` and, if there is a model, its states as ``NAME.npy``.

    All processes of ``share`` call this with the same texts, and each writes the states of its own into the one file.
    """
    if share.main:
        _write_ids(folder / f"{name}.jsonl", snippets, encoded)
    if model is None:
        return
    texts = States.of(snippets, encoded)
    ids, offsets = texts.ids, texts.offsets
    assert offsets[-1], "no snippet to compute states of"
    every, file_of_all = by_length(ids, batch_size), folder / f"{name}.npy"
    batches = share.mine(every)
    kind, width = _STORED[model.embedding.weight.dtype], model.embedding.embedding_dim
    header = {"descr": kind, "fortran_order": False, "shape": (offsets[-1], width)}
    if share.main:
        with file_of_all.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
    share.meet()
    # Written piece by piece: on a full disk, writing to a file that is mapped into memory ends the process (SIGBUS).
    with (
        Bar(description, total=sum(len(ids[index]) for batch in batches for index in batch), unit="tokens") as bar,
        file_of_all.open("r+b") as file,
    ):
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
        for batch in batches:
            padded, mask = pad([ids[index] for index in batch], device)
            hidden_BTD = model.hidden(padded, mask).cpu()
            if hidden_BTD.dtype == torch.bfloat16:
                hidden_BTD = hidden_BTD.view(torch.int16)
            for row, index in enumerate(batch):
                file.seek(begin + hidden_BTD.element_size() * width * offsets[index])
                file.write(hidden_BTD[row, : len(ids[index])].numpy().astype(kind).tobytes())
            bar.advance(sum(len(ids[index]) for index in batch))
    if share.idle(every):
        model.hidden(pad([ids[index] for index in every[-1]], device)[0])
    share.meet()


def _write_ids(file: Path, snippets: Sequence[Snippet], encoded: Sequence[Encoded]) -> None:
    with file.open("w", encoding="utf-8") as out:
        for snippet, one in zip(snippets, encoded, strict=True):
            record = {"document": snippet.document, "text": snippet.text, "ids": one.ids}
            record |= {"parts": snippet.parts, "sizes": one.sizes} if snippet.parts else {}
            out.write(json.dumps(record) + "\n")


def exists(folder: Path, name: str) -> bool:
    """Whether ``write`` stored anything of this name."""
    return (folder / f"{name}.jsonl").is_file()


def read(folder: Path, name: str) -> States:
    """What ``write`` stored. The states stay on disk until they are asked for."""
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    snippets = [Snippet(r["document"], r["text"], tuple(Part(*part) for part in r.get("parts", ()))) for r in records]
    encoded = [Encoded(r["ids"], r.get("sizes") or [len(r["ids"]) - 1]) for r in records]
    stored = folder / f"{name}.npy"
    values = np.load(stored, mmap_mode="r", allow_pickle=False) if stored.is_file() else None
    return States.of(snippets, encoded, values)


def scored_rows(snippet: Snippet, sizes: Sequence[int]) -> Int[Tensor, " R"] | None:
    """The rows of a snippet's ids whose next token belongs to a part that is scored; None where all are.

    Args:
        sizes: how many ids each of its parts has. The first token of all is before them.
    """
    if all(part.scored for part in snippet.parts):
        return None
    ends = itertools.accumulate(sizes)
    rows = [
        torch.arange(end - size, end) for part, size, end in zip(snippet.parts, sizes, ends, strict=True) if part.scored
    ]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *rows])


def n_scored(snippet: Snippet, sizes: Sequence[int]) -> int:
    """How many of a snippet's tokens are scored."""
    rows = scored_rows(snippet, sizes)
    return sum(sizes) if rows is None else len(rows)
