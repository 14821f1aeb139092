"""Attention of a packed pass: every token sees its own row, as far as the row goes.

Where several heads of queries share keys, they meet them in one product, and columns that all rows begin with are
held, and met, once.

Shapes: N tokens of a pass, R rows, T tokens of the row that has most of them, H heads of keys, G heads of queries for
each, D their width, S columns of a row, P columns that all rows share.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from kldistill.evaluation.generation.packed import Places

NAME = "kldistill_packed"
# What a layer may look at: everything before, or the last columns of it. Others keep states that cannot be cut short.
LAYERS = {"full_attention", "sliding_attention"}
places_of_the_pass: ContextVar["Places"] = ContextVar("places")


def fits(model: PreTrainedModel) -> bool:
    """Whether ``attend`` can take the place of the model's own attention.

    It does what flash attention is asked for, so models that can be run with that have handed it all they need.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return bool(model._supports_attention_backend and model._supports_flash_attn) and kinds <= LAYERS


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the model attends by ``attend``, if it can."""
    if not fits(model):
        yield
        return
    before = model.config.get_text_config()._attn_implementation or "eager"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface, for the pass of ``Places.run``: every query sees its own row, as far as it.

    Args:
        query: (1, H * G, N, D).
        key, value: of all rows, as ``Places.update`` gives them.
        sliding_window: columns that a query sees, its own included.
        softcap: bound of the scores (Gemma 2).
        s_aux: for each head of queries a score that takes part in the softmax and has no value (gpt-oss).
    """
    places = places_of_the_pass.get()
    heads, d = query.shape[1], query.shape[3]
    h, dv = key.shape[1], value.shape[3]
    g, p = heads // h, places.shared
    query_NHD = (query * (d**-0.5 if scaling is None else scaling))[0].transpose(0, 1)
    out_NHD = query.new_empty(query.shape[2], heads, dv)
    for group in places.groups:
        r, t = group.position_RT.shape
        # Q = T * G.
        query_RHQD = query_NHD[group.taken].view(r, t, h, g, d).transpose(1, 2).reshape(r, h, t * g, d)
        key_RHSD, value_RHSD = (states[group.rows, :, : group.width] for states in (key, value))
        score_RHQC = query_RHQD @ key_RHSD.transpose(2, 3)
        if p:
            key_HPD, value_HPD = places.prefixes[module.layer_idx]  # type: ignore[index]
            theirs = query_RHQD.transpose(0, 1).reshape(h, r * t * g, d) @ key_HPD.transpose(1, 2)
            score_RHQC = torch.cat([theirs.view(h, r, t * g, p).transpose(0, 1), score_RHQC], -1)
        if softcap is not None:
            score_RHQC = torch.tanh(score_RHQC / softcap) * softcap
        score_RHTGC = score_RHQC.view(r, h, t, g, p + group.width)
        score_RHTGC = score_RHTGC + group.bias(sliding_window, p, score_RHTGC)
        if s_aux is not None:
            sink = s_aux.to(score_RHTGC.dtype).view(1, h, 1, g, 1).expand(r, -1, t, -1, -1)
            score_RHTGC = torch.cat([score_RHTGC, sink], -1)
        weight = score_RHTGC.softmax(-1, dtype=torch.float32).to(query.dtype)[..., : p + group.width]
        weight_RHQC = weight.reshape(r, h, t * g, p + group.width)
        out_RHQD = weight_RHQC[..., p:] @ value_RHSD
        if p:
            theirs = weight_RHQC[..., :p].transpose(0, 1).reshape(h, r * t * g, p) @ value_HPD
            out_RHQD = out_RHQD + theirs.view(h, r, t * g, dv).transpose(0, 1)
        out_NHD[group.tokens] = out_RHQD.view(r, h, t, g, dv).transpose(1, 2).reshape(r * t, heads, dv)[group.back]
    return out_NHD[None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
