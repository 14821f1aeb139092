"""Aligns one text's two tokenizations, and prepares all that the losses need to know of the tokens alone.

Shape suffixes and names: M student positions with a next token; P common boundaries with a next token (contexts c
of the KL); Z forbidden (position, piece) pairs; E refused (row, token) pairs; O open pairs; S splits; C resolved cells
(children) of splits; U unresolved children; F factors, each one teacher probability p(piece | row); L and Y pieces
after which a cell's child is, or may be, cut otherwise; R frontier prefixes; all of these are flat index lists (COO),
so that the losses need no loop over positions. A *row* is an index into the flattened hidden states or logits of a
sequence or a batch; row j of a sequence predicts what follows its token j.

The construction is our own; see docs/method.md for the derivation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kldistill.losses.cut_rules import ByMerges, Chain, LongestMatch
from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.pieces import Node, PieceTable


def _index(*, beside: str | None = None, into: str | None = None) -> dict[str, Any]:
    """The metadata of a field of ``Alignment`` that is one of its flat lists.

    Args:
        beside: the list beside which this one stands, entry by entry; None where it leads such a group itself.
        into: what its entries point into: ``student`` or ``teacher`` for rows, or the name of another list. None where
            they are tokens.
    """
    return {"list": True, "beside": beside, "into": into}


@dataclass(frozen=True)
class Alignment:
    """What the losses use of two token sequences. ``align`` makes it; all tensors are int64 on one device.

    Attributes:
        old_size, new_size: V and W, the sizes of the two vocabularies in tokens.
        mass_owner, mass_member: subtree membership of the piece table, shared by all alignments.
        next_row, next_token: student row and the student token that follows it, for every position with a next
            token.
        student_row, teacher_row: the same context c in both sequences: rows that predict what follows a common
            boundary.
        zero_position, zero_piece: pieces that cannot follow context ``position``: they would complete a longer
            token from an earlier student boundary. Target 0.
        refused_row, refused_token: tokens that cannot follow a student row, as the text would have been cut otherwise.
            None are listed where the text shows one of them (a word may have ended there).
        open_position, open_piece: pieces that lead towards such a longer token, but do not complete it. How much
            of their probability remains is not known from one pass over the text, so they stay in one cell.
        split_position, split_token: split at w, for w on the observed chain of position.
        cell_split, cell_token: a resolved child of the split's token.
        rest_split, rest_token: an unresolved child of the split's token; it shares a cell with "stop".
        factor_cell, factor_row, factor_piece: teacher probabilities whose product is the cell's target.
        less_cell, less_row, less_piece: pieces with which, after a cell's child, the text would have been cut
            otherwise: the cell's target is the product of its factors times 1 less their probability.
        may_cell, may_row, may_piece: pieces with which it might have been, as what follows decides: the target may be
            lower by that much. No split has two such cells, as the text spells the child.
        frontier_position, frontier_factor, frontier_row, frontier_piece: teacher probabilities whose products
            bound the unresolved mass from above; ``frontier_factor`` indexes ``frontier_position``.
        n_next, n_common: denominators of "averaged per student position". A chunk keeps its batch's, so chunks add
            up.
        n_left_out: student positions that are no common boundary (left out of the KL).
        n_contradictions: positions whose observed cut is not what merges, or longest match, make of the text (their
            splits are dropped).
        n_unresolved_splits: splits dropped as the context rules out some of what is below them, or as a text with the
            pieces of their token may be cut otherwise.
    """

    old_size: int
    new_size: int
    mass_owner: Int[Tensor, " J"]
    mass_member: Int[Tensor, " J"]
    next_row: Int[Tensor, " M"] = field(metadata=_index(into="student"))
    next_token: Int[Tensor, " M"] = field(metadata=_index(beside="next_row"))
    student_row: Int[Tensor, " P"] = field(metadata=_index(into="student"))
    teacher_row: Int[Tensor, " P"] = field(metadata=_index(beside="student_row", into="teacher"))
    zero_position: Int[Tensor, " Z"] = field(metadata=_index(into="student_row"))
    zero_piece: Int[Tensor, " Z"] = field(metadata=_index(beside="zero_position"))
    refused_row: Int[Tensor, " E"] = field(metadata=_index(into="student"))
    refused_token: Int[Tensor, " E"] = field(metadata=_index(beside="refused_row"))
    open_position: Int[Tensor, " O"] = field(metadata=_index(into="student_row"))
    open_piece: Int[Tensor, " O"] = field(metadata=_index(beside="open_position"))
    split_position: Int[Tensor, " S"] = field(metadata=_index(into="student_row"))
    split_token: Int[Tensor, " S"] = field(metadata=_index(beside="split_position"))
    cell_split: Int[Tensor, " C"] = field(metadata=_index(into="split_position"))
    cell_token: Int[Tensor, " C"] = field(metadata=_index(beside="cell_split"))
    rest_split: Int[Tensor, " U"] = field(metadata=_index(into="split_position"))
    rest_token: Int[Tensor, " U"] = field(metadata=_index(beside="rest_split"))
    factor_cell: Int[Tensor, " F"] = field(metadata=_index(into="cell_split"))
    factor_row: Int[Tensor, " F"] = field(metadata=_index(beside="factor_cell", into="teacher"))
    factor_piece: Int[Tensor, " F"] = field(metadata=_index(beside="factor_cell"))
    less_cell: Int[Tensor, " L"] = field(metadata=_index(into="cell_split"))
    less_row: Int[Tensor, " L"] = field(metadata=_index(beside="less_cell", into="teacher"))
    less_piece: Int[Tensor, " L"] = field(metadata=_index(beside="less_cell"))
    may_cell: Int[Tensor, " Y"] = field(metadata=_index(into="cell_split"))
    may_row: Int[Tensor, " Y"] = field(metadata=_index(beside="may_cell", into="teacher"))
    may_piece: Int[Tensor, " Y"] = field(metadata=_index(beside="may_cell"))
    frontier_position: Int[Tensor, " R"] = field(metadata=_index(into="student_row"))
    frontier_factor: Int[Tensor, " G"] = field(metadata=_index(into="frontier_position"))
    frontier_row: Int[Tensor, " G"] = field(metadata=_index(beside="frontier_factor", into="teacher"))
    frontier_piece: Int[Tensor, " G"] = field(metadata=_index(beside="frontier_factor"))
    n_next: int = field(metadata={"count": True})
    n_common: int = field(metadata={"count": True})
    n_left_out: int = field(metadata={"count": True})
    n_contradictions: int = field(metadata={"count": True})
    n_unresolved_splits: int = field(metadata={"count": True})

    def to(self, device: torch.device | str) -> Alignment:
        """The same alignment with every tensor on ``device``."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})


