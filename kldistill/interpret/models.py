"""The three models of the stage, and what one pass of each over a text gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kldistill.interpret.layers import Layers
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from kldistill.runtime.errors import ModelError
from kldistill.tokens.pieces import PieceTable
from kldistill.training.adapters import method_of
from kldistill.training.load import load_student

STUDENTS = ("init", "trained")


class Pass(NamedTuple):
    """What one text gives in one model.

    Attributes:
        states: the states of all layers; None where they cannot be read layer by layer.
        hidden: the last states, after the final norm.
    """

    states: Float[Tensor, "K T D"] | None
    hidden: Float[Tensor, "T D"]


@dataclass(frozen=True)
class Models:
    """The original model (``teacher``) and the extended one before and after training (``init``, ``trained``).

    Attributes:
        layers: each model's layers by name, ``original`` included; empty where the family has none to read.
        unreadable: why the layers cannot be read; None where they can.
    """

    teacher: Student
    students: dict[str, Student]
    pieces: PieceTable
    layers: dict[str, Layers]
    unreadable: str | None

    @classmethod
    def load(cls, inputs: Mapping[str, Path], device: torch.device) -> "Models":
        """The models of the artifacts ``model``, ``tokens``, ``init`` and ``rows``.

        They share one body unless fine-tuning has changed it.
        """
        pieces = PieceTable.load(inputs["tokens"])
        original = load_original(inputs["model"], device)
        before = Student(original, Rows.load(inputs["init"]), pieces.old_size).to(device)
        if method_of(inputs["rows"]) == "rows":
            after = Student(original, Rows.load(inputs["rows"]), pieces.old_size).to(device)
        else:
            after = load_student(inputs["model"], inputs["rows"], device)
        students = {"init": before, "trained": after}
        try:
            layers = {name: Layers(student) for name, student in {"original": before, **students}.items()}
        except ModelError as error:
            return cls(before, students, pieces, {}, str(error))
        return cls(before, students, pieces, layers, None)

    @torch.no_grad()
    def run(self, name: str, ids: Sequence[int]) -> Pass:
        """Run one text through the model ``name``: the original one on old ids, a student on new ones."""
        if self.layers:
            states_KTD = self.layers[name].states(ids)
            return Pass(states_KTD, self.layers[name].norm(states_KTD[-1]))
        student = self.students.get(name, self.teacher)
        return Pass(None, student.hidden(torch.tensor([list(ids)], device=student.embedding.weight.device))[0])
