"""Bootstrap intervals over documents: texts of one document are not independent, so whole documents are drawn."""

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


def ratio_interval(
    documents: Sequence[str], above: Sequence[float], below: Sequence[float], *, resamples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of sum(above) / sum(below) under resampling of documents (Efron and Tibshirani, 1993).

    Args:
        documents: the document that each summand belongs to.
        above, below: the summands.

    Returns:
        Lower and upper end; (nan, nan) where no resample has anything below.
    """
    _, index = np.unique(np.asarray(documents), return_inverse=True)
    n = int(index.max()) + 1
    sums = np.stack(
        [np.bincount(index, weights=np.asarray(values, dtype=float), minlength=n) for values in (above, below)]
    )
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    totals = weights @ sums.T
    valid = totals[:, 1] > 0
    if not valid.any():
        return float("nan"), float("nan")
    low, high = np.quantile(totals[valid, 0] / totals[valid, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
