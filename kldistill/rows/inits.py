"""How new embedding rows start: one function a method, input and output rows chosen separately.

Every method takes the old rows and the pieces of every new token and returns one row a token:
``method(old_rows: (V, D), pieces: N lists of old ids, generator) -> (N, D)``, float32, the same for the same seed.
Write another one, mark it as these are, name it by ``_target_`` in a YAML file under ``conf/init``: it can be chosen.

V old vocabulary, N new tokens, D width, L pieces of all tokens together, K coefficients.
The mean of pieces goes back to FVT (Gee et al., 2022, "Fast Vocabulary Transfer"), the mean and covariance of all rows
to Hewitt (2021, "Initializing New Word Embeddings for Pretrained Language Models"); the rest is our own.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from kldistill.runtime.components import component
from kldistill.runtime.errors import ConfigError

Method = Callable[[Tensor, list[list[int]], torch.Generator], Tensor]


@component("init")
def random(old_rows: Float[Tensor, "V D"], pieces: list[list[int]], generator: torch.Generator) -> Float[Tensor, "N D"]:
    """Normal, with exactly the old rows' mean and (unbiased) covariance.

    ``mean + z @ (old - mean) / sqrt(V - 1)`` with z standard normal in V dimensions has that covariance by
    construction, also where it is singular: no D x D matrix, no jitter.
    """
    mean_D = old_rows.mean(0)
    drawn: list[Tensor] = []
    for start in range(0, len(pieces), 128):  # z is V wide: a block of 128 rows holds memory down
        z_KV = torch.randn(min(128, len(pieces) - start), old_rows.shape[0], generator=generator)
        # z @ (old - mean) without a centred copy of the whole matrix
        drawn.append(z_KV @ old_rows - z_KV.sum(1, keepdim=True) * mean_D)
    spread_ND = torch.cat(drawn) if drawn else old_rows[:0]
    return mean_D + spread_ND / (old_rows.shape[0] - 1) ** 0.5


@component("init")
def mean(old_rows: Float[Tensor, "V D"], pieces: list[list[int]], generator: torch.Generator) -> Float[Tensor, "N D"]:
    """The mean of all old rows, the same for every new token."""
    return old_rows.mean(0).repeat(len(pieces), 1)


@component("init")
def subtoken_mean(
    old_rows: Float[Tensor, "V D"], pieces: list[list[int]], generator: torch.Generator
) -> Float[Tensor, "N D"]:
    """The mean of the rows of a token's pieces."""
    return weighted_mean(old_rows, pieces, generator, rate=0.0)


@component("init")
def first_piece(
    old_rows: Float[Tensor, "V D"], pieces: list[list[int]], generator: torch.Generator
) -> Float[Tensor, "N D"]:
    """The row of a token's first piece. As an output row: where the first piece was likely, so is the token."""
    return old_rows[[piece[0] for piece in _with_pieces(pieces)]].clone()


@component("init")
def last_piece(
    old_rows: Float[Tensor, "V D"], pieces: list[list[int]], generator: torch.Generator
) -> Float[Tensor, "N D"]:
    """The row of a token's last piece. As an input row: the model goes on from where the pieces would have ended."""
    return old_rows[[piece[-1] for piece in _with_pieces(pieces)]].clone()


@component("init")
def weighted_mean(
    old_rows: Float[Tensor, "V D"], pieces: list[list[int]], generator: torch.Generator, rate: float = 1.0
) -> Float[Tensor, "N D"]:
    """A mean of the pieces' rows, exponential in the position: piece i of n (from 0) weighs exp(rate * i) / sum.

    ``rate`` 0 is the plain mean, above 0 the end of the token weighs more, below 0 its beginning.
    """
    parts = _with_pieces(pieces)
    if not parts:
        return old_rows[:0].clone()
    weights_L = torch.cat([torch.softmax(rate * torch.arange(len(part), dtype=torch.float64), 0) for part in parts])
    ids_L = torch.tensor([piece for part in parts for piece in part])
    lengths_N = torch.tensor([len(part) for part in parts])
    offsets_N = lengths_N.cumsum(0) - lengths_N
    return F.embedding_bag(ids_L, old_rows, offsets_N, mode="sum", per_sample_weights=weights_L.to(old_rows.dtype))


def calibrate(rows: Float[Tensor, "N D"], old_rows: Float[Tensor, "V D"]) -> Float[Tensor, "N D"]:
    """Scale every row to the median norm of the old rows; means of rows are shorter than rows. Zero rows stay zero."""
    median = old_rows.norm(dim=1).median()
    norms_N1 = rows.norm(dim=1, keepdim=True)
    return torch.where(norms_N1 > 0, rows * (median / norms_N1), rows)


def needs_pieces(method: Method) -> bool:
    """Whether a method refuses a token without pieces (an AddedToken), found by giving it one."""
    try:
        method(torch.zeros(2, 1), [[]], torch.Generator())
    except ConfigError:
        return True
    return False


def _with_pieces(pieces: list[list[int]]) -> list[list[int]]:
    """The pieces themselves, once it is clear that every token has some. Raises ``ConfigError``."""
    if not all(pieces):
        raise ConfigError(
            "init: this method builds a row from the token's pieces, and some tokens have none (AddedTokens). "
            "Take init=mean or init=random, or tokens.as_added_tokens=false."
        )
    return pieces
