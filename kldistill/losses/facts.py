"""What a loss says of itself, so that a configuration that cannot work is refused before anything runs."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from kldistill.runtime.components import component, facts_of

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class LossFacts:
    """Facts of one loss.

    Attributes:
        hidden: whether it compares last hidden states rather than logits.
        teacher: whether it needs the teacher at all.
        exact_pieces: whether it needs the exact pieces of every new token (AddedTokens have none).
        new_logits: whether it says anything of the logits of new tokens, so that output rows can be solved by it.
        sampled: whether it is right over a part of the old vocabulary (see ``losses.sampled``): it reads no logits, or
            takes their softmaxes and finds tokens by the ids of the alignment alone.
    """

    hidden: bool
    teacher: bool
    exact_pieces: bool
    new_logits: bool
    sampled: bool


def loss(*, exact_pieces: bool = False, new_logits: bool = True, sampled: bool = False) -> Callable[[T], T]:
    """Mark a function as a loss that ``loss.terms`` may name; without ``sampled=True`` one that compares logits always
    gets those of the whole vocabulary.

    The other facts are read from its first parameters: ``student_logits`` or ``student_hidden``; likewise
    ``teacher_logits`` or ``teacher_hidden``, if it needs the teacher; ``alignment``. Further ones are its own settings.

    Raises:
        TypeError: for a function with other parameters.
    """

    def mark(function: T) -> T:
        names = list(inspect.signature(function).parameters)
        for what in ("logits", "hidden"):
            for wanted in ([f"student_{what}", f"teacher_{what}", "alignment"], [f"student_{what}", "alignment"]):
                if names[: len(wanted)] == wanted:
                    hidden = what == "hidden"
                    facts = LossFacts(
                        hidden, len(wanted) == 3, exact_pieces, new_logits and not hidden, sampled or hidden
                    )
                    return component("loss", facts, given=len(wanted))(function)
        raise TypeError(
            f"{function}: the first parameters of a loss are student_logits, teacher_logits, alignment (or "
            f"student_hidden, teacher_hidden, alignment; without the teacher's if it needs none), not {names}"
        )

    return mark


def loss_facts(function: Callable[..., Any]) -> LossFacts:
    """The facts of a loss, also where settings are bound to it already."""
    facts = facts_of(function)
    assert isinstance(facts, LossFacts), f"{function} is no loss"
    return facts
