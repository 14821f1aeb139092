"""What the ``tokens`` artifact holds, read by whoever needs it."""

import json
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


def read_new_tokens(folder: Path) -> list[NewToken]:
    """The new tokens of a tokens artifact, in the order of their ids."""
    with (Path(folder) / "new_tokens.jsonl").open(encoding="utf-8") as lines:
        return [NewToken(**json.loads(line)) for line in lines]


def load_extended_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The extended tokenizer of a tokens artifact."""
    return AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