# What each list stands beside, and what it points into (see ``_index``); a list comes after those that it names.
LISTS: dict[str, Mapping[str, Any]] = {
    entry.name: entry.metadata for entry in fields(Alignment) if "list" in entry.metadata
}
TENSORS = ("mass_owner", "mass_member", *LISTS)
COUNTS = [entry.name for entry in fields(Alignment) if "count" in entry.metadata]
# Those that hold ids of tokens or pieces, rather than rows or places in another list.
IDS = ("mass_owner", "mass_member", *(name for name, about in LISTS.items() if about["into"] is None))


def align(
    old_ids: Sequence[int], new_ids: Sequence[int], pieces: PieceTable, starts: Collection[int] = ()
) -> Alignment:
    """Align the old and the new ids of one text.

    Args:
        old_ids: the teacher's tokens, all below V.
        new_ids: the student's tokens of the same text, all below W.
        pieces: the table of pieces.
        starts: where in ``new_ids`` a part begins that was read by itself (an answer): no token could have grown over
            that place, so nothing is ruled out after it.

    Returns:
        The alignment; rows count from the start of each sequence.

    Raises:
        TokenizerError: an id outside its vocabulary.
    """
    old = [int(token) for token in old_ids]
    new = [int(token) for token in new_ids]
    for name, ids, size in (("old_ids", old, pieces.old_size), ("new_ids", new, pieces.new_size)):
        if ids and not 0 <= min(ids) <= max(ids) < size:
            raise TokenizerError(f"{name} holds {min(ids)}..{max(ids)}, but its vocabulary has the ids 0..{size - 1}.")
    lists: dict[str, list[int]] = {name: [] for name in LISTS}
    lists["next_row"] = list(range(len(new) - 1))
    lists["next_token"] = new[1:]
    counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    boundary = common_boundaries(old, new, pieces)
    # Trie nodes that earlier student boundaries have reached: tokens that could still have grown.
    live: list[Node] = []
    for i in range(len(new) - 1):
        if boundary[i] < 0:
            counts["n_left_out"] += 1
            live = []
            continue
        start = boundary[i - 1] if i else 0
        live = [] if pieces.order else _grown(live, old, start, boundary[i], pieces)
        if i + 1 in starts:
            live = []
        if boundary[i] < len(old):
            rule = ByMerges(pieces.order, new[i], start < 0 or i + 1 in starts) if pieces.order else LongestMatch(live)
            _add_position(lists, counts, i, old, new[i + 1], boundary[i], rule, pieces)
    counts |= {"n_next": len(lists["next_row"]), "n_common": len(lists["student_row"])}
    tensors: dict[str, Any] = {name: torch.tensor(values, dtype=torch.int64) for name, values in lists.items()}
    return Alignment(
        old_size=pieces.old_size,
        new_size=pieces.new_size,
        mass_owner=torch.from_numpy(pieces.mass_owner),
        mass_member=torch.from_numpy(pieces.mass_member),
        **tensors,
        **counts,
    )


