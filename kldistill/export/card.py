"""The model card of an exported model: what it is, what was measured, and how it was made."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined, Template

from kldistill import __version__
from kldistill.evaluation.metrics import MODELS, rates
from kldistill.evaluation.table import markdown_table, with_interval
from kldistill.rows.rows import Rows
from kldistill.runtime.artifacts import MANIFEST, manifest
from kldistill.runtime.files import read_summary
from kldistill.tokens.artifact import read_new_tokens, read_vocabulary
from kldistill.training.adapters import FACTS, method_of

TEXT_COLUMNS = [
    "model",
    "tokens / 1,000 bytes",
    "saved",
    "bits / byte, domain",
    "bits / byte, general",
    "KL, domain",
    "KL, general",
]
# The settings that the card tells of each stage: those that decide what came out. Paths are left out, as they say
# something of the machine, not of the model.
SETTINGS = {
    "tokens": [
        "method",
        "boundary",
        "n_new",
        "vocab_size",
        "min_count",
        "min_documents",
        "max_pieces",
        "prefix_closed",
        "leading_space",
    ],
    "init": ["tie", "calibrate", "seed"],
    "distill": [
        "steps",
        "batch_size",
        "snippet_bytes",
        "draw",
        "lr",
        "lora.r",
        "lora_lr",
        "schedule",
        "warmup",
        "seed",
    ],
    "finetune": [
        "method",
        "lora.r",
        "lora.alpha",
        "train_rows",
        "loss.name",
        "steps",
        "batch_size",
        "snippet_bytes",
        "lr",
        "schedule",
        "warmup",
        "seed",
    ],
}
_TRAINED = {
    "init": "nothing; the new rows are as they were initialised",
    "distill": "the new rows alone, by self-distillation; all other weights are the base model's",
    "together": "the new rows and a low-rank update of the body (merged), together, by self-distillation",
    "lora": "the new rows by self-distillation, then the body by a low-rank update (merged)",
    "full": "the new rows by self-distillation, then all weights by fine-tuning",
    "rows": "the new rows alone, by self-distillation and then by fine-tuning; all other weights are the base model's",
}
_TEXTS = ("domain", "general")
FOLDER = "path/to/this/folder"  # what the card's code calls the model; the upload puts the repository in its place


def write(
    out: Path,
    facts: Mapping[str, Any],
    inputs: Mapping[str, Path],
    figures: Mapping[str, float],
    license: str | None,
) -> None:
    """Write ``README.md`` and ``figures.json`` beside an exported model.

    Args:
        out: the exported folder, complete otherwise: the card names what it finds there.
        facts: the ``model.json`` of the base model.
        inputs: the folders that the export was made of: ``tokens``, ``rows`` and any others.
        figures: names and values of metrics.
        license: the license of the extended model; None where nobody knows it.
    """
    (out / "README.md").write_text(text_of(out, facts, inputs, figures, license), encoding="utf-8")
    if figures:
        (out / "figures.json").write_text(json.dumps(dict(figures), indent=2) + "\n", encoding="utf-8")


def text_of(
    out: Path, facts: Mapping[str, Any], inputs: Mapping[str, Path], figures: Mapping[str, float], license: str | None
) -> str:
    """The model card as text. The arguments are those of ``write``."""
    base, name = facts.get("base_model"), facts["name"]
    rows = Rows.load(inputs["rows"])
    sizes = read_vocabulary(inputs["tokens"])
    header = ModelCardData(
        base_model=base,
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["kldistill", "vocabulary-extension", "self-distillation"],
    )
    tasks = task_rows(figures)
    # A folder of this machine by its name alone.
    merged = [of["path"] if of["revision"] else Path(of["path"]).name for of in facts.get("adapters", [])]
    return template().render(
        header=header.to_yaml(),
        name=name,
        source=f"[{name}](https://huggingface.co/{base})" if base else f"`{name}`",
        old_size=sizes.old_size,
        new_size=sizes.new_size,
        n_new=sizes.new_size - sizes.old_size,
        adapters=merged,
        saved=figures.get("tokens/saved"),
        license=license,
        tied=rows.tied,
        folder=FOLDER,
        height=json.loads((out / "config.json").read_text()).get("vocab_size"),
        trained=_TRAINED[training_of(inputs["rows"])],
        own_class=(out / "tokenization_extended.py").is_file(),
        own_code="auto_map" in json.loads((out / "config.json").read_text()),
        gguf=next((path.name for path in sorted(out.glob("*.gguf"))), None),
        text_columns=TEXT_COLUMNS,
        texts=text_rows(figures),
        task_columns=["suite", "figure", *tasks[0]] if tasks else [],
        tasks=[list(row) for row in tasks[1:]],
        figures=dict(figures),
        version=__version__,
        how=how(rows, inputs["tokens"]),
        settings=settings(inputs.values()),
        table=markdown_table,
    )


def how(rows: Rows, tokens: Path) -> str:
    """One paragraph on tokens and rows."""
    exact = all(token.pieces for token in read_new_tokens(tokens))
    start = {side: rows.made_by.get(side, "an unknown method") for side in ("input", "output")}
    return (
        "The new tokens come after all the tokenizer's old merges, so each stands for one fixed sequence of old tokens."
        if exact
        else "The new tokens are added tokens, found in the text before anything is cut."
    ) + f" Their rows started by {start['input']} (input) and {start['output']} (output)."


def training_of(rows: Path) -> str:
    """What was trained until these rows came out: a key of ``_TRAINED``. Told by what the stages write themselves."""
    distilled = any(key.startswith("distill/") for key in read_summary(rows))
    if (rows / FACTS).is_file():
        return "together" if distilled else method_of(rows)
    return "distill" if distilled else "init"


def text_rows(figures: Mapping[str, float]) -> list[list[str]]:
    """Rows of the table on held-out text: one for every model that was scored."""
    base = figures.get("eval/original/domain/tokens_per_1000_bytes")
    rows = []
    for key, name in MODELS.items():
        density = figures.get(f"eval/{key}/domain/tokens_per_1000_bytes")
        if density is None:
            continue
        saved = "–" if base is None or key == "original" else f"{1 - density / base:.1%}"
        cells = [f"eval/{key}/{text}/{figure}" for figure in ("bits_per_byte", "kl_to_teacher") for text in _TEXTS]
        rows.append([name, f"{density:.1f}", saved, *(with_interval(figures, cell) for cell in cells)])
    return rows


def task_rows(figures: Mapping[str, float]) -> list[list[str]]:
    """The table of suites: the names of the models, then one row per suite and rate, a cell per model. Or nothing."""
    names = rates(figures)
    models = [model for model in MODELS if any(name.model == model for name in names)]
    rows = [[MODELS[model] for model in models]] if names else []
    for name in dict.fromkeys(name._replace(model="") for name in names):
        cells = [with_interval(figures, str(name._replace(model=model))) for model in models]
        rows.append([name.subject, name.metric, *cells])
    return rows


def settings(folders: Iterable[Path]) -> list[list[str]]:
    """What the artifacts say they were made with, as ``stage.key`` and value; nothing for folders without a record."""
    rows: dict[str, str] = {}
    records = [manifest(folder) for folder in folders if (folder / MANIFEST).is_file()]
    configs = {record["stage"]: record["config"] for record in records}
    for stage, keys in SETTINGS.items():
        config = configs.get(stage)
        if config is None:
            continue
        if stage == "distill":
            terms = config["loss"]["terms"].items()
            rows["loss"] = f"{config['loss']['name']} = " + " + ".join(f"{t['weight']:g} {name}" for name, t in terms)
        for key in keys:
            value: Any = config
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                rows[f"{stage}.{key}"] = json.dumps(value) if isinstance(value, bool) else str(value)
    return [[f"`{key}`", f"`{value}`"] for key, value in rows.items()]


@cache
def template() -> Template:
    """The card's template, from the package."""
    text = (resources.files("kldistill.export") / "templates" / "model_card.md.jinja").read_text(encoding="utf-8")
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )
    return environment.from_string(text)
