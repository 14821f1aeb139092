"""What the ``tokens`` artifact holds: the one place that writes its tables, and reads them for whoever needs them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerFast


class NewToken(NamedTuple):
    """One new token.

    Attributes:
        id: its id; new ids follow the old ones without a gap.
        string: what decoding shows for it.
        token: its entry in the vocabulary.
        pieces: the old ids that it replaces, exactly; empty for an AddedToken, which replaces whatever stood there.
        count: how often the extended tokenizer uses it on the train text that was counted.
    """

    id: int
    string: str
    token: str
    pieces: list[int]
    count: int


class Vocabulary(NamedTuple):
    """The sizes of a vocabulary before and after.

    Attributes:
        old_size, new_size: the sizes in tokens; ids of new tokens are ``old_size`` to ``new_size - 1``.
        byte_lengths: bytes of text that each id stands for, of length ``new_size``; None where they are not needed, as
            the new cut refines into the old one (see ``PieceTable``).
    """

    old_size: int
    new_size: int
    byte_lengths: list[int] | None


TOKENS, VOCABULARY = "new_tokens.jsonl", "vocabulary.json"


def write_tables(folder: Path, tokens: Sequence[NewToken], old_size: int, byte_lengths: Sequence[int] | None) -> None:
    """Write the new tokens and the vocabulary's sizes."""
    lines = "".join(json.dumps(token._asdict(), ensure_ascii=False) + "\n" for token in tokens)
    (folder / TOKENS).write_text(lines, encoding="utf-8")
    sizes = Vocabulary(old_size, old_size + len(tokens), None if byte_lengths is None else list(byte_lengths))
    (folder / VOCABULARY).write_text(json.dumps(sizes._asdict()) + "\n", encoding="utf-8")


def read_new_tokens(folder: Path) -> list[NewToken]:
    """The new tokens of a tokens artifact, in the order of their ids."""
    with (Path(folder) / TOKENS).open(encoding="utf-8") as lines:
        return [NewToken(**json.loads(line)) for line in lines]


def read_vocabulary(folder: Path) -> Vocabulary:
    """The sizes of a tokens artifact's vocabulary."""
    return Vocabulary(**json.loads((Path(folder) / VOCABULARY).read_text(encoding="utf-8")))


def read_merges(folder: Path, old_size: int) -> list[tuple[int, int, int]]:
    """The merges that make new tokens, by rank: triples (left, right, what they become) of ids."""
    model = json.loads((Path(folder) / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocab = model["vocab"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    found = ((vocab[left], vocab[right], vocab[left + right]) for left, right in pairs)
    return [merge for merge in found if merge[2] >= old_size]


def load_extended_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The extended tokenizer of a tokens artifact."""
    return AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
