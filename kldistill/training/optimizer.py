"""AdamW for the rows of an embedding: it can move only those that a step has seen, and let each learn from the others.

Shape suffixes: N rows, D width, F features.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from kldistill.training.shared_map import SharedMap


class LazyAdamW(torch.optim.AdamW):
    """AdamW (arXiv 1711.05101) whose row-wise parameters are updated lazily: a row that the step has not seen keeps its
    value and its moments, and bias is corrected by how often *that row* was updated.

    Why: Adam divides a gradient by its own usual size. A token that is not in the batch still gets a tiny gradient from
    the softmax at every step, which Adam blows up to a full step of the learning rate, in a direction that is mostly
    noise; and a token that is seen once in fifty steps would move on its stale moments in between. ``SparseAdam`` of
    torch leaves such rows alone too, but corrects every row's bias by the global number of steps, so the first update
    of a rare row is about three times too large.

    Set ``seen`` before ``step``; parameters that are not in it are updated as AdamW does.

    Rows in ``shared`` are trained as R = own + F W': ``own`` is what each row learns for itself, as above; the map W,
    of shape (D, F), starts at 0 and is common to all of them, so that a row also moves by what the text of others has
    shown. Its gradient is G' F, with G that of R (of the rows that were seen alone, where ``seen`` says which), and it
    has moments of its own. R itself is all that is kept of the two, so whoever reads the rows, saves them or averages
    their gradients needs to know nothing of the map.
    """

    def __init__(
        self, *arguments: Any, shared: Mapping[nn.Parameter, SharedMap] | None = None, **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        self.seen: dict[nn.Parameter, Bool[Tensor, " N"]] = {}
        self.shared = dict(shared or {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        assert closure is None, "a closure would run before the rows are known"
        held: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                seen_N = self.seen.get(parameter)
                if seen_N is not None and parameter.grad is not None:
                    self._step_rows(parameter, seen_N, group)
                    held.append((parameter, parameter.grad))
                    parameter.grad = None  # so that the loop below passes over it
        result = super().step()
        for parameter, gradient in held:
            parameter.grad = gradient
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self.shared and parameter.grad is not None:
                    self._step_map(parameter, self.shared[parameter], group)
        return result

    def _step_map(self, parameter: nn.Parameter, of: SharedMap, group: dict[str, Any]) -> None:
        """Adam's update of the map that these rows share, added to the rows."""
        assert parameter.grad is not None
        state = self.state[parameter]
        seen_N = self.seen.get(parameter)
        gradient_ND = parameter.grad if seen_N is None else parameter.grad * seen_N.unsqueeze(1)
        gradient_DF = gradient_ND.t() @ of.features_NF
        if "map_step" not in state:
            state["map_step"] = torch.zeros(())
            state["map_exp_avg"] = torch.zeros_like(gradient_DF)
            state["map_exp_avg_sq"] = torch.zeros_like(gradient_DF)
        state["map_step"] += 1
        moments = (state["map_exp_avg"], state["map_exp_avg_sq"])
        unbiased_DF, scale_DF = _adam(gradient_DF, *moments, state["map_step"].item(), group)
        rate = of.share * group["lr"] / group["factor"]
        parameter.addmm_(of.features_NF, unbiased_DF.div_(scale_DF).t(), alpha=-rate)

    def _step_rows(self, parameter: nn.Parameter, seen_N: Bool[Tensor, " N"], group: dict[str, Any]) -> None:
        """Adam's update of the rows that were seen; weight decay is decoupled."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(len(parameter), device=parameter.device)  # updates of each row
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        rows = seen_N.nonzero().squeeze(1)
        gradient = parameter.grad[rows]
        state["step"][rows] += 1
        first, second = state["exp_avg"][rows], state["exp_avg_sq"][rows]
        unbiased, scale = _adam(gradient, first, second, state["step"][rows].unsqueeze(1), group)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
        kept = parameter[rows] * (1 - group["lr"] * group["weight_decay"])
        parameter[rows] = kept - group["lr"] * unbiased / scale


def _adam(
    gradient: Tensor, first: Tensor, second: Tensor, count: Tensor | float, group: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Both moments with this gradient, in place; the unbiased first, and what Adam divides it by (arXiv 1412.6980,
    algorithm 1) after ``count`` updates.
    """
    beta1, beta2 = group["betas"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    return first / (1 - beta1**count), (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
