"""The page of one run: ``report.html`` and, for machines, ``report.json``."""

import json
from pathlib import Path
from typing import Any

from kldistill.evaluation.metrics import MODELS, in_percent
from kldistill.evaluation.table import (
    SUITES_COLUMNS,
    final_table,
    suite_rows,
    suites_title,
    title_of,
    with_interval,
)
from kldistill.report import chart
from kldistill.report.data import ABSENT, ReportError, Run, lines, read_run
from kldistill.report.html import as_json, render, write
from kldistill.report.run import about, charts, examples, new_tokens
from kldistill.report.run.answer import answer, saved_share
from kldistill.report.svg import inline, is_wide
from kldistill.runtime.secrets import redact
from kldistill.tokens import preflight


def render_run(folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into a run's folder, from what the run left there and in its artifacts.

    It works for runs that failed or still go on, too: the page says so, and for every part what is missing.

    Args:
        folder: the run's own folder, with ``run.json``.

    Returns:
        The page.

    Raises:
        ReportError: the folder has no ``run.json``.
    """
    run = read_run(folder)
    if run.status == ABSENT:
        raise ReportError(f"{folder}: no run.json in it. Name the folder of a run, or of a sweep's runs.")
    content = gather(run)
    write(folder / "report.json", as_json(content))
    write(folder / "report.html", render("run.html.j2", **content, charts=draw(run)))
    return folder / "report.html"


def gather(run: Run) -> dict[str, Any]:
    """Everything that the page says, as plain JSON types, with nothing secret in it."""
    preflight_report = new_tokens.preflight(run)
    columns, rows = final_table(run.metrics)
    tasks = suite_rows(run.metrics)
    content = {
        "name": f"{run.folder.resolve().parent.name}/{run.folder.resolve().name}",
        "status": run.status,
        "error": run.error,
        "last": run.last,
        "answer": answer(run.metrics),
        "tiles": tiles(run),
        "models": {"columns": columns, "rows": rows},
        "overrides": run.overrides,
        "changes": list(run.changes),
        "about": [list(fact) for fact in about.facts(run)],
        "seconds": dict(run.about.get("seconds", {})),
        "preflight": {
            "figures": preflight_report.get("figures", {}),
            "refusals": preflight_report.get("refusals", []),
            "warnings": preflight_report.get("warnings", []),
        },
        "unmoved": [stage for stage in ("distill", "finetune") if run.metrics.get(f"{stage}/best_step") == 0],
        "suites": {"columns": SUITES_COLUMNS, "rows": tasks},
        "verdicts": [{"suite": s, "model": m, "counts": counts} for s, m, counts in examples.verdicts(run)],
        "two_savings": bool(tiles(run)) and "tokens/saved" in run.metrics,
        "captions": {
            "models": title_of(columns, rows).replace("\n", " "),
            "suites": suites_title(tasks).replace("\n", " "),
        },
        "completions": lines(run.file("interpret", "completions.jsonl")),
        "lines": [_plain(line) for line in examples.cut_lines(run)],
        "generations": [_plain(example) for example in examples.generations(run)],
        "new_tokens": [row._asdict() for row in new_tokens.rows(run)],
        "few_uses": preflight.FEW_USES,
        "metrics": dict(run.metrics),
        "artifacts": {step: str(path) for step, path in run.artifacts.items()},
    }
    return redact(content)


def tiles(run: Run) -> list[dict[str, str]]:
    """The figures that a reader looks for first: a label, the value, and what it is compared with or how sure it is."""
    metrics, last = run.metrics, run.last
    saved = saved_share(metrics, last)
    shown_tiles = []
    if saved is not None:
        note = "on the text that is scored"
        if "tokens/saved" in metrics:
            note += f"; {metrics['tokens/saved']:.1%} on all test documents"
        shown_tiles.append({"label": "Tokens saved", "value": f"{saved:.1%}", "note": note})
    for text in ("domain", "general"):
        before, after = (metrics.get(f"eval/{model}/{text}/bits_per_byte") for model in ("original", last))
        if before is not None and after is not None:
            note = f"{MODELS[last or '']}: {with_interval(metrics, f'eval/{last}/{text}/bits_per_byte')}"
            if documents := metrics.get(f"eval/{last}/{text}/documents"):
                note += f", {documents:,.0f} documents"
            shown_tiles.append(
                {"label": f"Bits per byte, {text} text", "value": f"{before:.3f} → {after:.3f}", "note": note}
            )
    key = f"eval/{last}/domain/kl_to_teacher"
    if key in metrics:
        value, _, interval = with_interval(metrics, key).partition(" ")
        shown_tiles.append(
            {"label": "KL to the original, domain text", "value": value, "note": f"{interval} nats per position"}
        )
    for suite, rate in (
        ("humaneval", "pass@1"),
        ("mbpp", "pass@1"),
        ("completion", "exact_match"),
        ("choice", "accuracy"),
        ("solution", "bits_per_byte"),
    ):
        before, after = (metrics.get(f"eval/{model}/{suite}/{rate}") for model in ("original", last))
        if before is not None and after is not None:
            shown = with_interval(metrics, f"eval/{last}/{suite}/{rate}/minus_original", sign=True)
            value = f"{before:.3f} → {after:.3f}"
            if in_percent(rate):
                value = f"{100 * before:.1f} → {100 * after:.1f} %"
            shown_tiles.append(
                {"label": f"{suite}, {rate.replace('_', ' ')}", "value": value, "note": f"paired: {shown}"}
            )
    return shown_tiles


def draw(run: Run) -> dict[str, Any]:
    """The page's charts by section."""
    return {
        "standing": list(charts.standing(run.metrics)),
        "learning": list(charts.learning(run)),
        "suites": list(charts.suites(run.metrics)),
        "calibration": charts.calibration(new_tokens.interpreted(run)),
        "interpret": interpret_pictures(run),
    }


def interpret_pictures(run: Run) -> list[chart.Chart]:
    """The pictures that the interpret stage drew, in its order, as its ``pictures.json`` describes them."""
    path = run.file("interpret", "pictures.json")
    if path is None:
        return []
    described = json.loads(path.read_text(encoding="utf-8"))
    charts_of_stage = []
    for number, (name, told) in enumerate(described.items()):
        text = (path.parent / Path(name).name).read_text(encoding="utf-8")
        svg = inline(text, f"interpret-{number}", told["alt"])
        charts_of_stage.append(chart.Chart(told["title"], svg, told["caption"], is_wide(svg)))
    return charts_of_stage


def _plain(item: Any) -> Any:
    """Named tuples as mappings, at any depth."""
    if hasattr(item, "_asdict"):
        return {key: _plain(value) for key, value in item._asdict().items()}
    return [_plain(value) for value in item] if isinstance(item, list) else item
