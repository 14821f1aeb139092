"""How a model's matrices lie in memory while it writes: by columns, as products with few rows are faster then."""

import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def by_columns(model: PreTrainedModel) -> PreTrainedModel:
    """Lay the weights of every linear layer out by columns, in place; on a CPU alone. The values stay as they are.

    A product with few rows reads each weight once, and by rows the library copies them first: on one core a product of
    8 rows takes half of the time for a head of 49,152, of 64 rows three quarters for the layers of SmolLM2.
    Files want weights by rows: save no model after this.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.t().contiguous().t()
    return model
