"""What distillation starts from, in small: a random model, fake new tokens, and its states of a few snippets."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoTokenizer

from kldistill import models, states, tiny
from kldistill.losses import ce, hidden, kl
from kldistill.losses.weighted import Term
from kldistill.pieces import PieceTable
from kldistill.rows import Rows, Student
from kldistill.snippets import Snippet, encode
from kldistill.sources import Document
from kldistill.states import States
from kldistill.teacher import bare

CPU = torch.device("cpu")


@dataclass
class Setting:
    """``states`` are the teacher's; ``new_ids`` the student's ids of the same snippets."""

    teacher: Student
    student: Student
    pieces: PieceTable
    states: States
    new_ids: list[list[int]]


@cache
def lines() -> list[str]:
    """Lines of real text."""
    return "\n".join(tiny.training_text()).splitlines(keepends=True)


def documents(n: int, n_lines: int = 12, start: int = 0) -> list[Document]:
    """Documents of a few lines each, none of them blank."""
    size = range(start * n_lines, (start + n) * n_lines, n_lines)
    found = [Document(f"document{at}", "".join(lines()[at : at + n_lines])) for at in size]
    assert all(document.text.strip() for document in found)
    return found


def make_setting(model: Path, tokens: Path, folder: Path, n: int = 6, tied: bool = False) -> Setting:
    """A setting with ``n`` snippets of different lengths; the new rows are random."""
    pieces = PieceTable.load(tokens)
    teacher = bare(model, CPU)
    loaded = models.load(model)
    width = loaded.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    made = [0.3 * torch.randn(len(pieces.pieces), width, generator=generator) for _ in range(2)]
    student = Student(loaded, Rows(made[0], None if tied else made[1]), pieces.old_size)
    snippets = [
        Snippet(document.id, document.text[: 120 + 60 * index]) for index, document in enumerate(documents(n, start=20))
    ]
    ids = encode(models.load_tokenizer(model), [snippet.text for snippet in snippets])
    states.write(folder, "some", teacher, snippets, ids, batch_size=4, device=CPU, description="")
    new_ids = encode(AutoTokenizer.from_pretrained(tokens / "tokenizer"), [snippet.text for snippet in snippets])
    assert sum(token >= pieces.old_size for row in new_ids for token in row) > 5
    return Setting(teacher, student, pieces, states.read(folder, "some"), new_ids)


def all_terms() -> dict[str, Term]:
    """Every kind of term: with and without a teacher, of logits and of hidden states."""
    return {
        "kl": Term(kl, 1.0, "logits", True),
        "ce": Term(ce, 0.3, "logits", False),
        "hidden": Term(hidden, 0.1, "hidden", True),
    }
