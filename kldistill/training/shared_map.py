"""What new rows have in common: a linear map that all of them learn together, from where each of them comes from.

A new token occurs a dozen times in a short training, and its row learns from these alone. What the rows of all new
tokens lack is alike, though: how the end of a word is read once its beginning stands in the same token, how likely a
whole word is where its first piece was. A map from features of a token to its row learns that from every new token in
the text, also for those that do not occur in it. The optimiser moves the rows along it (``LazyAdamW``).

Shape suffixes: N new tokens, V old tokens, D width, F features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kldistill.rows.student import Student


class SharedMap(NamedTuple):
    """A linear map from features of rows to the rows (see ``LazyAdamW``).

    Attributes:
        features_NF: what tells the rows apart, fixed; its entries are about as large as those of the rows.
        share: the learning rate of the map's entries, as a share of what the ``lr`` of the rows' group is before its
            ``factor``.
    """

    features_NF: Float[Tensor, "N F"]
    share: float


def shared_maps(student: Student, pieces: Sequence[Sequence[int]], share: float) -> dict[nn.Parameter, SharedMap]:
    """The map of each of the student's matrices of new rows, as they are now.

    Args:
        pieces: old ids of each new token; none for one without exact pieces.
        share: of the map as a whole: that of an entry is by so much smaller as there are features, so that how far a
            step can move a row does not depend on the model's width.
    """
    sides = [(student.rows.input, student.embedding.weight)]
    if student.rows.output is not None:
        sides.append((student.rows.output, student.lm_head.weight))
    maps = dict[nn.Parameter, SharedMap]()
    for rows, old_VD in sides:
        features_NF = features(rows.detach(), old_VD, pieces)
        maps[rows] = SharedMap(features_NF, share / features_NF.shape[1])
    return maps


@torch.no_grad()
def features(
    rows_ND: Float[Tensor, "N D"], old_VD: Float[Tensor, "V D"], pieces: Sequence[Sequence[int]]
) -> Float[Tensor, "N F"]:
    """Of each new token: its row as it is, the rows of its first and last piece, the mean of all of its pieces, and a
    constant of their size; F = 4 D + 1. A token without pieces has 0 in their place.
    """
    first_ND, last_ND, mean_ND = (torch.zeros_like(rows_ND) for _ in range(3))
    for index, own in enumerate(pieces):
        if own:
            of_pieces = old_VD[list(own)].to(rows_ND.dtype)
            first_ND[index], last_ND[index], mean_ND[index] = of_pieces[0], of_pieces[-1], of_pieces.mean(0)
    size_N1 = rows_ND.square().mean().sqrt().expand(len(rows_ND), 1)
    return torch.cat([rows_ND, first_ND, last_ND, mean_ND, size_N1], 1)
