"""Folders as runs leave them, written by hand: for the report, without any training."""

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kldistill.pipeline.changes import changes
from kldistill.pipeline.compose import defaults
from tests.helpers.setting import lines

_defaults = cache(defaults)  # composing them takes a second
HOSTILE = "</script><img src=x onerror=alert(1)>"
TEXTS = ("domain", "general")
# Bits per byte and KL of every init and loss, to which a run adds its seed's noise.
INITS = {"random": 0.30, "mean": 0.20, "subtoken_mean": 0.10, "last_piece": 0.12}


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def figures_of(records: list[dict[str, Any]], of: str, text: str) -> dict[str, float]:
    """The figures of one kind of text, as the stage evaluate makes them; intervals are of a fixed width."""
    own = [record for record in records if record["text"] == text]

    def ratio(above: str, below: str, factor: float = 1.0) -> float:
        return factor * sum(record[above] for record in own) / sum(record[below] for record in own)

    found = {
        "bits_per_byte": ratio("nats", "n_bytes", 1 / np.log(2)),
        "tokens_per_1000_bytes": ratio("n_tokens", "n_bytes", 1000),
    }
    if of != "original":
        found |= {
            "kl_to_teacher": ratio("kl", "n_common"),
            "kl_per_byte": ratio("kl", "n_bytes"),
            "new_token_share": ratio("n_new", "n_tokens"),
            "adoption": ratio("adopted", "n_new"),
            "new_token_nats": ratio("new_nats", "n_new"),
        }
    figures: dict[str, float] = {}
    for name, value in found.items():
        key = f"eval/{of}/{text}/{name}"
        figures |= {key: float(value), f"{key}/low": float(0.95 * value), f"{key}/high": float(1.05 * value)}
    return figures | {f"eval/{of}/{text}/documents": len({record["document"] for record in own})}


def write_evaluation(folder: Path, of: str, bits: float, kl: float, saved: float = 0.16) -> dict[str, float]:
    """An artifact of the stage evaluate: records of ten texts a kind, and their figures."""
    records = []
    sizes = 1000 + 10 * np.arange(10)
    hardness = 1 + 0.2 * np.sin(3 * np.arange(10))
    hardness *= sizes.sum() / (hardness * sizes).sum()  # so that the figure of all texts is ``bits``
    for text in TEXTS:
        for at, (size, hard) in enumerate(zip(sizes.tolist(), hardness.tolist(), strict=True)):
            tokens = round((300 + 5 * at) * (1 - (saved if of != "original" else 0)))
            records.append(
                {
                    "text": text,
                    "document": f"{text}/{at}.py",
                    "n_bytes": size,
                    "n_tokens": tokens,
                    "nats": float(hard * bits * np.log(2) * size),
                    "kl": float(hard * kl * 250),
                    "n_common": 250,
                    "n_new": 30,
                    "adopted": float(30 * min(0.9, 0.1 / kl)) if kl else 0.0,
                    "new_nats": float(30 * 4 * kl / 0.4),
                }
            )
    write_jsonl(folder / "records.jsonl", records)
    figures = {key: value for text in TEXTS for key, value in figures_of(records, of, text).items()}
    write_json(folder / "summary.json", figures)
    return figures


def config(loss: str, init: str, seed: int) -> dict[str, Any]:
    """As much of a resolved configuration as the report looks at."""
    target = {"_target_": f"kldistill.rows.inits.{init}"}
    return {"seed": seed, "loss": {"name": loss, "lr": 0.004}, "init": {"input": target, "output": target}}


