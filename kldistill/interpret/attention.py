"""How much later positions attend to a new token, against what they give to all its pieces in the original model.

The original's attention is summed over the pieces of each student token. Then both are distributions over the same
spans of text, seen from the same boundaries, and can be compared layer by layer.

Shape suffixes: L attention layers, H heads, A student tokens, B teacher tokens, P common boundaries.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kldistill.interpret.contexts import Context
from kldistill.rows.student import Student
from kldistill.runtime.errors import ModelError

REACH = 32  # student tokens after the new one that are looked at: later ones hardly attend to it


@contextmanager
def eager(student: Student) -> Iterator[None]:
    """Let the model compute its attention so that the weights can be had; afterwards as before."""
    before = student.model.config._attn_implementation or "eager"
    student.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        student.model.set_attn_implementation(before)


@torch.no_grad()
def maps(student: Student, ids: Sequence[int]) -> Float[Tensor, "L H T T"]:
    """All attention weights on one text: row i is what position i gives to each position. Call it under ``eager``.

    Raises:
        ModelError: the family gives no weights of the usual shape (it has no softmax attention, or hides it).
    """
    device = student.embedding.weight.device
    output = student.body(
        inputs_embeds=student.embed(torch.tensor([list(ids)], device=device)), use_cache=False, output_attentions=True
    )
    layers = [layer for layer in getattr(output, "attentions", None) or () if layer is not None]
    wrong = [layer for layer in layers if layer.ndim != 4 or layer.shape[-2:] != (len(ids), len(ids))]
    if not layers or wrong:
        raise ModelError(
            f"{student.model.config.model_type}: transformers gives no attention weights between all positions for "
            "this family."
        )
    return torch.stack([layer[0].float() for layer in layers])


def pooled(teacher_LHBB: Float[Tensor, "L H B B"], context: Context) -> Float[Tensor, "L H P A"]:
    """The teacher's attention from the common boundaries, summed over the pieces of each student token.

    Every student token must end where a piece ends.
    """
    a = context.alignment
    owner_B = _owners(context).to(teacher_LHBB.device)
    rows = teacher_LHBB[:, :, a.teacher_row.to(teacher_LHBB.device)]
    return rows.new_zeros(*rows.shape[:3], len(context.new_ids)).index_add(3, owner_B, rows)


def _owners(context: Context) -> Int[Tensor, " B"]:
    """The student token that each piece lies in. What follows the last boundary belongs to the last token."""
    ends = torch.cat([context.alignment.teacher_row, torch.tensor([len(context.old_ids) - 1])])
    return torch.searchsorted(ends, torch.arange(len(context.old_ids)))


def measure(student_LHAA: Tensor, teacher_LHBB: Tensor, context: Context) -> dict[str, Float[np.ndarray, "L n"]]:
    """Compare one text's attention.

    Returns:
        For each pair of a new token and a later boundary at most ``REACH`` student tokens on, means over heads:
        ``student``, the share of its attention that the student gives to the token; ``pieces`` and ``last_piece``, what
        the teacher gives to all its pieces, and to the last. For each boundary after the first new token,
        ``variation``: half the summed differences over all spans (total variation), mean over heads.
    """
    a = context.alignment
    rows = a.student_row.to(student_LHAA.device)
    student_LHPA, teacher_LHPA = student_LHAA[:, :, rows], pooled(teacher_LHBB, context)
    first = next(i for i, token in enumerate(context.new_ids) if token >= a.old_size)
    differences_LP = (student_LHPA - teacher_LHPA).abs().sum(-1).mean(1) / 2
    shares: dict[str, list[Tensor]] = {"student": [], "pieces": [], "last_piece": []}
    for token_row, token in enumerate(context.new_ids):
        later = (a.student_row > token_row) & (a.student_row <= token_row + REACH)
        if token < a.old_size or not later.any():
            continue
        last = int(a.teacher_row[a.student_row == token_row][0])
        shares["student"].append(student_LHPA[:, :, later, token_row].mean(1))
        shares["pieces"].append(teacher_LHPA[:, :, later, token_row].mean(1))
        shares["last_piece"].append(teacher_LHBB[:, :, a.teacher_row[later], last].mean(1))
    # No column at all where the last token is the only new one.
    none = differences_LP[:, :0]
    pairs = {key: torch.cat([none, *parts], dim=1) for key, parts in shares.items()}
    return {
        key: value.double().cpu().numpy()
        for key, value in {**pairs, "variation": differences_LP[:, rows > first]}.items()
    }


def usable(context: Context) -> bool:
    """Whether every student token ends where a piece ends, so that spans can be compared."""
    return context.alignment.n_left_out == 0


def summarise(parts: Sequence[dict[str, Float[np.ndarray, "L n"]]]) -> dict[str, Any]:
    """Means per layer, and ``ratio``: all attention that new tokens get over all that their pieces got."""
    joined = {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}
    means = {key: values.mean(axis=1) for key, values in joined.items()}
    return {
        "pairs": int(joined["student"].shape[1]),
        **{key: values.tolist() for key, values in means.items()},
        "ratio": float(means["student"].sum() / means["pieces"].sum()),
        "ratio_by_layer": (means["student"] / means["pieces"]).tolist(),
        "last_piece_share": float(means["last_piece"].sum() / means["pieces"].sum()),
        "mean_variation": float(means["variation"].mean()),
    }
