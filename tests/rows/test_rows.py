"""One frozen model with two vocabularies.

Trick used throughout: call V' = 500 of the tiny models' 512 tokens old and the other 12 new. With the model's own rows
for those, the student must be the model itself.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from kldistill.runtime.errors import ArtifactError, ModelError
from tests.helpers.artifacts import FAMILIES, MakeModel

OLD, ALL = 500, 512


def own_rows(model, tied: bool) -> Rows:
    """The model's rows of its last tokens."""
    inner = model.get_input_embeddings().weight[OLD:ALL]
    return Rows(inner, None if tied else model.get_output_embeddings().weight[OLD:ALL])


def some_ids(shape: tuple[int, int], below: int = ALL) -> torch.Tensor:
    ids = torch.randint(below, shape, generator=torch.Generator().manual_seed(1))
    ids[0, 0], ids[-1, -1] = min(OLD, below - 1), below - 1  # the first and the last new token are always there
    return ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_with_the_models_own_rows_the_student_is_the_model(family: str, tied: bool, tiny_model: MakeModel) -> None:
    model = load_original(tiny_model(family, tied=tied))
    student = Student(model, own_rows(model, tied), OLD)
    ids = some_ids((2, 9))
    expected = model(ids).logits[..., :ALL]
    hidden = student.hidden(ids, torch.ones_like(ids))
    assert torch.allclose(student.logits(hidden), expected, atol=1e-5)
    assert torch.allclose(student.logits_old(hidden[0]), expected[0, :, :OLD], atol=1e-5)
    assert student.new_size == ALL


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_changes_nothing(family: str, tiny_model: MakeModel) -> None:
    model = load_original(tiny_model(family))
    student = Student(model, own_rows(model, True), OLD)
    ids = some_ids((2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    alone = student.hidden(ids[1:, :5])
    padded = student.hidden(ids * mask, mask)
    assert torch.allclose(padded[1, :5], alone[0], atol=1e-5)
    with pytest.raises(AssertionError, match="right"):
        student.hidden(ids, mask.flip(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_new_rows_and_nothing_else(family: str, tiny_model: MakeModel) -> None:
    model = load_original(tiny_model(family))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = own_rows(model, tied=False)
    student = Student(model, rows, OLD).train()
    optimizer = torch.optim.AdamW(student.rows.parameters(), lr=0.1)
    ids = some_ids((2, 9))
    student.logits(student.hidden(ids)).logsumexp(-1).sum().backward()
    assert {name for name, p in student.named_parameters() if p.grad is not None} == {"rows.input", "rows.output"}
    used = set((ids[ids >= OLD] - OLD).tolist())
    assert set(rows.input.grad.abs().sum(1).nonzero().flatten().tolist()) == used
    assert (rows.output.grad.abs().sum(1) > 0).all()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_gradient_of_an_input_row_is_right(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model("gemma2")).double()
    rows = own_rows(model, True).double()
    student = Student(model, rows, OLD)
    ids = some_ids((1, 5))

    def value() -> torch.Tensor:
        return student.logits(student.hidden(ids)).logsumexp(-1).sum()

    value().backward()
    step = 1e-3  # norms and softmax of the model stay in float32, so a smaller one drowns in rounding
    for place in ((0, 0), (11, 7)):
        with torch.no_grad():
            rows.input[place] += step
            above = value()
            rows.input[place] -= 2 * step
            slope = (above - value()) / (2 * step)
            rows.input[place] += step
        assert torch.isclose(slope, rows.input.grad[place], rtol=1e-2, atol=1e-3)


def test_the_body_never_drops_out(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model("gpt2"))  # GPT-2 has dropout 0.1
    student = Student(model, own_rows(model, True), OLD).train()
    ids = some_ids((1, 9))
    assert student.rows.training and not model.training
    assert torch.equal(student.hidden(ids), student.hidden(ids))


def test_a_head_with_a_bias_gives_new_tokens_the_mean_bias(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model("llama", tied=False))
    model.lm_head.bias = torch.nn.Parameter(torch.arange(576.0), requires_grad=False)
    student = Student(model, own_rows(model, False), OLD)
    zero = torch.zeros(1, 32)
    assert torch.equal(student.logits(zero)[0, :OLD], torch.arange(500.0))
    assert torch.equal(student.logits(zero)[0, OLD:], torch.full((12,), 249.5))


def test_a_bfloat16_model_keeps_float32_rows(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model("gemma3")).bfloat16()
    student = Student(model, own_rows(model, True), OLD)
    ids = some_ids((1, 9))
    logits = student.logits(student.hidden(ids))
    assert student.rows.input.dtype == torch.float32
    assert torch.allclose(logits, model(ids).logits[..., :ALL], atol=0.05)
    logits.sum().backward()
    assert student.rows.input.grad is not None


def test_a_family_that_does_more_than_it_says_is_refused(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model("llama"))
    own = model.forward

    def warped(*args, **kwargs):
        result = own(*args, **kwargs)
        result.logits = result.logits * 1.5
        return result

    model.forward = warped
    with pytest.raises(ModelError, match="llama"):
        Student(model, own_rows(model, True), OLD)


def test_more_tokens_than_rows_are_refused(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model("llama"))
    with pytest.raises(ModelError, match=r"576 rows.*600 ids"):
        Student(model, own_rows(model, True), 600)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_survive_a_file_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    rows = Rows(torch.randn(3, 4), None if tied else torch.randn(3, 4), {"input": "mean", "output": "random"})
    rows.save(tmp_path)
    again = Rows.load(tmp_path)
    assert again.tied is tied
    assert again.made_by == {"input": "mean", "output": "random"}
    assert torch.equal(again.input, rows.input)
    assert torch.equal(again.head, rows.head)
    assert (again.head is again.input) is tied


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    Rows(torch.randn(3, 4)).save(tmp_path)
    save_file({"input": torch.randn(3, 4), "output": torch.randn(3, 4)}, tmp_path / "rows.safetensors")
    with pytest.raises(ArtifactError, match="disagree"):
        Rows.load(tmp_path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Rows.load(tmp_path / "nowhere")
