"""The logit lens (nostalgebraist, 2020): what both models would predict if they stopped at a layer.

The head reads each layer's state through the final norm. The student's prediction is brought to the old vocabulary by
summing, for each old piece, over all tokens that start with it (the group mass Q of docs/method.md), so that both are
distributions over the next *piece*. Pieces that cannot follow are taken out of the teacher's, at every layer.

Shape suffixes: K states, P places, D width, V old vocabulary, W new vocabulary, J subtree memberships.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kldistill.interpret.contexts import Place
from kldistill.interpret.layers import Layers, lasting_from, per_layer
from kldistill.losses.kl import log_masses
from kldistill.tokens.pieces import PieceTable

_TINY = torch.finfo(torch.float32).tiny
_NEVER = -1e4  # a logit whose probability is 0, but whose products with 0 are 0


class Reading(NamedTuple):
    """A model and its states at some places, all layers."""

    layers: Layers
    states: Float[Tensor, "K P D"]


# What is measured of each model, layer by layer and place by place, shape (K, P).
Curves = dict[str, Float[np.ndarray, "K P"]]


def measure(
    teacher: Reading, students: Mapping[str, Reading], places: Sequence[Place], pieces: PieceTable
) -> dict[str, Curves]:
    """Read every layer of the teacher (key ``original``) and of the students.

    Each model has ``rank`` (from 1) and ``probability`` of the piece that follows, and ``to_final``, the KL in nats of
    the teacher's last prediction to this one. A student also has ``token_rank`` and ``token_probability`` of its own
    next token among all its tokens, ``js`` (Jensen-Shannon divergence in nats, at most ln 2) and ``same_top`` (1 where
    both think the same piece likeliest) against the teacher at the same layer.
    """
    device = teacher.states.device
    piece_P = torch.tensor([place.piece for place in places], device=device)
    token_P = torch.tensor([place.token for place in places], device=device)
    pairs = [(row, piece) for row, place in enumerate(places) for piece in place.forbidden]
    forbidden = torch.tensor(pairs, dtype=torch.int64, device=device).reshape(-1, 2).unbind(1)
    owner_J, member_J = (torch.from_numpy(ids).to(device) for ids in (pieces.mass_owner, pieces.mass_member))
    final_PV = _teacher(teacher, -1, forbidden)
    made: dict[str, dict[str, list[Tensor]]] = {name: {} for name in ("original", *students)}

    def add(name: str, **values: Tensor) -> None:
        for key, value_P in values.items():
            made[name].setdefault(key, []).append(value_P.double().cpu())

    for k in range(len(teacher.states)):
        log_p_PV = _teacher(teacher, k, forbidden)
        add("original", **_of_piece(log_p_PV, piece_P), to_final=_kl(final_PV, log_p_PV))
        for name, student in students.items():
            log_q_PW = torch.log_softmax(student.layers.logits(student.states[k]), -1)
            log_Q_PV = log_masses(log_q_PW, owner_J, member_J)[:, : pieces.old_size]
            own = {f"token_{key}": value for key, value in _of_piece(log_q_PW, token_P).items()}
            same_top = log_p_PV.argmax(-1) == log_Q_PV.argmax(-1)
            to_final = _kl(final_PV, log_Q_PV)
            add(name, **_of_piece(log_Q_PV, piece_P), **own, to_final=to_final, js=_js(log_p_PV, log_Q_PV))
            add(name, same_top=same_top)
    return {name: {key: torch.stack(rows).numpy() for key, rows in lists.items()} for name, lists in made.items()}


def summarise(curves: Mapping[str, Curves]) -> dict[str, Any]:
    """The curves over layers, and where the students meet the teacher.

    A student meets the teacher at the first layer from which on, up to the last, both think the same piece likeliest.
    ``meeting_layer`` is the median over the uses where they do, and ``meeting_share`` is the share of those uses.
    """
    summary: dict[str, Any] = {}
    for name, own in curves.items():
        summary[name] = {key: per_layer(values) for key, values in own.items()}
        if "same_top" in own:
            meets = lasting_from(own["same_top"] > 0)
            met = meets[meets >= 0]
            summary[name]["meeting_layer"] = float(np.median(met)) if len(met) else None
            summary[name]["meeting_share"] = float(len(met) / len(meets))
    return summary


def _teacher(teacher: Reading, k: int, forbidden: Sequence[Tensor]) -> Float[Tensor, "P V"]:
    logits_PV = teacher.layers.logits_old(teacher.states[k])
    logits_PV[forbidden[0], forbidden[1]] = _NEVER
    return torch.log_softmax(logits_PV, -1)


def _of_piece(log_p_PX: Float[Tensor, "P X"], id_P: Int[Tensor, " P"]) -> dict[str, Tensor]:
    own_P1 = log_p_PX.gather(1, id_P[:, None])
    return {"rank": 1 + (log_p_PX > own_P1).sum(-1), "probability": own_P1[:, 0].exp()}


def _kl(log_p: Float[Tensor, "P V"], log_q: Float[Tensor, "P V"]) -> Float[Tensor, " P"]:
    return torch.linalg.vecdot(log_p.exp(), log_p - log_q)


def _js(log_p: Float[Tensor, "P V"], log_q: Float[Tensor, "P V"]) -> Float[Tensor, " P"]:
    p, q = log_p.exp(), log_q.exp()
    middle = ((p + q) / 2).clamp_min(_TINY).log()
    return (torch.linalg.vecdot(p, log_p - middle) + torch.linalg.vecdot(q, log_q - middle)) / 2
