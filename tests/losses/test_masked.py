"""The student renormalised over what can follow, against rows that were masked by cutting every text."""

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from kldistill.losses import ce
from kldistill.losses.alignment import align
from kldistill.tokens.pieces import PieceTable
from tests.helpers.contexts import Context, N, closed_contexts, contexts, merge_contexts, student


@settings(max_examples=60)
@given(st.one_of(contexts, closed_contexts, merge_contexts), st.integers(0, 999))
def test_the_masked_student_is_the_one_renormalised_over_what_can_follow(context: Context, seed: int) -> None:
    """What is masked, and both of its terms, against a row that was masked by cutting every text; and what it gains."""
    if context.table.order is not None and context.table.order.swallowed:
        reject()  # a token that no text has cannot follow anything, and no context is to blame
    row = student(context, seed)
    follows = context.can_follow()
    right = row.masked_fill(~follows, -1e4)
    losses, wanted = context.losses(row, masked=True), context.losses(right)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(wanted))
    exact = context.exact(right)
    refused = torch.softmax(row, -1)[~follows].sum().item()
    assert exact == pytest.approx(context.exact(row) + np.log1p(-refused), abs=1e-9), "its mass is shared out"
    mean = sum(weight * (first + split) for weight, first, split in losses)
    assert mean <= exact + 1e-9
    if context.table.order is None and context.table.prefix_closed:
        assert mean == pytest.approx(exact, abs=1e-9)


def test_nothing_is_refused_where_the_text_shows_it() -> None:
    """A word may have ended there, which the merges do not know of."""
    table = PieceTable(N, [(0, 1)], merges=[(0, 1, N)])
    refused = align([2, 0, 2], [2, 0, 2], table)
    assert list(zip(refused.refused_row.tolist(), refused.refused_token.tolist(), strict=True)) == [(1, 1)]
    shown = align([2, 0, 1], [2, 0, 1], table)
    assert not len(shown.refused_row) and shown.n_contradictions
    logits = torch.randn(3, N + 1, dtype=torch.float64)
    assert ce(logits, shown, masked=True).item() == ce(logits, shown).item()
