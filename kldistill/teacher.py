"""Stage ``teacher``: the frozen model's hidden states of the training and validation snippets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kldistill import corpus, models, states
from kldistill.devices import device_of
from kldistill.job import Job
from kldistill.rows import Rows, Student, embedding_of
from kldistill.snippets import cut, draw, encode
from kldistill.vocabulary import old_size


@dataclass
class TeacherConfig:
    """What the states depend on beside model and text: derived from ``distill``, and the same for every loss and
    seed.

    Attributes:
        snippet_bytes: documents are cut at lines into snippets of about this many bytes.
        n_snippets: training snippets at most.
        validation_bytes: text of the validation split.
        states: false writes the snippets' ids only (a run without a teacher).
    """

    snippet_bytes: int
    n_snippets: int
    validation_bytes: int
    states: bool = True


def build(cfg: TeacherConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Draw the snippets and store the teacher's ids and last hidden states of them.

    Args:
        inputs: ``model`` and ``corpus``.
        out: gets ``train.jsonl``, ``validation.jsonl`` and, with ``cfg.states``, ``train.npy`` and
            ``validation.npy``.
    """
    tokenizer = models.load_tokenizer(inputs["model"])
    device = device_of(job.runtime)
    chosen = {
        "train": draw(cut(corpus.read(inputs["corpus"], "train"), cfg.snippet_bytes), n=cfg.n_snippets),
        "validation": draw(
            cut(corpus.read(inputs["corpus"], "validation"), cfg.snippet_bytes), n_bytes=cfg.validation_bytes
        ),
    }
    model = bare(inputs["model"], device) if cfg.states else None
    figures: dict[str, float] = {}
    for name, snippets in chosen.items():
        ids = encode(tokenizer, [snippet.text for snippet in snippets])
        states.write(
            out, name, model, snippets, ids, batch_size=8, device=device, description=f"Teacher on {name} text"
        )
        figures[f"teacher/{name}/snippets"] = len(snippets)
        figures[f"teacher/{name}/tokens"] = sum(len(row) for row in ids)
        figures[f"teacher/{name}/bytes"] = sum(snippet.n_bytes for snippet in snippets)
    (out / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")
    job.log(figures)


def bare(folder: Path, device: torch.device) -> Student:
    """The original model alone: a student with no new tokens."""
    model = models.load(folder, device)
    size = old_size(models.load_tokenizer(folder))
    return Student(model, Rows(torch.zeros(0, embedding_of(model).embedding_dim)), size).to(device)
