"""Any model of a run by its folders: the original one, or the extended one with what some stage has trained."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kldistill.model.load import load_original, load_original_tokenizer, vocabulary_size
from kldistill.rows.resize import extend
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.training.adapters import adapt, frozen_head, method_of


def load_student(model: Path, rows: Path, device: str | torch.device = "cpu") -> Student:
    """The extended model as training and scoring use it: frozen model and new rows apart.

    After ``finetune`` the model's weights are the adapted ones. Its teacher is the original model all the same: give it
    stored states of that one, and ``logits_old`` are the original's logits.

    Args:
        model: folder of the ``model`` artifact.
        rows: folder of ``init``, ``distill`` or ``finetune``.
    """
    size = vocabulary_size(model)
    loaded = load_original(model, device)
    teacher_head = frozen_head(loaded) if method_of(rows) == "full" else None
    student = Student(adapt(loaded, rows), Rows.load(rows), size, teacher_head)
    return student.to(device)


def load_model(model: Path, rows: Path | None, device: str | torch.device = "cpu") -> PreTrainedModel:
    """A plain causal language model of transformers: the original one (``rows`` None), or the extended one."""
    loaded = load_original(model, device)
    if rows is None:
        return loaded
    extended = extend(adapt(loaded, rows), Rows.load(rows), vocabulary_size(model))
    return extended.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]


def load_tokenizer(model: Path, tokens: Path | None) -> PreTrainedTokenizerFast:
    """The original tokenizer (``tokens`` None), or the extended one of a ``tokens`` artifact."""
    return load_original_tokenizer(model) if tokens is None else load_extended_tokenizer(tokens)