def write_run(
    folder: Path,
    loss: str,
    init: str,
    seed: int,
    *,
    bits: float,
    kl: float,
    status: str = "finished",
    hydra: bool = True,
) -> Path:
    """A run that evaluated the original, the extended and the distilled model."""
    metrics: dict[str, float] = {"tokens/saved": 0.17, "tokens/added": 24, "distill/seconds": 100.0 + seed}
    artifacts = {}
    if status == "finished":
        for of, values in {"original": (0.8, 0.0), "init": (1.2, 0.7), "distilled": (bits, kl)}.items():
            artifacts[f"evaluate_{of}"] = f"artifacts/evaluate_{of}"
            metrics |= write_evaluation(folder / artifacts[f"evaluate_{of}"], of, *values)
    asked = config(loss, init, seed)
    content = {"status": status, "config": asked, "artifacts": artifacts, "metrics": metrics}
    content["changes"] = [change._asdict() for change in changes(asked, _defaults())]
    if status == "failed":
        content["error"] = "TrainingError: the loss is not finite"
    write_json(folder / "run.json", content)
    if hydra:
        write_overrides(folder, loss, init, seed)
    return folder


def write_overrides(folder: Path, loss: str, init: str, seed: int) -> None:
    """What Hydra records of a job."""
    given = [f"loss={loss}", f"init={init}", f"seed={seed}", "logger=none"]
    write_json(folder / ".hydra" / "overrides.yaml", given)  # JSON is YAML
    write_json(folder / ".hydra" / "hydra.yaml", {"hydra": {"runtime": {"choices": {"loss": loss, "init": init}}}})


def write_sweep(folder: Path, losses: Mapping[str, float], *, seeds: int = 3, inits: int = 4) -> Path:
    """A grid: every loss (and what it adds to bits per byte) with every init and seed; KL goes the other way."""
    for loss, extra in losses.items():
        for init, gap in list(INITS.items())[:inits]:
            for seed in range(seeds):
                noise = 0.0004 * np.cos(7 * seed + len(init) + 3 * len(loss))
                write_run(
                    folder / f"init={init},loss={loss},seed={seed}",
                    *(loss, init, seed),
                    bits=0.8 + gap + extra + noise,
                    kl=0.4 + gap - 2 * extra + noise,
                )
    return folder


def write_full_run(folder: Path, model: Path, tokens: Path) -> Path:
    """A run with every artifact that the page shows, with hostile text wherever text comes from outside."""
    write_run(folder, "kl", "subtoken_mean", 0, bits=0.85, kl=0.3)
    content = json.loads((folder / "run.json").read_text())
    size = json.loads((tokens / "vocabulary.json").read_text())["old_size"]
    made = folder / "artifacts"
    write_jsonl(
        made / "corpus" / "test.jsonl",
        [{"id": f"{HOSTILE}/{at}.py", "text": "\n".join(lines()[40 * at : 40 * at + 40])} for at in range(8)],
    )
    shutil.copytree(tokens, made / "tokens")
    listed = [json.loads(line) for line in (tokens / "new_tokens.jsonl").read_text().splitlines()]
    listed[3]["string"] = HOSTILE
    write_jsonl(made / "tokens" / "new_tokens.jsonl", listed)
    figures = {
        **{"tokens/old_size": size, "tokens/added": len(listed), "tokens/saved": 0.17, "tokens/boundaries": 1000},
        **{"tokens/per_1000_bytes/old": 300.0, "tokens/per_1000_bytes/new": 250.0, "tokens/prefix_closed": 0.7},
        **{"tokens/refinement_violations": 0, "tokens/piece_mismatches": 0, "tokens/few_uses": 2},
        "tokens/unused_held_out": 1,
    }
    report = {"figures": figures, "refusals": [], "warnings": [f"Beware of {HOSTILE}."]}
    report["tokens"] = [{**token, "held_out": 2 * at} for at, token in enumerate(listed)]
    write_json(made / "tokens" / "preflight.json", report)
    content["metrics"] |= figures
    content["metrics"] |= write_suites(made)
    write_interpretation(made / "interpret", listed)
    names = ("corpus", "tokens", "interpret", *(path.name for path in made.glob("*_programs")))
    content["artifacts"] |= {name: f"artifacts/{name}" for name in names}
    content["artifacts"]["model"] = str(model)
    write_json(folder / "run.json", content)
    curve = [{"stage": "distill", "step": step, "time": 0.0, "distill/loss": 3 / step} for step in range(1, 41)]
    validation = [
        {"stage": "distill", "step": step, "time": 0.0, "distill/validation_bits_per_byte": 1 - step / 100}
        for step in (0, 20, 40)
    ]
    write_jsonl(folder / "metrics.jsonl", [*curve, *validation])
    return folder


