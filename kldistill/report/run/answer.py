"""What a run came to, in a few sentences: what was gained, and what was lost."""

from collections.abc import Mapping

from kldistill.evaluation.metrics import MODELS
from kldistill.report.data import last_model

_GAP = 1e-4  # bits/byte: a gap to the original smaller than this is none


def answer(metrics: Mapping[str, float]) -> str:
    """Tokens saved, what the domain's text and general text cost, and how far the last model is from the original.

    Args:
        metrics: the run's final figures.

    Returns:
        Up to four sentences; empty where the run has scored no extended model.
    """
    last = last_model(metrics)
    saved, name = saved_share(metrics, last), MODELS.get(last or "")
    original, init = (metrics.get(f"eval/{model}/domain/bits_per_byte") for model in ("original", "init"))
    final = metrics.get(f"eval/{last}/domain/bits_per_byte")
    if saved is None or original is None or final is None:
        return ""
    added = int(metrics.get("tokens/added", 0))
    text = (
        f"{added:,} new tokens make held-out domain text {saved:.1%} shorter in tokens. It" if added else "Domain text"
    )
    text += f" costs {original:.3f} bits per byte under the original model and {final:.3f} under the {name} one"
    if last != "init" and init is not None and added:
        gap, left = init - original, final - original
        text += ", which is no more" if gap >= _GAP and left <= 0 else ""
        text += f"; before training it was {init:.3f}"
        text += f", so {1 - left / gap:.0%} of that gap was closed" if gap >= _GAP and left > 0 else ""
    return f"{text}.{_general(metrics, last, name)}{_with_adapter(metrics)}"


def _with_adapter(metrics: Mapping[str, float]) -> str:
    """The sentence about an adapter of the original, where one was tried on the distilled model."""
    old, new = (metrics.get(f"eval/{model}/domain/bits_per_byte") for model in ("adapted", "carried"))
    if old is None or new is None:
        return ""
    return f" With the adapter, domain text costs {old:.3f} under the original and {new:.3f} under the distilled model."


def _general(metrics: Mapping[str, float], last: str | None, name: str | None) -> str:
    """The sentence about general text, and the distances."""
    before, after = (metrics.get(f"eval/{model}/general/bits_per_byte") for model in ("original", last))
    if before is None or after is None:
        return ""
    text = f" General text costs {before:.3f} and {after:.3f}"
    near, far = (metrics.get(f"eval/{last}/{of}/kl_to_teacher") for of in ("domain", "general"))
    if near is not None and far is not None:
        text += f"; the {name} model is {near:.3f} nats a position from the original on domain text, {far:.3f} on it"
    return f"{text}."


def saved_share(metrics: Mapping[str, float], model: str | None) -> float | None:
    """The share of tokens that a model saves on the scored domain text, from 0 to 1."""
    before, after = (metrics.get(f"eval/{name}/domain/tokens_per_1000_bytes") for name in ("original", model))
    return None if before is None or after is None else 1 - after / before
