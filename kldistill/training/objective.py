"""What a training step computes and what is measured in between: shared by all stages that train a student."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kldistill.losses.fused import asks_mask
from kldistill.losses.weighted import Term, chunked
from kldistill.rows.student import Student
from kldistill.runtime.components import find
from kldistill.runtime.shares import ALONE, Share
from kldistill.tokens.pieces import PieceTable
from kldistill.training import states
from kldistill.training.batches import Batch
from kldistill.training.compiled import as_written
from kldistill.training.cuts import TwoCuts
from kldistill.training.loss_config import LossConfig
from kldistill.training.sampled import SampledHeads
from kldistill.training.scoring import score_student
from kldistill.training.sums import summarise


class Objective(nn.Module):
    """One forward pass of the student and its loss, against the teacher's states where a term wants them: as they were
    stored, or, where a batch brings the teacher's ids, from a pass of the original model in the same step.

    Args:
        original: a context in which the student's body is the original model's: that of an adapter switched off.
    """

    def __init__(
        self,
        student: Student,
        terms: Mapping[str, Term],
        original: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        self.student = student
        self.terms = dict(terms)
        self.original = original

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms, and each term's own value."""
        hidden_BTD = self.student.hidden(batch.new_ids, batch.new_mask)
        teacher_BUD = batch.old_hidden if batch.old_ids is None else self.teacher(batch.old_ids)
        teacher_UD = None if teacher_BUD is None else teacher_BUD.flatten(0, 1)
        heads = self.student if batch.columns is None else SampledHeads(self.student, batch.columns)
        learnt = self.student.head_parameters()
        return chunked(self.terms, heads, learnt, hidden_BTD.flatten(0, 1), teacher_UD, batch.chunks)

    @torch.no_grad()
    def teacher(self, old_ids: Int[Tensor, "B U"]) -> Float[Tensor, "B U D"]:
        """The original model's last hidden states: what its stage would have stored."""
        model = self.student.model
        training = model.training
        model.eval()  # the teacher never drops out
        with self.original(), as_written():
            hidden_BUD = self.student.hidden(old_ids).float()
        model.train(training)
        return hidden_BUD

    def seen(self, batch: Batch) -> dict[nn.Parameter, Bool[Tensor, " N"]]:
        """Which of the new rows a batch shows, for the optimiser that leaves the others alone."""
        new = batch.new_ids[batch.new_ids >= self.student.old_size] - self.student.old_size
        mask_N = torch.zeros(len(self.student.rows.input), dtype=torch.bool)
        mask_N[new.cpu()] = True
        rows = (self.student.rows.input, self.student.rows.output)
        return {row: mask_N for row in rows if row is not None}


def terms_of(loss: LossConfig) -> dict[str, Term]:
    """The loss's terms with their functions, as ``weighted`` wants them. Raises ``ConfigError`` for what is no loss."""
    return {
        name: Term(find(term.function, "loss", f"loss.terms.{name}.function"), term.weight)
        for name, term in loss.terms.items()
    }


def needs_teacher(terms: Mapping[str, Term]) -> bool:
    """Whether any of the terms compares with the teacher."""
    return any(term.teacher for term in terms.values())


def any_masked(terms: Mapping[str, Term]) -> bool:
    """Whether any of the terms reads the student's distribution masked."""
    return any(asks_mask(term.function) for term in terms.values())


def unit_of(student: Student, unit: str) -> float:
    """What a learning rate of rows in this ``unit`` (see ``DistillConfig.lr_unit``) is multiplied by.

    Adam's first steps move every entry by the rate, so a rate is hot or cold by the size of the entries it moves.
    """
    if unit == "one":
        return 1.0
    old_VD = student.embedding.weight[: student.old_size]
    return (old_VD.float().norm(dim=1).median() / old_VD.shape[1] ** 0.5).item()


# What validation during training scores, by the start of its metrics' names: sets of the teacher's artifact.
HELD_OUT = {"validation": "validation", "validation_general": "general"}


def held_out(teacher: Path, tokenizer: PreTrainedTokenizerBase, pieces: PieceTable) -> dict[str, TwoCuts]:
    """The texts that validation scores, by the start of their metrics' names.

    Args:
        teacher: folder of the ``teacher`` artifact.
        tokenizer: the extended one.
    """
    return {
        start: TwoCuts.read(teacher, name, tokenizer, pieces)
        for start, name in HELD_OUT.items()
        if states.exists(teacher, name)
    }


def validation(
    student: Student,
    sets: Mapping[str, TwoCuts],
    *,
    batch_size: int,
    chunk: int,
    device: torch.device,
    share: Share = ALONE,
    masked: bool = False,
) -> Callable[[], dict[str, float]]:
    """A function that scores held-out text with the student as it is when it is called, for ``training.train``.

    Its metrics are those of ``sums.SUMS``, named ``validation_NAME`` for text of the domain and
    ``validation_general_NAME`` for general text, where there is some. Dropout is off meanwhile.

    Args:
        sets: see ``held_out``; without the teacher's states there is no KL.
        share: the processes that score the texts together; each gets the figures of all.
        masked: whether to score what masked terms train too (see ``score_student``).
    """

    def validate() -> dict[str, float]:
        training = student.training
        student.eval()
        figures: dict[str, float] = {}
        for start, cuts in sets.items():
            with as_written():
                scores = score_student(
                    student,
                    cuts,
                    teacher=cuts.states.values is not None and cuts.pieces.exact,
                    batch_size=batch_size,
                    chunk=chunk,
                    device=device,
                    description="Validation",
                    share=share,
                    masked=masked,
                )
            figures |= {f"{start}_{name}": value for name, value in summarise(scores).items()}
        student.train(training)
        return figures

    return validate
