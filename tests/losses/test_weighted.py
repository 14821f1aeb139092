"""The chunked weighted sum against the plain sum over whole matrices of logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kldistill.losses import ce, kl
from kldistill.losses.alignment import Alignment, align
from kldistill.losses.chunks import chunks, concatenate
from kldistill.losses.weighted import Term, chunked
from kldistill.tokens.pieces import PieceTable
from tests.helpers.oracle import Oracle
from tests.helpers.setting import all_terms

NEW = [(0, 1), (0, 1, 2), (2, 3, 3), (1, 1)]
DEPTH = 6


class TwoHeads(nn.Module):
    """An old head over ``old_size`` tokens, and rows for the new ones."""

    def __init__(self, old_size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.old_VD = torch.randn(old_size, DEPTH, generator=generator, dtype=torch.float64)
        self.rows = nn.Parameter(torch.randn(len(NEW), DEPTH, generator=generator, dtype=torch.float64))

    def logits_old(self, hidden: Tensor) -> Tensor:
        return hidden @ self.old_VD.T

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.logits_old(hidden), hidden @ self.rows.T], -1)


def some_batch(lengths: list[int], old_size: int = 4) -> tuple[Alignment, Tensor, Tensor]:
    """Alignment of a padded batch of texts, hidden states of the student (a leaf) and of the teacher."""
    oracle, table = Oracle(4, 1, NEW, 0), PieceTable(old_size, NEW)
    generator = torch.Generator().manual_seed(2)
    olds = [torch.randint(0, 4, (n,), generator=generator).tolist() for n in lengths]
    news = [[token if token < 4 else token - 4 + old_size for token in oracle.cut(old)] for old in olds]
    aligned = [align(old, new, table) for old, new in zip(olds, news, strict=True)]
    students, teachers = max(map(len, news)), max(lengths)
    whole = concatenate(aligned, [students] * len(aligned), [teachers] * len(aligned))
    student = torch.randn(len(olds) * students, DEPTH, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(len(olds) * teachers, DEPTH, generator=generator, dtype=torch.float64)
    return whole, student, teacher


def plain(terms: dict[str, Term], heads: TwoHeads, student: Tensor, teacher: Tensor, whole: Alignment) -> Tensor:
    """The sum as one would write it without a thought for memory."""
    total = torch.zeros((), dtype=torch.float64)
    for term in terms.values():
        hidden = term.hidden
        arguments = [student if hidden else heads.logits(student)]
        if term.teacher:
            arguments.append(teacher if hidden else heads.logits_old(teacher))
        total = total + term.weight * term.function(*arguments, whole)
    return total


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 500])
def test_chunks_give_the_plain_sum_and_its_gradients(size: int) -> None:
    whole, student, teacher = some_batch([30, 11, 2, 23])
    heads, terms = TwoHeads(4), all_terms()
    expected = plain(terms, heads, student, teacher, whole)
    wanted = torch.autograd.grad(expected, (student, heads.rows))
    loss, values = chunked(terms, heads, [heads.rows], student, teacher, list(chunks(whole, size)))
    found = torch.autograd.grad(3 * loss, (student, heads.rows))  # the gradient of what the loss enters matters too
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, right in zip(found, wanted, strict=True):
        assert right.abs().max() > 1e-3
        torch.testing.assert_close(gradient, 3 * right)
    for name, term in terms.items():
        alone = plain({name: term._replace(weight=1.0)}, heads, student, teacher, whole)
        assert values[name].item() == pytest.approx(alone.item(), rel=1e-6)
        assert not values[name].requires_grad


@pytest.mark.parametrize("size", [3, 500])
def test_masked_terms_stand_beside_others(size: int) -> None:
    whole, student, teacher = some_batch([30, 11, 2, 23])
    heads, terms = TwoHeads(4), all_terms()
    terms |= {
        f"{name}_masked": Term(partial(function, masked=True), 0.4) for name, function in (("kl", kl), ("ce", ce))
    }
    assert len(whole.refused_row) > 5
    expected = plain(terms, heads, student, teacher, whole)
    loss, values = chunked(terms, heads, [heads.rows], student, teacher, list(chunks(whole, size)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert values["kl_masked"] < values["kl"] and values["ce_masked"] < values["ce"]
    found = torch.autograd.grad(loss, (student, heads.rows))
    for gradient, right in zip(found, torch.autograd.grad(expected, (student, heads.rows)), strict=True):
        torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize("name", ["kl", "ce", "hidden"])
def test_one_term_alone(name: str) -> None:
    """Also: without a term that compares logits, none are computed; without a term with a teacher, it is not asked."""
    whole, student, teacher = some_batch([20, 9])
    terms = {name: all_terms()[name]}
    heads = TwoHeads(4)
    parts = list(chunks(whole, 4))
    wanted = torch.autograd.grad(plain(terms, heads, student, teacher, whole), student)[0]
    if name == "hidden":
        heads.logits = heads.logits_old = None  # type: ignore[assignment]
    if name == "ce":
        heads_of_rows = heads.logits_old
        calls: list[int] = []
        heads.logits_old = lambda hidden: (calls.append(len(hidden)), heads_of_rows(hidden))[1]  # type: ignore
    loss, _ = chunked(terms, heads, [heads.rows], student, None if name == "ce" else teacher, parts)
    gradient, rows = torch.autograd.grad(loss, (student, heads.rows))
    torch.testing.assert_close(gradient, wanted)
    assert bool(rows.abs().max() > 0) == (name != "hidden")
    if name == "ce":
        assert len(calls) == len(parts)  # once a chunk, inside the student's logits


def test_a_term_without_its_teacher_is_an_error() -> None:
    whole, student, _ = some_batch([8])
    with pytest.raises(AssertionError, match="kl needs a teacher"):
        chunked({"kl": all_terms()["kl"]}, TwoHeads(4), [], student, None, list(chunks(whole, 4)))


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation, forward or backward, has made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


def largest(compute: Callable[[], Tensor]) -> int:
    with Largest() as mode:
        compute().backward()
    return mode.elements


def test_no_tensor_grows_with_length_times_vocabulary() -> None:
    vocabulary, size = 800, 8
    heads, terms = TwoHeads(vocabulary), all_terms()
    chunked_elements, plain_elements = [], []
    for length in (40, 160):
        whole, student, teacher = some_batch([length, length], vocabulary)
        parts = list(chunks(whole, size))
        chunked_elements.append(
            largest(lambda: chunked(terms, heads, [heads.rows], student, teacher, parts)[0])  # noqa: B023
        )
        plain_elements.append(largest(lambda: plain(terms, heads, student, teacher, whole)))  # noqa: B023
    assert plain_elements == [2 * length * vocabulary for length in (40, 160)]
    # Teacher rows of a chunk: each student token has at most 3 pieces, and a split may look 2 pieces further.
    assert max(chunked_elements) <= (3 * size + 2) * (vocabulary + len(NEW))
