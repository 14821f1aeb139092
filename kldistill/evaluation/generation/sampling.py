"""Ids drawn by their probabilities, with given random numbers.

Shapes: B rows, W vocabulary, F ids that are looked at.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

FEW = 256  # ids that most draws are among


def draw(logits_BW: Float[Tensor, "B W"], top_p: float, uniform: Sequence[float]) -> Int[Tensor, " B"]:
    """One id a row by its probability, among the most probable that together have ``top_p`` (Holtzman et al., 2020).

    Args:
        uniform: a number in [0, 1) for each row; the same number and logits give the same id.
    """
    p_BW = logits_BW.double().softmax(-1)
    uniform_B = torch.tensor(uniform, dtype=torch.float64, device=p_BW.device)
    few = min(FEW, p_BW.shape[1])
    p_BF, id_BF = p_BW.topk(few)
    # Sorting a whole row takes longer than running a token. Nearly always the few most probable ids will do: they have
    # all that may be drawn, or where nothing is left out, more than the number that was drawn asks for.
    sum_B = p_BF.sum(-1)
    if top_p < 1:
        known_B, mass_B = sum_B >= top_p, None
    else:
        known_B, mass_B = uniform_B < sum_B - 1e-9, torch.ones_like(sum_B)
    chosen_B = _among(p_BF, id_BF, top_p, uniform_B, mass_B)
    if few < p_BW.shape[1] and not bool(known_B.all()):
        rest_B = ~known_B
        chosen_B[rest_B] = _among(*p_BW[rest_B].sort(-1, descending=True), top_p, uniform_B[rest_B])
    return chosen_B


def _among(
    p_BF: Float[Tensor, "B F"],
    id_BF: Int[Tensor, "B F"],
    top_p: float,
    uniform_B: Float[Tensor, " B"],
    mass_B: Float[Tensor, " B"] | None = None,
) -> Int[Tensor, " B"]:
    """One of the ids, which are sorted by their probabilities.

    Args:
        mass_B: what may be drawn has so much probability in all; None: these ids are all that may.
    """
    above_BF = p_BF.cumsum(-1)
    p_BF = p_BF.masked_fill(above_BF - p_BF >= top_p, 0.0)  # the first one always stays
    above_BF = p_BF.cumsum(-1)
    wanted_B = uniform_B * (above_BF[:, -1] if mass_B is None else mass_B)
    at_B = (above_BF <= wanted_B[:, None]).sum(-1)
    last_B = (p_BF > 0).sum(-1) - 1
    return id_BF.gather(1, torch.minimum(at_B, last_B)[:, None]).squeeze(1)
