"""The few figures of the stage that go into ``summary.json``, with intervals where they are means over text."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from kldistill.evaluation.statistics import difference_interval, with_ends
from kldistill.interpret.calibration import SMALLEST, Positions


class Headline:
    """Means with 95 % intervals over documents, by name.

    Args:
        documents: the document of each use.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self.documents = list(documents)
        self.figures: dict[str, float] = {}

    def add(self, name: str, values: Float[np.ndarray, " n"], documents: Sequence[str] | None = None) -> None:
        """The mean of one value per use (or per entry of ``documents``); nothing where there is no value."""
        if not len(values):
            return
        names = self.documents if documents is None else documents
        interval = difference_interval(names, values.tolist(), [0.0] * len(values))  # they may have either sign
        self.figures |= with_ends(name, float(values.mean()), interval)

    def add_calibration(self, model: str, p: Positions, documents: Sequence[str], old_size: int) -> None:
        """Add the signed differences of one model, in nats, and its KL after new tokens and elsewhere, in nats.

        The differences are those before new tokens, and of a first piece where the text has it alone.
        """
        new, known = p.token >= old_size, np.isfinite(p.target["token"])

        def nats(mass: str, where: np.ndarray) -> None:
            values = [np.log(np.maximum(side[mass][where], SMALLEST)) for side in (p.student, p.target)]
            name = f"{model}/calibration/{mass}_nats_before_{'new' if where is before_new else 'old'}"
            self.add(name, values[0] - values[1], _chosen(documents, where))

        before_new, before_old = known & new, known & ~new & p.candidates
        nats("token", before_new)
        nats("first", before_new)
        nats("own", before_old)
        total = p.kl_first + p.kl_split
        self.add(f"{model}/kl/after_new", total[p.after_new], _chosen(documents, p.after_new))
        self.add(f"{model}/kl/elsewhere", total[~p.after_new], _chosen(documents, ~p.after_new))


def _chosen(documents: Sequence[str], where: np.ndarray) -> list[str]:
    return [name for name, kept in zip(documents, where.tolist(), strict=True) if kept]


def headline(report: dict[str, Any], head: Headline) -> dict[str, float]:
    """All figures of ``summary.json``, under ``interpret/``. What could not be measured is absent."""
    figures: dict[str, float | None] = {
        "uses": report["contexts"]["uses"],
        "documents": report["contexts"]["documents"],
        **head.figures,
    }
    for name, of_model in report.get("agreement", {}).items():
        figures |= {f"{name}/agreement/{key}": of_model[key] for key in ("detokenised_layer", "detokenised_share")}
    for name, of_model in report.get("lens", {}).get("after", {}).items():
        if name != "original":
            figures |= {f"{name}/lens/{key}": of_model[key] for key in ("meeting_layer", "meeting_share")}
    for name, of_model in report.get("calibration", {}).items():
        new, first = of_model["new_tokens"], of_model["given_first_piece"]
        figures[f"{name}/calibration/expected_over_observed"] = _ratio(new["expected"], new["observed"])
        figures[f"{name}/calibration/expected_over_target"] = _ratio(first["expected"], first["target"])
    for name, of_model in report.get("attention", {}).items():
        figures |= {
            f"{name}/attention/ratio": of_model["ratio"],
            f"{name}/attention/variation": of_model["mean_variation"],
        }
    rows = report.get("geometry", {})
    for side in ("input", "output"):
        for name in ("init", "trained") if side in rows else ():
            new, old = rows[side][name], rows[side]["old"]
            figures[f"{name}/geometry/{side}_norm_ratio"] = new["norm"]["median"] / old["norm"]["median"]
            figures[f"{name}/geometry/{side}_cosine_to_pieces"] = new["cosine_to_mean_of_pieces"]["mean"]
            figures[f"{name}/geometry/{side}_anisotropy"] = new["anisotropy"]
    return {f"interpret/{key}": value for key, value in figures.items() if value is not None and not math.isnan(value)}


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