def write_suites(made: Path) -> dict[str, float]:
    """Tasks and answers of a suite of programs, by the original and by the distilled model."""
    tasks = [
        {"id": f"programs/{at}", "kind": "program", "prompt": f"def f{at}():\n", "reference": "x"} for at in range(6)
    ]
    write_jsonl(made / "tasks_programs" / "tasks.jsonl", tasks)
    write_json(made / "tasks_programs" / "summary.json", {"tasks/programs": 6})
    metrics: dict[str, float] = {}
    for of, passing in (("original", {0, 1}), ("distilled", {1, 2, 3})):
        records = [
            {
                **{"task": task["id"], "sample": 0, "group": "", "completion": f"    return {at}  # {HOSTILE}\n"},
                **{"verdict": "passed" if at in passing else "failed", "detail": f"AssertionError: {HOSTILE}"},
                **{"tokens": 9, "bytes": 30, "seconds": 0.1},
            }
            for at, task in enumerate(tasks)
        ]
        start = f"eval/{of}/programs"
        figures = {
            f"{start}/tasks": 6,
            f"{start}/pass@1": len(passing) / 6,
            f"{start}/pass@1/low": 0.0,
            f"{start}/pass@1/high": 0.9,
            f"{start}/verdict/passed": len(passing),
            f"{start}/verdict/failed": 6 - len(passing),
            f"{start}/tokens_per_task": 9.0,
            f"{start}/seconds_per_task": 0.1,
        }
        if of == "distilled":
            figures |= {
                f"{start}/pass@1/minus_original": 1 / 6,
                f"{start}/pass@1/minus_original/low": -0.3,
                f"{start}/pass@1/minus_original/high": 0.6,
                f"{start}/pass@1/mcnemar_p": 1.0,
            }
        write_jsonl(made / f"generate_{of}_programs" / "records.jsonl", records)
        write_json(made / f"generate_{of}_programs" / "summary.json", figures)
        metrics |= figures
    return metrics


def write_interpretation(folder: Path, tokens: list[dict[str, Any]]) -> None:
    """What the stage interpret writes: a row a token, and a figure with a hostile part."""
    rows = [
        {
            **{"id": token["id"], "n": at, "nll": 5 - at / 10, "adoption": 0.02 * at, "target": 0.03 * at},
            **{"token_student": 0.02 * at, "token_target": 0.03 * at},
        }
        if at
        else {"id": token["id"], "n": 0}
        for at, token in enumerate(tokens)
    ]
    write_jsonl(folder / "new_tokens.jsonl", rows)
    answers = [
        {"model": "original", "tokens": [{"text": HOSTILE, "new": False}], "exact": False},
        {
            **{"model": "extended", "exact": True},
            "tokens": [{"text": "self.", "new": False}, {"text": "config", "new": True}],
        },
    ]
    line = {"document": f"{HOSTILE}.py", "prompt": "x = ", "reference": "self.config", "answers": answers}
    write_jsonl(folder / "completions.jsonl", [line])
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="560pt" height="100pt" viewBox="0 0 560 100">'
        '<script>alert(2)</script><rect id="a" width="20" height="20" style="fill: #0072b2" onclick="alert(3)"/>'
        '<text x="5" y="50">layer</text></svg>'
    )
    (folder / "layers.svg").write_text(drawing)
    about = {"title": "Layers", "alt": f"How layers agree {HOSTILE}", "caption": "A caption."}
    write_json(folder / "pictures.json", {"layers.svg": about})
