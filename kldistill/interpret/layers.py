"""The hidden states of a model after each of its layers, and how the model reads its last ones.

Shape suffixes: K states per position (one per layer, and the embedding before the first), T tokens, P positions, D
width, V old vocabulary, W new vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kldistill.rows.student import Student
from kldistill.runtime.errors import ModelError


class Layers:
    """A student's residual stream or, with old ids, its teacher's.

    State 0 is the embedding, state k what layer k hands on, and the last one is taken *before* the final norm.

    transformers gives the last state after the final norm in most families and before it in others. So the last one is
    taken at the norm itself, which is found by what it does, not by its name.

    Raises:
        ModelError: no norm stands between the last layer and the head (post-norm families), or the model does not give
            one state per layer.
    """

    def __init__(self, student: Student) -> None:
        self.student = student
        self.norm = _final_norm(student)

    @torch.no_grad()
    def states(self, ids: Sequence[int]) -> Float[Tensor, "K T D"]:
        """All states of one text, on the model's device."""
        caught: list[Tensor] = []
        handle = self.norm.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
        try:
            output = _run(self.student, ids, output_hidden_states=True)
        finally:
            handle.remove()
        layers = self.student.model.config.get_text_config().num_hidden_layers
        states = output.hidden_states or ()
        if len(states) != layers + 1 or len(caught) != 1:
            raise ModelError(f"{_family(self.student)}: gave {len(states)} hidden states for {layers} layers.")
        return torch.stack([*(state[0] for state in states[:-1]), caught[0][0]])

    @torch.no_grad()
    def logits_old(self, states: Float[Tensor, "P D"]) -> Float[Tensor, "P V"]:
        """What the teacher would predict if these were its last states: final norm, then the old head (logit lens)."""
        return self.student.logits_old(self.norm(states)).float()

    @torch.no_grad()
    def logits(self, states: Float[Tensor, "P D"]) -> Float[Tensor, "P W"]:
        """The same for the student, over old and new tokens."""
        return self.student.logits(self.norm(states)).float()


def _final_norm(student: Student) -> nn.Module:
    """The module that makes the last hidden state, whatever the family calls it."""
    made: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    handles = []
    for name, module in student.body.named_modules():
        if not any(module.children()):

            def note(module: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
                if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                    made.append((name, module, args[0], output))

            handles.append(module.register_forward_hook(note))
    try:
        last = _run(student, [0, 1]).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    for name, module, before, after in made:
        # A dropout or identity after the norm gives the same output, but changes nothing.
        same = after.shape == last.shape and torch.equal(after, last)
        if same and not torch.equal(before, after) and not any(part.isdigit() for part in name.split(".")):
            return module
    raise ModelError(
        f"{_family(student)}: no final norm was found between its last layer and its head, so its layers cannot be "
        "read with the head."
    )


@torch.no_grad()
def _run(student: Student, ids: Sequence[int], **wanted: bool) -> Any:
    device = student.embedding.weight.device
    ids_BT: Int[Tensor, "1 T"] = torch.tensor([list(ids)], device=device)
    return student.body(inputs_embeds=student.embed(ids_BT), use_cache=False, **wanted)


def _family(student: Student) -> str:
    return str(student.model.config.model_type)


def lasting_from(holds: Bool[np.ndarray, "K P"]) -> Int[np.ndarray, " P"]:
    """For each position, the first layer from which on ``holds`` is true up to the last; -1 where it is false there."""
    # Going backwards, count how long it has been true without a break.
    run = np.cumprod(holds[::-1], axis=0).sum(axis=0)
    return np.where(run > 0, len(holds) - run, -1)


def per_layer(values: Float[np.ndarray, "K P"]) -> dict[str, list[float]]:
    """Mean, median and quartiles over positions, layer by layer."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
    return {
        "mean": values.mean(axis=1).tolist(),
        "median": middle.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }
