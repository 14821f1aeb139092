"""How near the student's state at a new token is to the teacher's at the token's last piece, layer by layer.

Both states have read the same text, so they should come to mean the same; at layer 0 the teacher's knows the last piece
alone. States of one layer all share a large common direction, so their plain cosine is high whatever they mean. The
*centred* cosine takes the teacher's mean over the uses off both first: states of unrelated uses are then at about 0.

Shape suffixes: K states, P uses, D width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from kldistill.interpret.layers import lasting_from, per_layer


def measure(
    teacher: Float[Tensor, "K P D"], student: Float[Tensor, "K P D"], tokens: Sequence[int]
) -> dict[str, Float[np.ndarray, "K P"]]:
    """Agreement of each use (at least two) at each layer.

    Returns:
        ``cosine``; ``centred``, the centred cosine; ``distance``, |student - teacher| / |teacher|; ``nearest``, 1 where
        no other use's teacher state is nearer in centred cosine than the use's own; ``others``, the mean centred cosine
        to the teacher's states at uses of *other* tokens (what chance gives; not a number where all are of one).
    """
    assert teacher.shape == student.shape and teacher.shape[1] == len(tokens) >= 2
    found: dict[str, list[Tensor]] = {}
    token_P = torch.tensor(list(tokens), device=teacher.device)
    other_PP: Bool[Tensor, "P P"] = token_P[:, None] != token_P[None, :]
    for raw_t, raw_s in zip(teacher, student, strict=True):
        t_PD, s_PD = raw_t.double(), raw_s.double()
        centre_D = t_PD.mean(0)
        between_PP = F.normalize(s_PD - centre_D, dim=-1) @ F.normalize(t_PD - centre_D, dim=-1).T
        own_P = between_PP.diagonal()
        values = {
            "cosine": F.cosine_similarity(s_PD, t_PD, dim=-1),
            "centred": own_P,
            "distance": (s_PD - t_PD).norm(dim=-1) / t_PD.norm(dim=-1),
            # Uses of one token have one embedding, so at layer 0 ties are the rule; a tie is no nearer other.
            "nearest": (between_PP <= own_P[:, None] + 1e-9).all(-1),
            "others": (between_PP * other_PP).sum(-1) / other_PP.sum(-1),
        }
        for key, value_P in values.items():
            found.setdefault(key, []).append(value_P.double().cpu())
    return {key: torch.stack(rows).numpy() for key, rows in found.items()}


def detokenised(nearest: Float[np.ndarray, "K P"]) -> Int[np.ndarray, " P"]:
    """For each use, the layer at which the student has *detokenised* the word: the first from which on, up to the last,
    its state is nearest to the teacher's state at this very use, among the teacher's states at all uses; -1 for never.

    The embedding does not count (the least answer is 1): there the teacher's state knows the last piece alone.
    """
    layers = lasting_from(nearest[1:] > 0)
    return np.where(layers < 0, -1, layers + 1)


def summarise(found: dict[str, Float[np.ndarray, "K P"]]) -> dict[str, Any]:
    """Curves over layers, and the layer at which words are detokenised: its median over the uses that are."""
    layers = detokenised(found["nearest"])
    done = layers[layers > 0]
    return {
        **{key: per_layer(values) for key, values in found.items() if np.isfinite(values).all()},
        "detokenised_layer": float(np.median(done)) if len(done) else None,
        "detokenised_share": float(len(done) / len(layers)),
    }
