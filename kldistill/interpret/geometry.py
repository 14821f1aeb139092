"""Where the new rows lie among the old ones, before and after training.

Shape suffixes: V old vocabulary, N new tokens, D width, S sample of old rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SAMPLE = 1_000  # old rows that stand for all where pairs are counted or points drawn
NEAREST = 5


def measure(
    old: Float[Tensor, "V D"], rows: Mapping[str, Float[Tensor, "N D"]], pieces: Sequence[Sequence[int]], seed: int
) -> dict[str, Any]:
    """Norms, cosines to the own pieces, anisotropy, and how far training has moved the rows.

    Args:
        rows: the new rows by name, ``init`` and ``trained``.
        pieces: the old ids that each new token is made of; none may be empty.
    """
    old = old.float()
    sample_SD = old[_sample(len(old), seed)]
    measured: dict[str, Any] = {"old": {"norm": quantiles(old.norm(dim=1)), "anisotropy": anisotropy(sample_SD)}}
    references = {
        "first_piece": torch.stack([old[row[0]] for row in pieces]),
        "last_piece": torch.stack([old[row[-1]] for row in pieces]),
        "mean_of_pieces": torch.stack([old[list(row)].mean(0) for row in pieces]),
    }
    for name, made_ND in rows.items():
        new_ND = made_ND.float()
        measured[name] = {
            "norm": quantiles(new_ND.norm(dim=1)),
            "anisotropy": anisotropy(new_ND),
            **{
                f"cosine_to_{key}": quantiles(F.cosine_similarity(new_ND, reference_ND, dim=1))
                for key, reference_ND in references.items()
            },
        }
    before, after = rows["init"].float(), rows["trained"].float()
    measured["moved"] = quantiles((after - before).norm(dim=1) / before.norm(dim=1))
    return measured


def anisotropy(rows: Float[Tensor, "n D"]) -> float:
    """Mean cosine of all pairs of different rows (Ethayarajh, 2019): 0 for rows in all directions, 1 for one."""
    n = len(rows)
    if n < 2:
        return float("nan")
    unit = F.normalize(rows.double(), dim=1)
    # |sum of unit rows|² counts every pair twice, and every row with itself once.
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def quantiles(values: Float[Tensor, " n"]) -> dict[str, float]:
    """Mean, median and quartiles."""
    low, middle, high = np.quantile(values.double().cpu().numpy(), [0.25, 0.5, 0.75])
    return {"mean": float(values.double().mean()), "median": float(middle), "low": float(low), "high": float(high)}


def neighbours(
    old: Float[Tensor, "V D"], new: Float[Tensor, "N D"], chosen: Sequence[int], name: Callable[[int], str]
) -> list[list[dict[str, Any]]]:
    """The rows nearest in cosine to each chosen new one (index into ``new``), among all old and all other new ones.

    ``name`` shows an id below V + N as text.
    """
    every_WD = F.normalize(torch.cat([old.float(), new.float()]), dim=1)
    nearest = []
    for index in chosen:
        cosine_W = every_WD @ every_WD[len(old) + index]
        cosine_W[len(old) + index] = -torch.inf
        top = cosine_W.topk(min(NEAREST, len(cosine_W) - 1))
        nearest.append(
            [
                {"id": token, "string": name(token), "cosine": cosine}
                for token, cosine in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
        )
    return nearest


def principal(
    old: Float[Tensor, "V D"], rows: Mapping[str, Float[Tensor, "N D"]], seed: int
) -> tuple[dict[str, Float[np.ndarray, "n 2"]], list[float]]:
    """Coordinates along the first two principal components, and the share of variance that each of these explains.

    The points are a sample of old rows and at most as many of each set of new ones, centred at the mean of all.
    """
    sets = {"old": old, **rows}
    size = min(SAMPLE, max(len(new) for new in rows.values()))
    drawn = {name: set_nD[_sample(len(set_nD), seed)[:size]].float() for name, set_nD in sets.items()}
    points = torch.cat(list(drawn.values()))
    centre_D = points.mean(0)
    _, singular, axes = torch.linalg.svd(points - centre_D, full_matrices=False)
    share = singular.square() / singular.square().sum()
    places = {name: ((set_nD - centre_D) @ axes[:2].T).cpu().numpy() for name, set_nD in drawn.items()}
    return places, share[:2].tolist()


def _sample(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:SAMPLE]