def common_boundaries(old: Sequence[int], new: Sequence[int], pieces: PieceTable) -> list[int]:
    """For each student token, how many old pieces the text has up to its end; -1 where an old token spans that end.

    Where the new ids expand to exactly the old ones, every student boundary is common. Elsewhere byte offsets decide;
    without a table of byte lengths, only what lies before the first and after the last difference is common.
    """
    expanded = pieces.expand(new)
    ends = np.cumsum([len(pieces.old_pieces(token)) for token in new]) if new else np.zeros(0, dtype=np.int64)
    if pieces.exact and expanded == list(old):
        return ends.tolist()
    if pieces.byte_lengths is not None:
        old_ends = np.concatenate([[0], np.cumsum(pieces.byte_lengths[np.asarray(old, dtype=np.int64)])])
        new_ends = np.cumsum(pieces.byte_lengths[np.asarray(new, dtype=np.int64)])
        index = np.searchsorted(old_ends, new_ends, side="right") - 1
        return np.where((old_ends[index] == new_ends) & (index > 0), index, -1).tolist()
    shortest = min(len(old), len(expanded))
    before = next((i for i in range(shortest) if old[i] != expanded[i]), shortest)
    after = next((i for i in range(shortest - before) if old[-1 - i] != expanded[-1 - i]), shortest - before)
    shift = len(old) - len(expanded)
    return [int(e) if e <= before else int(e) + shift if e >= len(expanded) - after else -1 for e in ends]


def _grown(live: list[Node], old: list[int], start: int, end: int, pieces: PieceTable) -> list[Node]:
    """Nodes reached at ``end`` from every earlier student boundary, ``start`` now included; dead ends are dropped."""
    if start < 0:
        return []  # the boundary before was not common: what could have grown from there is unknown
    root = pieces.roots.get(old[start]) if start < end else None
    nodes = [*(node.next.get(old[start]) for node in live), root] if start < end else list(live)
    for offset in range(start + 1, end):
        nodes = [node.next.get(old[offset]) if node else None for node in nodes]
    return [node for node in nodes if node is not None and node.next]


