"""The adapter's products in one step are peft's own, and peft does them itself where they are something else."""

from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from kldistill.training import adapters, low_rank
from kldistill.training.config import LoraConfig
from tests.helpers.artifacts import MakeModel


class Body(nn.Module):
    """Two layers of which the first has a bias; the second is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.second(torch.tanh(self.first(x)))))


def adapted(dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[Any, list[Linear]]:
    """A body whose adapter has already learnt something, in peft's hands, and the adapter's layers."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 7.0, "target_modules": ["first", "second"], **settings})
    view = peft.get_peft_model(Body().to(dtype), config).to(dtype)  # type: ignore[arg-type]
    layers = [module for module in view.modules() if isinstance(module, Linear)]
    for layer in layers:
        nn.init.normal_(layer.lora_B["default"].weight)
    return view, layers


def loss_and_gradients(view: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    x = torch.randn(2, 4, 6, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = view(x).square().sum()
    learns = [parameter for parameter in view.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, [x, *learns])]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"target_modules": ["second"]}])
def test_loss_and_gradients_are_those_of_peft(settings: dict[str, Any]) -> None:
    view, layers = adapted(**settings)
    expected = loss_and_gradients(view)
    assert low_rank.join(view) == len(layers)
    found = loss_and_gradients(view)
    assert len(found) == 2 + 2 * len(layers)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with view.disable_adapter():
        assert not torch.allclose(loss_and_gradients(view)[0], expected[0])


def test_the_layer_is_one_step_of_autograd_and_holds_no_output_of_the_adapter() -> None:
    """peft keeps an output of the adapter's second product and its scaled copy; here nothing of the output's size."""
    view, layers = adapted()
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    low_rank.join(view)
    x = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layers[0](x)
    assert sorted(kept) == sorted([(8, 6), (5, 6), (3, 6), (5, 3), (8, 3)])
    assert "_LowRank" in type(y.grad_fn.next_functions[0][0]).__name__


def test_every_layer_of_a_body_that_learns_is_one(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model())
    student = Student(model, Rows(torch.zeros(0, model.config.hidden_size)), model.config.vocab_size)
    view = adapters.add_adapter(student, LoraConfig(r=2))
    layers = [module for module in view.modules() if isinstance(module, Linear)]
    assert len(layers) == 7 * model.config.num_hidden_layers
    for layer in layers:
        y = layer(torch.randn(3, layer.in_features))
        assert "_LowRank" in type(y.grad_fn.next_functions[0][0]).__name__


def test_an_input_without_a_gradient_gets_none() -> None:
    view, layers = adapted()
    low_rank.join(view)
    x = torch.randn(3, 6, dtype=torch.float64)
    layers[0](x).sum().backward()
    assert x.grad is None and layers[0].lora_A["default"].weight.grad is not None


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")  # the layers of the test have none
def test_what_is_not_plain_stays_with_peft() -> None:
    for settings in ({"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}):
        view, layers = adapted(**settings)
        before = [layer.forward for layer in layers]
        assert low_rank.join(view) == 0
        assert [layer.forward for layer in layers] == before


def test_mixed_precision_stays_with_peft() -> None:
    view, _ = adapted(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(view, torch.float32)
        low_rank.join(view)
        assert all(torch.equal(*pair) for pair in zip(loss_and_gradients(view, torch.float32), expected, strict=True))
