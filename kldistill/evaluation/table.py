"""The table at the end of a run: original model, extended model before and after distillation."""

from collections.abc import Mapping, Sequence

from kldistill.evaluation.metrics import DOMAIN, GENERAL, MODELS, OLD_CUT, parse, rates

TITLE = (
    "Held-out text, 95 % intervals over documents (none below eight; documents: of domain and general text).\n"
    "extended: before distillation; saved: share of tokens; KL: to the original model, in nats a position and, to\n"
    "compare vocabularies, a byte; new tokens: their share of the tokens of domain text"
)
CARRIED = f";\n{MODELS['carried']}: compared with {MODELS['adapted']}"
# Columns that are not always measured, and what the title says of them.
OPTIONAL = {
    "masked bits/B": "; masked:\ndomain, what cannot follow having no probability",
    "masked KL": "",
    "other cuts": "; other cuts: bits/B\ndomain that are saved where all cuts of words with new tokens are summed",
}

COLUMNS = [
    "model",
    "vocabulary",
    "tokens/1,000 B",
    "saved",
    "bits/B domain",
    "bits/B general",
    "KL domain",
    "KL general",
    "KL/B domain",
    "new tokens",
    "documents",
    *OPTIONAL,
]


def final_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Rows of the table for the models that this run has evaluated; empty if it has none."""
    rows = []
    base = metrics.get("eval/original/domain/tokens_per_1000_bytes")
    for key, name in MODELS.items():
        density = metrics.get(f"eval/{key}/domain/tokens_per_1000_bytes")
        if density is None or base is None:
            continue
        original = key == "original"
        own_cut = key in OLD_CUT  # no new token
        size = metrics.get("tokens/old_size" if own_cut else "tokens/new_size")
        rows.append(
            [
                name,
                "" if size is None else f"{int(size):,}",
                f"{density:.1f}",
                "–" if own_cut else f"{1 - density / base:.1%}",
                with_interval(metrics, f"eval/{key}/domain/bits_per_byte"),
                with_interval(metrics, f"eval/{key}/general/bits_per_byte"),
                "–" if original else with_interval(metrics, f"eval/{key}/domain/kl_to_teacher"),
                "–" if original else with_interval(metrics, f"eval/{key}/general/kl_to_teacher"),
                "–" if original else with_interval(metrics, f"eval/{key}/domain/kl_per_byte"),
                "–" if own_cut else f"{metrics.get(f'eval/{key}/domain/new_token_share', 0.0):.1%}",
                " / ".join(_number(metrics, f"eval/{key}/{text}/documents", ",.0f") for text in (DOMAIN, GENERAL)),
                with_interval(metrics, f"eval/{key}/domain/bits_per_byte_masked"),
                with_interval(metrics, f"eval/{key}/domain/kl_to_teacher_masked"),
                with_interval(metrics, f"eval/{key}/domain/marginal_gap"),
            ]
        )
    return rows


def final_table(metrics: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of that table, without what is not always measured and was not here."""
    rows = final_rows(metrics)
    kept = [at for at, name in enumerate(COLUMNS) if name not in OPTIONAL or any(row[at] != "–" for row in rows)]
    return [COLUMNS[at] for at in kept], [[row[at] for at in kept] for row in rows]


def title_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """What stands above that table: it tells of the columns and models that are there."""
    carried = CARRIED if any(row[0] == MODELS["carried"] for row in rows) else ""
    return TITLE + carried + "".join(told for name, told in OPTIONAL.items() if name in columns)


def suites_title(rows: Sequence[Sequence[str]]) -> str:
    """What stands above the table of suites."""
    return SUITES_TITLE + (CARRIED if any(MODELS["carried"] in row for row in rows) else "")


def with_interval(metrics: Mapping[str, float], key: str, sign: bool = False) -> str:
    """A figure with its 95 % interval: ``1.011 [0.98,1.04]``; with ``sign`` as a difference: ``+0.011 [...]``."""
    value = metrics.get(key)
    if value is None:
        return "–"
    low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
    shown = f"{value:+.3f}" if sign else f"{value:.3f}"
    return shown if low is None or high is None else f"{shown} [{low:.2f},{high:.2f}]"


SUITES_TITLE = (
    "Suites of tasks, 95 % intervals over documents (none below eight; where tasks come from no documents, each is\n"
    "one). difference: to the original model on the same tasks; p: McNemar's exact test;\n"
    "adoption: new tokens written as such, of those that the text spells"
)

SUITES_COLUMNS = [
    "suite",
    "tasks",
    "documents",
    "model",
    "rate",
    "value",
    "difference",
    "p",
    "tokens/task",
    "s/task",
    "adoption",
    "timed out",
]


COSTS = {"tokens_per_task": ".1f", "seconds_per_task": ".2f", "adoption": ".1%", "verdict/timed_out": ".0f"}


def suite_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Rows of the table of suites: one per suite, model and rate; empty where no suite was run."""
    rows = []
    for name in rates(metrics):
        base = f"eval/{name.model}/{name.subject}"
        p = metrics.get(f"{name}/mcnemar_p")
        rows.append(
            [
                name.subject,
                f"{int(metrics[f'{base}/tasks']):,}",
                _number(metrics, f"{base}/documents", ",.0f"),
                MODELS[name.model],
                name.metric,
                with_interval(metrics, str(name)),
                with_interval(metrics, f"{name}/minus_original", sign=True),
                "–" if p is None else f"{p:.3f}",
                *(_number(metrics, f"{base}/{cost}", form) for cost, form in COSTS.items()),
            ]
        )
    return rows


def _number(metrics: Mapping[str, float], key: str, form: str) -> str:
    value = metrics.get(key)
    return "–" if value is None else f"{value:{form}}"


def final_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics on suites of the run's last model, under names without the model, such as ``eval/humaneval/pass@1``.

    So dashboards find the result of a run in one place, whatever it trained.
    """
    names = [name for name in map(parse, metrics) if name is not None]
    trained = [model for model in ("finetuned", "distilled") if any(name.model == model for name in names)]
    own = [name for name in names if name.model in trained[:1] and not name.of_text]
    return {str(name._replace(model="")): metrics[str(name)] for name in own}


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; what would end a cell or a line of it is escaped or replaced."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
