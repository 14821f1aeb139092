"""What is summed over a text when it is scored, and the metrics that are ratios of these sums.

Without torch, so that whoever only reads results does not wait for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class Score:
    """Sums over one text. Nats are of all its tokens, each given those before it.

    Attributes:
        n_bytes, n_tokens: size of the text; the first special token counts as neither.
        nats: minus log-probability of the text, as the model cuts it.
        kl, n_common: summed KL to the teacher and the boundaries that it is summed over; 0 for the original model.
        n_new, adopted, new_nats: new tokens in the text, the probability that the student gave them, summed, and
            minus the log of it, summed.
        n_masked, nats_masked, kl_masked, refused: positions where it was asked too, of the student whose mass on what
            cannot follow is shared out among the rest; its nats and KL; and that mass, summed.
        unresolved: teacher mass that the KL could not resolve, summed (an upper bound).
        left_out, contradictions: positions that are no common boundary; observed cuts that the merges do not make.
        n_words, canonical_mass, old_mass: words with new tokens of which all cuts were summed, and the shares of that
            sum which the canonical cut and the cuts in old tokens alone have, summed over these words.
        gap_nats, gap_bytes: nats by which all cuts of the text's words are likelier than the canonical one, as the
            words that were looked at tell it, and the text's bytes; 0 where none of its words was to be looked at.
    """

    document: str
    n_bytes: int
    n_tokens: int
    nats: float = 0.0
    kl: float = 0.0
    n_common: int = 0
    n_new: int = 0
    adopted: float = 0.0
    new_nats: float = 0.0
    n_masked: int = 0
    nats_masked: float = 0.0
    kl_masked: float = 0.0
    refused: float = 0.0
    unresolved: float = 0.0
    left_out: int = 0
    contradictions: int = 0
    n_words: int = 0
    canonical_mass: float = 0.0
    old_mass: float = 0.0
    gap_nats: float = 0.0
    gap_bytes: int = 0


class Ratio(NamedTuple):
    """A metric of a set of texts: factor * sum of ``above`` / sum of ``below``, both fields of ``Score``. It is
    undefined where there is nothing below, or nothing of the field that it ``needs``.
    """

    above: str
    below: str
    factor: float = 1.0
    needs: str = ""

    def value(self, scores: Sequence[Score]) -> float:
        """The metric of these texts; not a number where it is undefined."""
        if self.needs and not any(getattr(score, self.needs) for score in scores):
            return math.nan
        total = sum(getattr(score, self.below) for score in scores)
        return self.factor * sum(getattr(score, self.above) for score in scores) / total if total else math.nan


# What is reported of a set of texts; labels and units are in kldistill.evaluation.metrics, definitions in
# docs/metrics.md.
SUMS = {
    "bits_per_byte": Ratio("nats", "n_bytes", 1 / math.log(2)),
    "tokens_per_1000_bytes": Ratio("n_tokens", "n_bytes", 1000.0),
    "kl_to_teacher": Ratio("kl", "n_common"),
    "kl_per_byte": Ratio("kl", "n_bytes", needs="n_common"),  # without a teacher there is none
    "bits_per_byte_masked": Ratio("nats_masked", "n_bytes", 1 / math.log(2), needs="n_masked"),
    "kl_to_teacher_masked": Ratio("kl_masked", "n_common", needs="n_masked"),
    "refused_mass": Ratio("refused", "n_masked"),
    "new_token_share": Ratio("n_new", "n_tokens"),
    "adoption": Ratio("adopted", "n_new"),
    "new_token_nats": Ratio("new_nats", "n_new"),
    "unresolved_mass": Ratio("unresolved", "n_common"),
    "left_out": Ratio("left_out", "n_tokens"),
    "contradictions": Ratio("contradictions", "n_tokens"),
    "marginal_gap": Ratio("gap_nats", "gap_bytes", 1 / math.log(2), needs="n_words"),
    "canonical_mass": Ratio("canonical_mass", "n_words"),
    "old_mass": Ratio("old_mass", "n_words"),
}


def summarise(scores: Sequence[Score], names: Sequence[str] = tuple(SUMS)) -> dict[str, float]:
    """Metrics of a set of texts, each a ratio of sums; those that are undefined here are left out."""
    values = {name: SUMS[name].value(scores) for name in names}
    return {name: value for name, value in values.items() if not math.isnan(value)}
