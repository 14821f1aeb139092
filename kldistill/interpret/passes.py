"""Every model over every context, once: the states at the drawn uses, and the probabilities compared.

Shape suffixes: A student tokens, B teacher tokens, D width, K layers, P places, V and W the two vocabularies.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kldistill.interpret import calibration
from kldistill.interpret.contexts import Context, Rival, Use
from kldistill.interpret.models import Models, Pass
from kldistill.runtime.progress import Bar
from kldistill.runtime.shares import Share

# States at the places before and after each use, and of the original model at their rivals, by place and model.
States = dict[str, dict[str, Float[Tensor, "K P D"]]]
Parts = dict[str, tuple[calibration.Positions, calibration.Cells]]


class Seen(NamedTuple):
    """What one context shows: ``states`` at its uses and rivals, where they can be read, and, by student, ``parts``."""

    states: States
    parts: Parts


def run_all(
    made: Models, contexts: Sequence[Context], uses: Sequence[Use], rivals: Sequence[Rival], share: Share
) -> tuple[States, list[Parts]]:
    """Run every model over every context once: keep the states at the drawn uses, and compare the probabilities.

    The states come in the order of the uses, or of the rivals, which is that of the contexts.
    """
    with Bar("Three models on held-out text", total=len(share.mine(contexts)), unit="contexts") as bar:

        def look(index: int) -> Seen:
            here = [use for use in uses if use.context == index]
            seen = _look(made, contexts[index], here, [rival for rival in rivals if rival.context == index])
            bar.advance()
            return seen

        found = share.each(range(len(contexts)), look)
    states = {
        place: {name: torch.cat([one.states[place][name] for one in found], dim=1) for name in by_model}
        for place, by_model in found[0].states.items()
    }
    return states, [one.parts for one in found]


@torch.no_grad()
def _look(made: Models, context: Context, uses: Sequence[Use], rivals: Sequence[Rival]) -> Seen:
    """One pass of every model over one context."""
    seen = Seen({}, {})
    original = made.run("original", context.old_ids)
    _keep(seen.states, "original", original, uses, "teacher_row")
    if original.states is not None:
        seen.states["rivals"] = {"original": original.states[:, [rival.teacher_row for rival in rivals]].cpu()}
    teacher_BV = made.teacher.logits_old(original.hidden) if made.pieces.exact else None
    for name, student in made.students.items():
        states_of_text = made.run(name, context.new_ids)
        _keep(seen.states, name, states_of_text, uses, "student_row")
        if teacher_BV is not None:
            logits_AW = student.logits(states_of_text.hidden)
            seen.parts[name] = calibration.measure(logits_AW, teacher_BV, context, made.pieces)
    return seen


def _keep(states: States, name: str, states_of_text: Pass, uses: Sequence[Use], row: str) -> None:
    if states_of_text.states is not None:
        for place in ("before", "after"):
            rows = [getattr(getattr(use, place), row) for use in uses]
            states.setdefault(place, {})[name] = states_of_text.states[:, rows].cpu()
