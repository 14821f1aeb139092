"""What merges say of neighbours, against every text of up to seven pieces."""

from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kldistill.tokens.artifact import load_extended_tokenizer, read_merges, read_new_tokens
from kldistill.tokens.encoding import encode
from kldistill.tokens.merge_order import cut
from kldistill.tokens.pieces import PieceTable
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.oracle import MergeOracle
from tests.helpers.setting import documents

N, LENGTH = 3, 7
A, B, C = range(3)


def table_of(oracle: MergeOracle) -> PieceTable:
    merges = [(*pair, N + number) for number, pair in enumerate(oracle.merges)]
    return PieceTable(N, oracle.tokens, merges=merges)


@st.composite
def oracles(draw: st.DrawFn) -> MergeOracle:
    pieces: list[tuple[int, ...]] = [(piece,) for piece in range(N)]
    merges: list[tuple[int, int]] = []
    for left, right in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=5)):
        pair = (left % len(pieces), right % len(pieces))
        made = pieces[pair[0]] + pieces[pair[1]]
        if made not in pieces and len(made) <= 3:
            merges.append(pair)
            pieces.append(made)
    return MergeOracle(N, 1, merges, 0)


@settings(max_examples=25)
@given(oracles())
def test_what_is_refused_and_what_is_unsure(oracle: MergeOracle) -> None:
    """Refused: neighbours that no text has. Unsure: tokens whose pieces begin some text that begins otherwise."""
    order = table_of(oracle).order
    assert order is not None
    size = N + len(oracle.tokens)
    neighbours: set[tuple[int, int]] = set()
    otherwise: set[int] = set()
    used: set[int] = set()
    for text in product(range(N), repeat=LENGTH):
        ids = oracle.cut(text)
        assert cut(list(text), order.ranks) == ids
        used.update(ids)
        neighbours.update(pairwise(ids))
        first = order._pieces(ids[0])
        for number, token in enumerate(oracle.tokens):
            if text[: len(token)] == token and first[: len(token)] != token:
                otherwise.add(N + number)
                escapes = order.escapes(N + number)
                assert N + number in order.swallowed or text[len(token)] in (*escapes.surely, *escapes.maybe)
            elif text[: len(token)] == token:
                assert text[len(token)] not in order.escapes(N + number).surely
    assert used.isdisjoint(order.swallowed)
    for last in used:
        after = order.after(last)
        for token in used:
            assert ((last, token) in neighbours) == (token not in after.refused)
        begun = {order._pieces(token)[0] for token in used if token not in after.refused}
        assert begun.isdisjoint(after.zeros) and begun | set(after.zeros) == set(range(N))
        assert all(any(order._pieces(token)[0] == piece for token in after.refused) for piece in after.opens)
    # A text of seven pieces may be too short to show it.
    assert otherwise - order.swallowed <= order.unsure <= set(range(N, size))


def test_by_hand() -> None:
    """bc before ab: abc is a|bc."""
    order = table_of(MergeOracle(N, 1, [(B, C), (A, B)], 0)).order
    assert order is not None
    bc, ab = N, N + 1
    assert order.after(ab).refused == {C} and order.after(ab).zeros == (C,) and not order.after(ab).opens
    assert order.after(A).refused == {B} and order.after(A).opens == (B,) and not order.after(A).zeros
    assert order.after(B) == order.after(bc)._replace(refused=frozenset({C}), zeros=(C,))
    assert order.unsure == {ab} and not order.swallowed
    assert order.escapes(ab) == ((C,), ())


def test_what_depends_on_what_follows() -> None:
    """With bcc as the only token that takes a c from ab, one c alone does not tell."""
    order = table_of(MergeOracle(N, 1, [(C, C), (B, N), (A, B)], 0)).order
    assert order is not None
    cc, bcc, ab = N, N + 1, N + 2
    assert order.after(ab).refused == {cc} and order.after(ab).opens == (C,)
    assert order.unsure == {ab} and order.escapes(ab) == ((), (C,))
    assert order.after(A).refused == {B} and bcc not in order.after(A).refused


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_merges_of_a_real_tokenizer(family: str, tiny_model: MakeModel, fake_tokens: MakeTokens) -> None:
    """They make the new tokens of their pieces, and no two tokens that stand side by side in a word are refused."""
    folder: Path = fake_tokens(tiny_model(family), 60)
    table, tokens = PieceTable.load(folder), read_new_tokens(folder)
    merges = read_merges(folder, table.old_size)
    assert [merge[2] for merge in merges] == [token.id for token in tokens]
    assert [list(merge[:2]) for merge in merges] == [token.pieces for token in tokens]
    order = table.order
    assert order is not None and not order.swallowed
    rows = encode(load_extended_tokenizer(folder), [document.text for document in documents(20, start=30)])
    pairs = [pair for row in rows for pair in pairwise(row)]
    assert sum(last >= table.old_size or token >= table.old_size for last, token in pairs) > 200
    assert sum(token in order.after(last).refused for last, token in pairs) < 0.01 * len(pairs)
