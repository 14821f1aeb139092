"""A beginning that many rows share: run once and, where the model's attention allows, held once.

Reading the same keys and values again for every row is what makes few-shot prompts slow: for 32 rows after 700
shared tokens it is most of the work of a step. Here all rows' queries meet the shared columns in one product.

Shapes: B rows, T queries, H heads of keys, G queries' heads for each, D their width, S own columns, P shared columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kldistill.cache import Cache

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
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        plain = (
            getattr(config, "sliding_window", None) is None and getattr(config, "attn_logit_softcapping", None) is None
        )
        self.held_once = kinds == {"full_attention"} and plain and config._attn_implementation == "sdpa"

    @contextmanager
    def attended(self, model: PreTrainedModel) -> Iterator[None]:
        """Within it, every query of the model also sees the shared columns, which are before all others."""
        before = model.config.get_text_config()._attn_implementation
        token = _shared.set(self.cache)
        model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            model.set_attn_implementation(before)
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
    if shared is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    layer = shared.layers[module.layer_idx]  # type: ignore[index]
    assert layer.keys is not None and layer.values is not None
    key_HPD, value_HPD = layer.keys[0], layer.values[0]
    b, heads, t, d = query.shape
    h, s = key.shape[1], key.shape[2]
    g = heads // h
    scale = d**-0.5 if scaling is None else scaling
    query_BHQD = (query * scale).reshape(b, h, g * t, d)  # Q = G * T
    own_BHGTS = (query_BHQD @ key.transpose(2, 3)).view(b, h, g, t, s)
    if attention_mask is None and t > 1:
        attention_mask = torch.ones(t, s, dtype=torch.bool, device=query.device).tril(s - t)[None, None]
    if attention_mask is not None:
        own_BHGTS = own_BHGTS.masked_fill(~attention_mask[:, :, None, :, :s], -torch.inf)
    query_HND = query_BHQD.transpose(0, 1).reshape(h, b * g * t, d)  # N = B * Q
    theirs_HNP = query_HND @ key_HPD.transpose(1, 2)
    own_HNS = own_BHGTS.reshape(b, h, g * t, s).transpose(0, 1).reshape(h, b * g * t, s)
    weight_HNC = torch.cat([theirs_HNP, own_HNS], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    p = key_HPD.shape[1]
    found_HND = weight_HNC[..., :p] @ value_HPD
    own_BHQS = weight_HNC[..., p:].view(h, b, g * t, s).transpose(0, 1)
    found_BHQD = found_HND.view(h, b, g * t, d).transpose(0, 1) + own_BHQS @ value
    return found_BHQD.reshape(b, heads, t, d).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
