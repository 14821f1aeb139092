"""Rows beyond the tokenizer, for servers that want a vocabulary which a number divides.

V old vocabulary, W old and new tokens, H the height of both matrices, D width.
"""

import torch
from transformers import PreTrainedModel

from kldistill.rows.student import embedding_of, head_of


@torch.no_grad()
def pad(model: PreTrainedModel, multiple: int) -> int:
    """Round the height of embedding and head up to a ``multiple``; return the number of rows that this adds.

    No text has the ids of these rows. A linear head cannot forbid an id, so each gets the mean of all rows, whose logit
    is the mean of all logits: never above the largest, and its probability never above 1 / W (Jensen's inequality).
    They are not in ``suppress_tokens``: tokens that somebody adds to the folder get these ids, and would never appear.

    Args:
        model: has exactly W rows; changed in place, ``config.vocab_size`` too.
    """
    size = embedding_of(model).weight.shape[0]
    height = -(-size // multiple) * multiple
    if height == size:
        return 0
    model.resize_token_embeddings(height, mean_resizing=False)
    embedding, head = embedding_of(model), head_of(model)
    for matrix in {id(m): m for m in (embedding.weight, head.weight)}.values():
        matrix[size:] = matrix[:size].float().mean(dim=0).to(matrix.dtype)
    if head.bias is not None:
        head.bias[size:] = head.bias[:size].float().mean().to(head.bias.dtype)
    return height - size
