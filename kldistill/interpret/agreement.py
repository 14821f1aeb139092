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

_TIE = 1e-9  # cosines of equal states differ by rounding


def measure(
    teacher: Float[Tensor, "K P D"],
    student: Float[Tensor, "K P D"],
    tokens: Sequence[int],
    rivals: Float[Tensor, "K R D"],
    use_of_rival: Sequence[int],
) -> dict[str, Float[np.ndarray, "K P"]]:
    """Agreement of each use (at least two) at each layer.

    Args:
        tokens: the new token of each use.
        rivals: the teacher's states at other places that have the same last piece, and the use that each rivals.

    Returns:
        ``cosine``; ``centred``, the centred cosine; ``distance``, |student - teacher| / |teacher|; ``nearest``, 1 where
        no other use's teacher state is nearer in centred cosine than the use's own; ``others``, the mean centred cosine
        to the teacher's states at uses of *other* tokens (what chance gives; not a number where all are of one);
        ``ahead``, 1 where the use's own state is nearer than all its rivals' (not a number without a rival).
    """
    assert teacher.shape == student.shape and teacher.shape[1] == len(tokens) >= 2
    measured: dict[str, list[Tensor]] = {}
    token_P = torch.tensor(list(tokens), device=teacher.device)
    rival_R = torch.tensor(list(use_of_rival), dtype=torch.int64, device=teacher.device)
    has_rival_P = torch.bincount(rival_R, minlength=len(tokens)) > 0
    other_PP: Bool[Tensor, "P P"] = token_P[:, None] != token_P[None, :]
    for raw_t, raw_s, raw_r in zip(teacher, student, rivals, strict=True):
        t_PD, s_PD, r_RD = raw_t.double(), raw_s.double(), raw_r.double()
        centre_D = t_PD.mean(0)
        between_PP = F.normalize(s_PD - centre_D, dim=-1) @ F.normalize(t_PD - centre_D, dim=-1).T
        own_P = between_PP.diagonal()
        to_rival_R = F.cosine_similarity(s_PD[rival_R] - centre_D, r_RD - centre_D, dim=-1)
        best_P = torch.full_like(own_P, -torch.inf).scatter_reduce(0, rival_R, to_rival_R, "amax")
        ahead_P = (own_P > best_P + _TIE).double()
        values = {
            "cosine": F.cosine_similarity(s_PD, t_PD, dim=-1),
            "centred": own_P,
            "distance": (s_PD - t_PD).norm(dim=-1) / t_PD.norm(dim=-1),
            # Uses of one token have one embedding, so at layer 0 ties are the rule; a tie is no nearer other.
            "nearest": (between_PP <= own_P[:, None] + _TIE).all(-1),
            "ahead": ahead_P.masked_fill(~has_rival_P, torch.nan),
            "others": (between_PP * other_PP).sum(-1) / other_PP.sum(-1),
        }
        for key, value_P in values.items():
            measured.setdefault(key, []).append(value_P.double().cpu())
    return {key: torch.stack(rows).numpy() for key, rows in measured.items()}


def detokenised(ahead: Float[np.ndarray, "K P"]) -> Int[np.ndarray, " P"]:
    """For each use that has rivals, the layer at which the student has *detokenised* the word; -1 for never.

    That is the first layer from which on, up to the last, its state at the new token is nearer (in centred cosine) to
    the teacher's state at this very word than to any of the teacher's states at other places with the same last piece.
    At the embedding the teacher's states tie, as it has read nothing but the last piece there; with learned positions
    they differ by these alone.
    """
    return lasting_from(ahead[:, np.isfinite(ahead).all(axis=0)] > 0)


def summarise(measured: dict[str, Float[np.ndarray, "K P"]]) -> dict[str, Any]:
    """Curves over layers, and the layer at which words are detokenised: its median over the uses that are."""
    layers = detokenised(measured["ahead"])
    done = layers[layers >= 0]
    rivalled = measured["ahead"][:, np.isfinite(measured["ahead"]).all(axis=0)]
    curves = {**measured, "ahead": rivalled}
    return {
        **{key: per_layer(values) for key, values in curves.items() if values.size and np.isfinite(values).all()},
        "rivalled_uses": len(layers),
        "detokenised_layer": float(np.median(done)) if len(done) else None,
        "detokenised_share": float(len(done) / len(layers)) if len(layers) else None,
    }