def _add_position(
    lists: dict[str, list[int]],
    counts: dict[str, int],
    row: int,
    old: list[int],
    observed: int,
    start: int,
    rule: LongestMatch | ByMerges,
    pieces: PieceTable,
) -> None:
    """Add the context that ends at the common boundary ``start`` (pieces) and student row ``row``."""
    position = len(lists["student_row"])
    lists["student_row"].append(row)
    # Text before the first token has no row to be predicted from; start is at least 1 here.
    lists["teacher_row"].append(start - 1)
    lists["zero_position"] += [position] * len(rule.zeros)
    lists["zero_piece"] += rule.zeros
    lists["open_position"] += [position] * len(rule.opens)
    lists["open_piece"] += rule.opens
    refused = rule.refused(pieces)
    if observed not in refused:
        lists["refused_row"] += [row] * len(refused)
        lists["refused_token"] += refused

    chain = _chain(old, start, pieces)
    if rule.contradicts(observed, chain, old[start]):
        counts["n_contradictions"] += 1
        return
    size = len(pieces.old_pieces(observed))
    for depth, node in chain:
        if depth > size or not node.children:
            continue  # what is spelt beyond the observed token is no part of its choice
        if rule.resolves(node, old[start : start + depth]):
            _add_split(lists, position, node, old, start + depth, rule)
        else:
            counts["n_unresolved_splits"] += 1


def _chain(old: list[int], start: int, pieces: PieceTable) -> Chain:
    """Tokens whose pieces are a prefix of the text from ``start``: pairs (number of pieces, node), shortest first."""
    chain: Chain = []
    node = pieces.roots.get(old[start])
    depth = 1
    while node is not None:
        if node.token != -1:
            chain.append((depth, node))
        node = node.next.get(old[start + depth]) if start + depth < len(old) else None
        depth += 1
    return chain


def as_the_forest_says(pieces: PieceTable, last: int, observed: int, old: list[int], start: int) -> bool:
    """Whether the next token of a context is the one that the forest makes of the text, and surely so.

    Args:
        last, observed: the context's last token and the next one.
        old: the text's pieces.
        start: where the context ends in them.
    """
    chain = _chain(old, start, pieces)
    if pieces.order is None:
        return observed == (chain[-1][1].token if chain else old[start])
    rule = ByMerges(pieces.order, last, free=False)
    own = [(depth, node) for depth, node in chain if depth <= len(pieces.old_pieces(observed))]
    return not rule.contradicts(observed, chain, old[start]) and all(
        rule.resolves(node, old[start : start + depth]) for depth, node in own
    )


def _add_split(
    lists: dict[str, list[int]], position: int, node: Node, old: list[int], offset: int, rule: LongestMatch | ByMerges
) -> None:
    """Add the split at ``node``'s token, whose pieces end at ``offset``, with its resolved and unresolved children."""
    split = len(lists["split_position"])
    lists["split_position"].append(position)
    lists["split_token"].append(node.token)
    frontier: set[tuple[int, ...]] = set()
    for token, extra in node.children:
        known = 0  # leading extra pieces that the text shows
        while known < len(extra) and offset + known < len(old) and extra[known] == old[offset + known]:
            known += 1
        escapes = rule.escapes(token)
        # What comes after a child is known where the text spells it whole.
        if known < len(extra) - 1 or escapes is None or (any(escapes) and known < len(extra)):
            lists["rest_split"].append(split)
            lists["rest_token"].append(token)
            frontier.add(extra[: known + 1])
            continue
        cell = len(lists["cell_split"])
        lists["cell_split"].append(split)
        lists["cell_token"].append(token)
        lists["factor_cell"] += [cell] * len(extra)
        lists["factor_row"] += range(offset - 1, offset - 1 + len(extra))
        lists["factor_piece"] += extra
        for name, after in (("less", escapes.surely), ("may", escapes.maybe)):
            lists[f"{name}_cell"] += [cell] * len(after)
            lists[f"{name}_row"] += [offset - 1 + len(extra)] * len(after)
            lists[f"{name}_piece"] += after
    for prefix in sorted(frontier):
        index = len(lists["frontier_position"])
        lists["frontier_position"].append(position)
        lists["frontier_factor"] += [index] * len(prefix)
        lists["frontier_row"] += range(offset - 1, offset - 1 + len(prefix))
        lists["frontier_piece"] += prefix
