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


def with_interval(metrics: Mapping[str, float], key: str, sign: bool = False) -> str:
    """A figure with its 95 % interval: ``1.011 [0.98,1.04]``; with ``sign`` as a difference: ``+0.011 [...]``."""
    value = metrics.get(key)
    if value is None:
        return "–"
    low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
    shown = f"{value:+.3f}" if sign else f"{value:.3f}"
    return shown if low is None or high is None else f"{shown} [{low:.2f},{high:.2f}]"


SUITES_TITLE = (
    "Suites of tasks, 95 % intervals over tasks (over documents for completion). difference: to the original model on\n"
    "the same tasks; p: McNemar's exact test; adoption: new tokens written as such, of those that the text spells"
)

SUITES_COLUMNS = [
    "suite",
    "tasks",
    "model",
    "figure",
    "value",
    "difference",
    "p",
    "tokens/task",
    "s/task",
    "adoption",
    "timed out",
]


COSTS = {"tokens_per_task": ".1f", "seconds_per_task": ".2f", "adoption": ".1%", "verdict/timed_out": ".0f"}


def suite_rates(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """(suite, model, rate) of every rate with an interval in the flat map of figures, suite by suite."""
    found = []
    for key in metrics:
        parts = key.split("/")
        of_a_model = len(parts) == 5 and parts[0] == "eval" and parts[1] in NAMES  # not those of ``final_names``
        if of_a_model and parts[4] == "low" and parts[2] not in ("domain", "general", "plain"):
            found.append((parts[2], parts[1], parts[3]))
    suites = list(dict.fromkeys(suite for suite, _, _ in found))
    models = list(NAMES)
    return sorted(found, key=lambda entry: (suites.index(entry[0]), models.index(entry[1])))


def suite_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Rows of the table of suites: one per suite, model and rate; empty where no suite was run."""
    rows = []
    for suite, model, rate in suite_rates(metrics):
        base = f"eval/{model}/{suite}"
        p = metrics.get(f"{base}/{rate}/mcnemar_p")
        rows.append(
            [
                suite,
                f"{int(metrics[f'{base}/tasks']):,}",
                NAMES[model],
                rate,
                with_interval(metrics, f"{base}/{rate}"),
                with_interval(metrics, f"{base}/{rate}/minus_original", sign=True),
                "–" if p is None else f"{p:.3f}",
                *(_number(metrics, f"{base}/{name}", form) for name, form in COSTS.items()),
            ]
        )
    return rows


def _number(metrics: Mapping[str, float], key: str, form: str) -> str:
    value = metrics.get(key)
    return "–" if value is None else f"{value:{form}}"


def final_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Figures on suites of the last model of the run under names without the model, such as ``eval/humaneval/pass@1``:
    whatever a run trained, dashboards find its result in one place.
    """
    trained = [model for model in ("finetuned", "distilled") if any(f"eval/{model}/" in key for key in metrics)]
    if not trained:
        return {}
    head = f"eval/{trained[0]}/"
    texts = tuple(f"{head}{text}/" for text in ("domain", "general", "plain"))
    return {
        f"eval/{key.removeprefix(head)}": value
        for key, value in metrics.items()
        if key.startswith(head) and not key.startswith(texts)
    }
