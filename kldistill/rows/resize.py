"""Make a model of transformers larger by the new rows, so that any program can load and save it.

V old vocabulary, W old and new tokens.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from kldistill.rows.rows import Rows
from kldistill.rows.student import Student, embedding_of, head_of, new_bias


@torch.no_grad()
def extend(model: PreTrainedModel, rows: Rows, old_size: int) -> PreTrainedModel:
    """Give ``model`` itself the new rows: ids below ``old_size`` keep theirs, padding beyond goes, new rows follow."""
    Student(model, rows, old_size)  # its self-check: body and head as kldistill trained them are the model's own
    embedding, head = embedding_of(model), head_of(model)
    tied = head.weight is embedding.weight
    if tied and not rows.tied:
        untie(model, head)
    dtype, bias = embedding.weight.dtype, None if head.bias is None else new_bias(head.bias, old_size)
    # Shrinks or grows both matrices, the bias and the config alike, and ties again what is tied.
    model.resize_token_embeddings(old_size + rows.input.shape[0], mean_resizing=False)
    embedding, head = embedding_of(model), head_of(model)
    embedding.weight[old_size:] = rows.input.to(dtype)
    if head.weight is not embedding.weight:
        head.weight[old_size:] = rows.head.to(dtype)
    if bias is not None:
        head.bias[old_size:] = bias
    _allow(model, old_size)
    return model


def _allow(model: PreTrainedModel, old_size: int) -> None:
    """Forbid no new token: folders with padding may forbid its ids in generation, which are the new tokens' now."""
    config = model.generation_config
    for name in ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"):
        forbidden = getattr(config, name, None)
        if forbidden:  # ids, or sequences of them
            kept = [ids for ids in forbidden if max(ids if isinstance(ids, list) else [ids]) < old_size]
            setattr(config, name, kept or None)


def untie(model: PreTrainedModel, head: nn.Linear) -> None:
    """Give the head a matrix of its own, for good."""
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    # Computed once at construction from the config: what transformers ties when it resizes or saves.
    if hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = cast(Any, model).get_expanded_tied_weights_keys(all_submodels=True)
