"""Attention of rows that are written, and a beginning that many of them share: run once and, where the model's
attention allows, held once.

Reading the same keys and values again for every row is what makes few-shot prompts slow: for 32 rows after 700
shared tokens it is most of the work of a step. Here all rows' queries meet the shared columns in one product. And
where several heads of queries share keys, they meet them in one product too: transformers copies keys and values for
each of them in every step, which for 64 rows takes longer than all else.

Shapes: B rows, H heads of keys, G heads of queries for each, D their width, S own columns, P shared columns, C both.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kldistill.evaluation.generation.cache import Cache

NAME = "kldistill_shared_prefix"
_shared: ContextVar[Cache | None] = ContextVar("shared", default=None)


class Prefix:
    """Ids that many prompts begin with, and their keys and values.

    Attributes:
        length: number of ids.
        held_once: whether rows can attend to it without a copy of their own: not where layers have a sliding window or
            an attention of their own kind.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, ids: Sequence[int]) -> None:
        self.length = len(ids)
        self.cache = Cache()
        row = torch.tensor([list(ids)], device=model.device)
        model(row, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.held_once = is_plain(model)


def is_plain(model: PreTrainedModel) -> bool:
    """Whether ``attend`` can take the place of the model's own attention."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = getattr(config, "sliding_window", None) is None and getattr(config, "attn_logit_softcapping", None) is None
    return kinds == {"full_attention"} and plain and config._attn_implementation in ("sdpa", NAME)


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the model attends by ``attend``, if it can."""
    if not is_plain(model):
        yield
        return
    before = model.config.get_text_config()._attn_implementation or "sdpa"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def seeing(prefix: Prefix | None) -> Iterator[None]:
    """Within it, queries of a model that attends by ``attend`` also see a prefix's columns, before all others."""
    token = _shared.set(None if prefix is None else prefix.cache)
    try:
        yield
    finally:
        _shared.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: softmax over shared and own columns together."""
    shared = _shared.get()
    b, heads, t, d = query.shape
    h, s = key.shape[1], key.shape[2]
    if shared is None:
        if t > 1:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        scale = d**-0.5 if scaling is None else scaling
        own_BHGS = (query * scale).view(b, h, heads // h, d) @ key.transpose(2, 3)
        if attention_mask is not None:
            own_BHGS = own_BHGS.masked_fill(~attention_mask[..., :s], -torch.inf)
        weight_BHGS = own_BHGS.softmax(-1, dtype=torch.float32).to(query.dtype)
        return (weight_BHGS @ value).reshape(b, 1, heads, d), None
    layer = shared.layers[module.layer_idx]  # type: ignore[index]
    assert layer.keys is not None and layer.values is not None
    p = layer.keys.shape[2]
    if t > 1:  # a prompt: here a copy for every row costs less than the weights of all queries at once
        if attention_mask is None:
            attention_mask = torch.ones(t, s, dtype=torch.bool, device=query.device).tril(s - t)[None, None]
        key = torch.cat([layer.keys.expand(b, -1, -1, -1), key], 2)
        value = torch.cat([layer.values.expand(b, -1, -1, -1), value], 2)
        mask = F.pad(attention_mask, (p, 0), value=True)
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
    key_HPD, value_HPD = layer.keys[0], layer.values[0]
    g = heads // h
    scale = d**-0.5 if scaling is None else scaling
    query_BHGD = (query * scale).view(b, h, g, d)
    own_BHGS = query_BHGD @ key.transpose(2, 3)
    if attention_mask is not None:
        own_BHGS = own_BHGS.masked_fill(~attention_mask[..., :s], -torch.inf)
    theirs_HNP = query_BHGD.transpose(0, 1).reshape(h, b * g, d) @ key_HPD.transpose(1, 2)  # N = B * G
    theirs_BHGP = theirs_HNP.view(h, b, g, p).transpose(0, 1)
    weight_BHGC = torch.cat([theirs_BHGP, own_BHGS], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    output_HND = weight_BHGC[..., :p].transpose(0, 1).reshape(h, b * g, p) @ value_HPD
    output_BHGD = output_HND.view(h, b, g, d).transpose(0, 1) + weight_BHGC[..., p:] @ value
    return output_BHGD.reshape(b, 1, heads, d), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
