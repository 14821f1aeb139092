"""Figures of calibration: what ``calibration.measure`` found at every context, summed up.

Shape suffixes: P contexts, C cells.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from jaxtyping import Float

from kldistill.interpret.calibration import MASSES, SMALLEST, Cells, Positions

BINS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of probabilities, for the reliability diagram


def join(parts: Sequence[tuple[Positions, Cells]]) -> tuple[Positions, Cells]:
    """Several texts' positions and cells, one after the other."""

    def cat(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: cat([value[name] for value in values]) for name in values[0]}
        return np.concatenate(values)

    positions, cells = zip(*parts, strict=True)
    return (
        Positions(**{item.name: cat([getattr(part, item.name) for part in positions]) for item in fields(Positions)}),
        Cells(**{item.name: cat([getattr(part, item.name) for part in cells]) for item in fields(Cells)}),
    )


def summarise(p: Positions, cells: Cells, old_size: int) -> dict[str, Any]:
    """All figures of calibration; ``docs/interpretability.md`` says how to read them.

    ``new``: contexts before a new token; ``old``: before an old token with which some new token starts; ``plain``:
    before any other. Differences are student less target.
    """
    new, known = p.token >= old_size, np.isfinite(p.target["token"])
    groups = {"new": known & new, "old": known & ~new & p.candidates, "plain": known & ~new & ~p.candidates}
    total = p.kl_first + p.kl_split
    return {
        "positions": len(new),
        "resolved": float(known.mean()),
        "groups": {
            group: {"n": int(where.sum()), **{name: _errors(p, name, where) for name in MASSES}}
            for group, where in groups.items()
        },
        "new_tokens": {
            "observed": int(new.sum()),
            "expected": float(p.new_mass.sum()),
            "mass_before_new": _mean(p.new_mass[new]),
            "mass_before_old": _mean(p.new_mass[~new]),
        },
        "given_first_piece": {
            "n": len(cells.observed),
            "observed": int(cells.observed.sum()),
            "expected": float(cells.student.sum()),
            "target": float(cells.target.sum()),
        },
        "reliability": {
            "student": _bins(cells.student, cells),
            "target": _bins(cells.target, cells),
        },
        # Shares of the mean KL: they add up to "total".
        "kl": {
            "total": _mean(total),
            "first_after_new": float(p.kl_first[p.after_new].sum() / len(total)),
            "first_elsewhere": float(p.kl_first[~p.after_new].sum() / len(total)),
            "split_after_new": float(p.kl_split[p.after_new].sum() / len(total)),
            "split_elsewhere": float(p.kl_split[~p.after_new].sum() / len(total)),
            "mean_after_new": _mean(total[p.after_new]),
            "mean_elsewhere": _mean(total[~p.after_new]),
        },
    }


def by_token(p: Positions, old_size: int) -> dict[int, dict[str, Any]]:
    """For each new token that the text uses, averages over its uses (targets: over those that are resolved)."""
    averages: dict[int, dict[str, Any]] = {}
    for token in np.unique(p.token[p.token >= old_size]).tolist():
        here = p.token == token
        known = here & np.isfinite(p.target["token"])
        averages[token] = {
            "n": int(here.sum()),
            "nll": float(-np.log(p.probability[here]).mean()),
            "adoption": float(p.probability[here].mean()),
            "target": _mean(p.target["token"][known]),
            **{
                f"{name}_{side}": _mean(values[name][known])
                for name in MASSES
                for side, values in (("student", p.student), ("target", p.target))
            },
            "error_nats": _mean(_nats(p, "token", known)),
        }
    return averages


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _nats(p: Positions, name: str, where: np.ndarray) -> np.ndarray:
    student, target = (np.log(np.maximum(side[name][where], SMALLEST)) for side in (p.student, p.target))
    return student - target


def _errors(p: Positions, name: str, where: np.ndarray) -> dict[str, float | None]:
    nats = _nats(p, name, where)
    return {
        "student": _mean(p.student[name][where]),
        "target": _mean(p.target[name][where]),
        "difference": _mean(p.student[name][where] - p.target[name][where]),
        "nats": _mean(nats),
        "nats_median": float(np.median(nats)) if len(nats) else None,
        "nats_absolute": _mean(np.abs(nats)),
    }


def _bins(by: Float[np.ndarray, " C"], cells: Cells) -> list[dict[str, float | int]]:
    """Cells by a probability: how many, the mean probability by both models, and how often the text went there."""
    band = np.clip(np.digitize(by, BINS) - 1, 0, len(BINS) - 2)
    return [
        {
            "from": BINS[index],
            "to": BINS[index + 1],
            "n": int((band == index).sum()),
            "student": float(cells.student[band == index].mean()),
            "target": float(cells.target[band == index].mean()),
            "observed": float(cells.observed[band == index].mean()),
        }
        for index in range(len(BINS) - 1)
        if (band == index).any()
    ]
