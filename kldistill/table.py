"""The table at the end of a run: original model, extended model before and after distillation."""

from collections.abc import Mapping

TITLE = (
    "Held-out text, 95 % intervals over documents. extended: before distillation; saved: share of tokens;\n"
    "KL: to the original model, nats/position; new tokens: their share of the tokens of domain text"
)

COLUMNS = [
    "model",
    "vocabulary",
    "tokens/1,000 B",
    "saved",
    "bits/B domain",
    "bits/B general",
    "KL domain",
    "KL general",
    "new tokens",
]

NAMES = {
    "original": "original",
    "init": "extended",
    "distilled": "distilled",
    "finetuned": "fine-tuned",
}


def final_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Rows of the table for the models that this run has evaluated; empty if it has none."""
    rows = []
    base = metrics.get("eval/original/domain/tokens_per_1000_bytes")
    for key, name in NAMES.items():
        density = metrics.get(f"eval/{key}/domain/tokens_per_1000_bytes")
        if density is None or base is None:
            continue
        original = key == "original"
        size = metrics.get("tokens/old_size" if original else "tokens/new_size")
        rows.append(
            [
                name,
                "" if size is None else f"{int(size):,}",
                f"{density:.1f}",
                "–" if original else f"{1 - density / base:.1%}",
                with_interval(metrics, f"eval/{key}/domain/bits_per_byte"),
                with_interval(metrics, f"eval/{key}/general/bits_per_byte"),
                "–" if original else with_interval(metrics, f"eval/{key}/domain/kl_to_teacher"),
                "–" if original else with_interval(metrics, f"eval/{key}/general/kl_to_teacher"),
                "–" if original else f"{metrics.get(f'eval/{key}/domain/new_token_share', 0.0):.1%}",
            ]
        )
    return rows


def with_interval(metrics: Mapping[str, float], key: str) -> str:
    """A figure with its 95 % interval: ``1.011 [0.98,1.04]``."""
    value = metrics.get(key)
    if value is None:
        return "–"
    low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.2f},{high:.2f}]"
