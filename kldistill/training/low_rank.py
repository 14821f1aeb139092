"""A linear layer with a low-rank adapter (arXiv 2106.09685) in one step of autograd, for peft's plain LoRA layers.

peft adds the adapter's product to the layer's in operations of their own: the scaled product, the sum and, on the way
back, the same again each pass over all outputs of the layer once more. Here the small products are added in place.
The numbers are the same but for the order of their sums.

Shape suffixes: T tokens, I inputs, O outputs, R rank.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def join(view: nn.Module) -> int:
    """Let every layer of ``view`` that peft gave a plain LoRA adapter compute it in one step, in place.

    Layers whose adapter drops out, that are no ``nn.Linear`` or that use a variant of LoRA stay with peft.

    Returns:
        How many layers there are.
    """
    from peft.tuners.lora.layer import Linear

    layers = [module for module in view.modules() if type(module) is Linear and _is_plain(module)]
    for layer in layers:
        layer.__class__ = _one_step()  # a class, not a function a layer: so all are one function to a compiler, too
    return len(layers)


def _is_plain(layer: Any) -> bool:
    (name,) = layer.active_adapters
    return (
        type(layer.base_layer) is nn.Linear
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


@cache
def _one_step() -> Any:
    """The class of layers that compute it in one step; made when it is needed, as peft takes seconds to import."""
    from peft.tuners.lora.layer import Linear

    class OneStep(Linear):
        """peft's plain LoRA layer, with one adapter."""

        def forward(self, x: Float[Tensor, "*lead I"], *args: Any, **kwargs: Any) -> Float[Tensor, "*lead O"]:
            """What peft's own gives; that one runs where the adapter is off, merged, or of another type."""
            base, (name,) = self.base_layer, self.active_adapters
            down_RI, up_OR = self.lora_A[name].weight, self.lora_B[name].weight
            off = self.disable_adapters or self.merged or torch.is_autocast_enabled(x.device.type)
            if off or base.weight.requires_grad or not x.dtype == base.weight.dtype == down_RI.dtype:
                return super().forward(x, *args, **kwargs)
            y_TO = _LowRank.apply(x.flatten(0, -2), base.weight, base.bias, down_RI, up_OR, self.scaling[name])
            assert isinstance(y_TO, Tensor)
            return y_TO.unflatten(0, x.shape[:-1])

    return OneStep


class _LowRank(torch.autograd.Function):
    """x W' + b + scale (x A') B', for frozen W and b."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x_TI: Float[Tensor, "T I"],
        weight_OI: Float[Tensor, "O I"],
        bias_O: Float[Tensor, " O"] | None,
        down_RI: Float[Tensor, "R I"],
        up_OR: Float[Tensor, "O R"],
        scale: float,
    ) -> Float[Tensor, "T O"]:
        scaled_TR = (x_TI @ down_RI.t()) * scale
        y_TO = F.linear(x_TI, weight_OI, bias_O)
        # In place, as that saves a pass over all outputs; but torch 2.11 compiles a forward that changes a tensor in
        # place to one without a gradient. A product this thin is faster over rows that lie side by side.
        add = torch.addmm if torch.compiler.is_compiling() else Tensor.addmm_
        y_TO = add(y_TO, scaled_TR, up_OR.t().contiguous())
        ctx.save_for_backward(x_TI, weight_OI, down_RI, up_OR, scaled_TR)
        ctx.scale = scale
        return y_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> Any:  # type: ignore[override]
        x_TI, weight_OI, down_RI, up_OR, scaled_TR = ctx.saved_tensors
        d_TO = outputs[0]
        d_TR = (d_TO @ up_OR).mul_(ctx.scale)
        d_TI = None
        if ctx.needs_input_grad[0]:
            d_TI = (d_TO @ weight_OI).addmm_(d_TR, down_RI)
        return d_TI, None, None, d_TR.t() @ x_TI, (scaled_TR.t() @ d_TO).t(), None
