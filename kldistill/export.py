"""The ``export`` stage: the extended model as a plain Hugging Face folder that needs no kldistill.

V old vocabulary, W old and new tokens, D width.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from kldistill import __version__
from kldistill.adapted import adapt
from kldistill.config import ExportConfig
from kldistill.errors import ModelError
from kldistill.extension import extend
from kldistill.job import Job
from kldistill.models import load, read_facts
from kldistill.rows import Rows

STAGES_WITH_ROWS = ("finetune", "distill", "init")  # the latest one wins


def build(cfg: ExportConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Make the ``export`` artifact from ``model``, ``tokens`` and the rows of ``distill`` (or else of ``init``)."""
    stage = next(name for name in STAGES_WITH_ROWS if name in inputs)
    figures = read_figures(inputs[name] for name in ("tokens", stage))
    export_model(
        inputs["model"], inputs["tokens"], inputs[stage], out, figures=figures, license=cfg.license, trained=stage
    )
    job.say("The extended model is a plain Hugging Face folder: AutoModelForCausalLM.from_pretrained reads it")


def export_model(
    model_folder: Path,
    tokens_folder: Path,
    rows_folder: Path,
    out: Path,
    *,
    figures: Mapping[str, float] | None = None,
    license: str | None = None,
    trained: str = "distill",
) -> None:
    """Write model, tokenizer, generation config and model card to ``out``.

    Embedding and head have exactly W rows: padding is dropped, ``config.vocab_size`` is W. A tied model stays tied when
    its new rows are; otherwise it is untied for good (``tie_word_embeddings`` false, the head saved).

    Args:
        figures: names and values of metrics for the model card, as in ``summary.json``.
        license: of the result; None takes the base model's.
        trained: the stage that the rows come from, ``distill`` or ``init``.

    Raises:
        ModelError: the written tokenizer, loaded plainly, gives other ids than the run's.
    """
    facts = read_facts(model_folder)
    rows = Rows.load(rows_folder)
    sizes = json.loads((tokens_folder / "vocabulary.json").read_text())
    model = extend(adapt(load(model_folder), rows_folder), rows, sizes["old_size"])
    assert model.config.get_text_config().vocab_size == sizes["new_size"]
    model.save_pretrained(out)
    # Copied byte for byte: the tokens stage has proved that plain AutoTokenizer reads these files.
    shutil.copytree(tokens_folder / "tokenizer", out, dirs_exist_ok=True)
    check_tokenizer(out, samples_of(tokens_folder))
    card = model_card(facts, rows, sizes, figures or {}, license or facts.get("license"), trained)
    (out / "README.md").write_text(card, encoding="utf-8")


def check_tokenizer(out: Path, samples: Iterable[str]) -> None:
    """Compare ids of plain ``AutoTokenizer`` with those of ``tokenizer.json`` itself. Raises ``ModelError``.

    Beside a model's config, transformers may choose another tokenizer class than in the tokenizer's own folder.
    """
    plainly = AutoTokenizer.from_pretrained(out)
    itself = Tokenizer.from_file(str(out / "tokenizer.json"))
    for text in samples:
        if plainly.encode(text, add_special_tokens=False) != itself.encode(text, add_special_tokens=False).ids:
            raise ModelError(
                f"{out}: transformers builds a {type(plainly).__name__} for this model type, which does not follow "
                f"tokenizer.json (it cuts {text[:40]!r} otherwise). tokens.boundary=word keeps the old splitting rule."
            )


def samples_of(tokens_folder: Path, limit: int = 2_000) -> list[str]:
    """Texts that show the new tokens: each alone, after a space, and inside a line of others."""
    with (tokens_folder / "new_tokens.jsonl").open(encoding="utf-8") as lines:
        strings = [json.loads(line)["string"] for line, _ in zip(lines, range(limit), strict=False)]
    groups = [strings[start : start + 16] for start in range(0, len(strings), 16)]
    return [*strings, *(f" {text}" for text in strings), *(" ".join(group) for group in groups)]


def read_figures(folders: Iterable[Path]) -> dict[str, float]:
    """All ``summary.json`` figures of some artifacts in one map."""
    found: dict[str, float] = {}
    for folder in folders:
        if (folder / "summary.json").is_file():
            found |= json.loads((folder / "summary.json").read_text())
    return found


def model_card(
    facts: Mapping[str, Any],
    rows: Rows,
    sizes: Mapping[str, int],
    figures: Mapping[str, float],
    license: str | None,
    trained: str,
) -> str:
    """The model card (README.md): metadata header, what was added, how, and what was measured."""
    base = facts.get("base_model")
    new = sizes["new_size"] - sizes["old_size"]
    header = ModelCardData(
        base_model=base,
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["kldistill", "vocabulary-extension", "self-distillation"],
    ).to_yaml()
    name = facts["name"]
    source = f"[{name}](https://huggingface.co/{base})" if base else f"`{name}`"
    saved = figures.get("tokens/saved")
    lines = [
        "---",
        header,
        "---",
        f"# {name} with {new:,} new tokens",
        "",
        f"{source} with its vocabulary extended from {sizes['old_size']:,} to {sizes['new_size']:,} tokens"
        + (f"; they save {saved:.1%} of the tokens of held-out domain text." if saved is not None else "."),
        "",
        f"- Base model: {source}",
        f"- Licence: {license or 'not known; ask the base model’s authors'}",
        f"- New tokens: {new:,} (ids {sizes['old_size']:,} to {sizes['new_size'] - 1:,})",
        f"- Embeddings: {'tied' if rows.tied else 'input and output apart'}",
        "",
        "## How it was made",
        "",
        f"With kldistill {__version__}. The tokenizer learnt the new tokens from domain text, after all its old "
        "merges, so every new token has one exact spelling in old ones. "
        f"The new rows started by {rows.made_by.get('input', 'an unknown method')} (input) and "
        f"{rows.made_by.get('output', 'an unknown method')} (output)"
        + (
            " and were trained alone, to make the extended model predict what the original one predicts."
            if trained == "distill"
            else " and were not trained."
        )
        + " All other weights are the base model's.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
    ]
    if figures:
        lines += ["", "## Figures", "", "| metric | value |", "|---|---|"]
        lines += [f"| `{key}` | {value:,.6g} |" for key, value in sorted(figures.items())]
    return "\n".join(lines) + "\n"
