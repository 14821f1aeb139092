"""What keeps held-out text unseen: documents that belong together share a split, and copies of train text are removed.

Files of one folder resemble each other, so the split is drawn by folder. That alone does not help against text that is
copied between folders; so a held-out document leaves if too many of its shingles (runs of 13 tokens) stand in train.
Measures as in Brown et al., "Language models are few-shot learners", 2020, appendix C, which takes 13 words. As there,
what stands in many documents makes none a copy: the licence at the top of every file, the imports below it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kldistill.corpus.documents import Document
from kldistill.corpus.shingles import hashed_shingles, shared

SHINGLE_TOKENS = 13
# What stands in so many documents of train, by number and by share, says nothing of where a document is from. In
# transformers.models a quarter is the licence alone (149 shingles, as with a half: 122), and a fiftieth would be 9,539,
# the functions that its models copy from each other among them.
COMMON_DOCUMENTS, COMMON_SHARE = 5, 0.25
LINE_CHARACTERS = 20  # shorter lines (``return x``, ``else:``) are the same everywhere


def groups_of(sizes: Mapping[str, int], largest: float) -> dict[str, str]:
    """The group of each document: its folder.

    A folder that holds more than the share ``largest`` of all bytes would decide the sizes of the splits by itself (and
    a project may have but one); its documents are groups by themselves. So are documents in no folder.

    Args:
        sizes: bytes of each document by its name.
        largest: share of all bytes that a group may hold, above 0.
    """
    folders: Counter[str] = Counter()
    for name, size in sizes.items():
        folders[folder_of(name)] += size
    limit = largest * folders.total()
    return {name: folder if (folder := folder_of(name)) and folders[folder] <= limit else name for name in sizes}


def folder_of(name: str) -> str:
    """The folder of a document; empty where its name has none."""
    return name.rpartition("/")[0]


@dataclass(frozen=True)
class Copied:
    """How much of a split stands in train.

    Attributes:
        shingles: share of the documents' shingles of 13 tokens, from 0 to 1.
        lines: share of the lines of 20 characters or more, without white space at their ends, from 0 to 1.
    """

    shingles: float
    lines: float


class Seen:
    """The text of the train split, as the hashes of its shingles and lines: about 10 bytes a token."""

    def __init__(self, train: Iterable[Document]) -> None:
        hashes = list[NDArray[np.uint64]]()
        self._lines: set[int] = set()
        for document in train:
            hashes.append(_shingles(document.text))
            self._lines.update(map(hash, _lines(document.text)))
        together = np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64)
        self._shingles, counts = np.unique(together, return_counts=True)
        self._common = self._shingles[counts >= max(COMMON_DOCUMENTS, COMMON_SHARE * len(hashes))]

    def containment(self, text: str) -> float:
        """Share of a text's distinct shingles of 13 tokens that train has, without those common there, from 0 to 1.

        A text of nothing else, such as a file that is a licence alone, is contained.
        """
        mine = _shingles(text)
        common = shared(mine, self._common)
        own = len(mine) - common
        return (shared(mine, self._shingles) - common) / own if own else 1.0

    def copied(self, documents: Iterable[Document]) -> Copied:
        """How much of the documents stands in train; 0 of no documents."""
        known = total = known_lines = total_lines = 0
        for document in documents:
            mine = _shingles(document.text)
            known += shared(mine, self._shingles)
            total += len(mine)
            lines = _lines(document.text)
            known_lines += sum(hash(line) in self._lines for line in lines)
            total_lines += len(lines)
        return Copied(known / max(total, 1), known_lines / max(total_lines, 1))


def _shingles(text: str) -> NDArray[np.uint64]:
    return hashed_shingles(text, SHINGLE_TOKENS, marks=True)


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if len(line) >= LINE_CHARACTERS]
