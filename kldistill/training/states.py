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
from jaxtyping import Float
from torch import Tensor

from kldistill.corpus.snippets import Snippet
from kldistill.rows.student import Student
from kldistill.runtime.progress import Bar
from kldistill.runtime.shares import ALONE, Share
from kldistill.training.padding import by_length, pad

# What numpy calls the numbers of a file, by the type of the model: its own, so nothing is lost and nothing is wasted.
# numpy has no bfloat16; those are stored as their 16 bits.
_STORED = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2"}


class States(NamedTuple):
    """Snippets with the teacher's ids and, unless there is no teacher, its last hidden states."""

    snippets: list[Snippet]
    ids: list[list[int]]
    offsets: list[int]
    values: Any  # np.memmap of shape (tokens of all snippets, D), or None

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
    ids: Sequence[Sequence[int]],
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
        _write_ids(folder / f"{name}.jsonl", snippets, ids)
    if model is None:
        return
    offsets = [0, *itertools.accumulate(len(row) for row in ids)]
    assert offsets[-1], "no snippet to compute states of"
    batches, file_of_all = share.mine(by_length(ids, batch_size)), folder / f"{name}.npy"
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
    share.meet()


def _write_ids(file: Path, snippets: Sequence[Snippet], ids: Sequence[Sequence[int]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        for snippet, row in zip(snippets, ids, strict=True):
            out.write(json.dumps({"document": snippet.document, "text": snippet.text, "ids": list(row)}) + "\n")


def exists(folder: Path, name: str) -> bool:
    """Whether ``write`` stored anything of this name."""
    return (folder / f"{name}.jsonl").is_file()


def read(folder: Path, name: str) -> States:
    """What ``write`` stored. The states stay on disk until they are asked for."""
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    ids = [record["ids"] for record in records]
    offsets = [0, *np.cumsum([len(row) for row in ids]).tolist()]
    stored = folder / f"{name}.npy"
    values = np.load(stored, mmap_mode="r", allow_pickle=False) if stored.is_file() else None
    return States([Snippet(record["document"], record["text"]) for record in records], ids, offsets, values)
