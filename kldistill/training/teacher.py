"""Stage ``teacher``: the frozen model's hidden states of the training and validation snippets."""

import json
from collections.abc import Mapping
from pathlib import Path

from kldistill.corpus.documents import read_documents
from kldistill.corpus.snippets import cut, draw
from kldistill.model.load import load_original_tokenizer
from kldistill.rows.student import bare
from kldistill.runtime.devices import device_of
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import encode
from kldistill.training import states
from kldistill.training.config import TeacherConfig


def build(cfg: TeacherConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Draw the snippets and store the teacher's ids and last hidden states of them.

    Args:
        inputs: ``model`` and ``corpus``.
        out: gets ``train.jsonl``, ``validation.jsonl`` and, with ``cfg.states``, ``train.npy`` and
            ``validation.npy``.
    """
    tokenizer = load_original_tokenizer(inputs["model"])
    device = device_of(job.runtime)
    chosen = {
        "train": draw(cut(read_documents(inputs["corpus"], "train"), cfg.snippet_bytes), n=cfg.n_snippets),
        "validation": draw(
            cut(read_documents(inputs["corpus"], "validation"), cfg.snippet_bytes), n_bytes=cfg.validation_bytes
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
