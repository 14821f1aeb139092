"""What distillation starts from, in small: a random model, fake new tokens, and its states of a few snippets."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoTokenizer

from kldistill.corpus.documents import Document
from kldistill.corpus.snippets import Snippet
from kldistill.losses import ce, hidden, kl
from kldistill.losses.weighted import Term
from kldistill.model import tiny
from kldistill.model.load import load_original, load_original_tokenizer
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student, bare
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import Encoded, encode
from kldistill.tokens.pieces import PieceTable
from kldistill.training import states, teacher
from kldistill.training.config import TeacherConfig
from kldistill.training.cuts import TwoCuts
from kldistill.training.states import States

CPU = torch.device("cpu")


@dataclass
class Setting:
    """``states`` are the teacher's; ``new_ids`` the student's ids of the same snippets."""

    teacher: Student
    student: Student
    pieces: PieceTable
    states: States
    new_ids: list[list[int]]

    @property
    def cuts(self) -> TwoCuts:
        return TwoCuts(self.states, whole(self.new_ids), self.pieces)


@cache
def lines() -> list[str]:
    """Lines of real text."""
    return "\n".join(tiny.training_text()).splitlines(keepends=True)


def whole(ids: Sequence[Sequence[int]]) -> list[Encoded]:
    """Texts of one part each, the first token in front."""
    return [Encoded(list(row), [len(row) - 1]) for row in ids]


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
    loaded = load_original(model)
    width = loaded.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    made = [0.3 * torch.randn(len(pieces.pieces), width, generator=generator) for _ in range(2)]
    student = Student(loaded, Rows(made[0], None if tied else made[1]), pieces.old_size)
    snippets = [
        Snippet(document.id, document.text[: 120 + 60 * index]) for index, document in enumerate(documents(n, start=20))
    ]
    ids = encode(load_original_tokenizer(model), [snippet.text for snippet in snippets])
    states.write(folder, "some", teacher, snippets, whole(ids), batch_size=4, device=CPU, description="")
    new_ids = encode(AutoTokenizer.from_pretrained(tokens / "tokenizer"), [snippet.text for snippet in snippets])
    assert sum(token >= pieces.old_size for row in new_ids for token in row) > 5
    return Setting(teacher, student, pieces, states.read(folder, "some"), new_ids)


def train_a_little(source: Path, out: Path) -> Path:
    """A copy of the model after some steps on its text, so that it has something to pass on."""
    model, tokenizer = load_original(source), load_original_tokenizer(source)
    ids = encode(tokenizer, ["".join(lines()[:1200])])[0]
    ids_NT = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        batch = ids_NT[torch.randint(len(ids_NT), (8,), generator=generator)]
        loss = torch.nn.functional.cross_entropy(model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shutil.copytree(source, out)
    model.save_pretrained(out)
    return out


PARTS = {"train": 18, "validation": 4, "test": 3, "general": 3, "general_train": 3, "general_validation": 2}


def make_inputs(source: Path, tokens: Path, root: Path, tied: bool, learnt: bool = True) -> dict[str, Path]:
    """Artifacts that training reads, below ``root``: model (after some steps if ``learnt``), tokens, a small corpus,
    random rows (``init``), and the teacher's states of 12 snippets.
    """
    folders = {"model": train_a_little(source, root / "model") if learnt else source, "tokens": tokens}
    for name in ("corpus", "init", "teacher"):
        folders[name] = root / name
        folders[name].mkdir()
    for at, (split, n) in enumerate(PARTS.items()):
        records = [json.dumps(document._asdict()) + "\n" for document in documents(n, start=20 * at)]
        (folders["corpus"] / f"{split}.jsonl").write_text("".join(records))
    generator = torch.Generator().manual_seed(0)
    rows = [0.2 * torch.randn(24, 32, generator=generator) for _ in range(2)]
    Rows(rows[0], None if tied else rows[1], {"input": "random"}).save(folders["init"])
    teacher.build(TeacherConfig(300, 12, 2000), folders, folders["teacher"], Job(RuntimeConfig(device="cpu")))
    return folders


def all_terms() -> dict[str, Term]:
    """Every kind of term: with and without a teacher, of logits and of hidden states."""
    return {
        "kl": Term(kl, 1.0),
        "ce": Term(ce, 0.3),
        "hidden": Term(hidden, 0.1),
    }
