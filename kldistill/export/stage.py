"""The ``export`` stage: the extended model as a plain Hugging Face folder that needs no kldistill.

V old vocabulary, W old and new tokens.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from kldistill.export import card, gguf_file, older_names, padding, processors
from kldistill.export.config import ExportConfig
from kldistill.model.load import load_original_config, read_facts
from kldistill.model.save import save_model
from kldistill.runtime.errors import ModelError
from kldistill.runtime.files import read_summary
from kldistill.runtime.job import Job
from kldistill.tokens.artifact import read_new_tokens, read_vocabulary
from kldistill.training.load import load_model

ROWS = ("rows", "finetune", "distill", "init")  # names of the input that has the rows; the first that is there


def build(cfg: ExportConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Make the ``export`` artifact. Its upload is a step of its own (``upload.build``).

    Args:
        inputs: ``model``, ``tokens`` and ``rows`` (else ``finetune``, ``distill`` or ``init``, whichever comes first);
            the figures of all other folders go into the model card too.
        out: gets ``config.json``, ``generation_config.json``, ``model*.safetensors``, the tokenizer, ``README.md``,
            ``figures.json``, a multimodal model's processor files and, with ``cfg.gguf``, ``model.gguf``.

    Raises:
        ModelError: the folder would not be read back as it was meant, or a GGUF file cannot express it.
    """
    rows = next(name for name in ROWS if name in inputs)
    check_model(cfg, inputs["model"])
    written = export_model(
        inputs["model"],
        inputs["tokens"],
        inputs[rows],
        out,
        others=[folder for name, folder in inputs.items() if name not in ("model", "tokens", rows)],
        license=cfg.license,
        gguf=cfg.gguf,
        pad_to_multiple_of=cfg.pad_to_multiple_of,
        dtype=cfg.dtype,
    )
    there = load_original_config(inputs["model"]).dtype
    if cfg.dtype is None and isinstance(there, torch.dtype) and there.itemsize < written.itemsize:
        names = [str(dtype).removeprefix("torch.") for dtype in (written, there)]
        job.say(
            f"The weights are written in {names[0]}, as they were held; the original's folder has {names[1]}. "
            f"export.dtype={names[1]} writes them in that, at {there.itemsize / written.itemsize:.0%} of the size."
        )
    processors.keep(read_facts(inputs["model"]), load_original_config(inputs["model"]), out, job.say)
    job.say("The extended model is a plain Hugging Face folder: AutoModelForCausalLM.from_pretrained reads it")


def check_model(cfg: ExportConfig, model: Path) -> None:
    """Refuse an original model that cannot be exported as asked; possible long before anything is trained.

    Args:
        model: folder of the ``model`` artifact.

    Raises:
        ModelError: no GGUF file can express it.
    """
    if cfg.gguf:
        gguf_file.check_model(model)


def export_model(
    model: Path,
    tokens: Path,
    rows: Path,
    out: Path,
    *,
    others: Iterable[Path] = (),
    license: str | None = None,
    gguf: bool = False,
    pad_to_multiple_of: int = 1,
    dtype: str | None = None,
) -> torch.dtype:
    """Write model, tokenizer, generation config and model card to ``out``.

    Embedding and head have exactly W rows: padding is dropped, so no id beyond the tokenizer can be produced, and
    ``config.vocab_size`` is W (the next multiple of ``pad_to_multiple_of``, if that is asked for). A tied model stays
    tied when its new rows are; otherwise it is untied for good (``tie_word_embeddings`` false, the head saved).
    Adapters are merged. transformers 4 and 5 read the folder alike.

    Args:
        model, tokens, rows: folders of the artifacts; ``rows`` of ``init``, ``distill`` or ``finetune``.
        others: folders of artifacts whose ``summary.json`` goes into the card.
        license: the license of the extended model; None takes the base model's.
        gguf: also write ``model.gguf``.
        pad_to_multiple_of: what the height of embedding and head is rounded up to a multiple of; 1 adds nothing.
        dtype: the type of the written weights, by its name in torch; None leaves them as they were held.

    Returns:
        The type of the written weights.

    Raises:
        ModelError: the written tokenizer, loaded plainly, gives other ids than the run's; or no GGUF can be written.
    """
    facts = read_facts(model)
    extended = load_model(model, rows)
    assert extended.config.get_text_config().vocab_size == read_vocabulary(tokens).new_size
    if dtype is not None:
        extended.to(getattr(torch, dtype))
    padding.pad(extended, pad_to_multiple_of)
    save_model(extended, out)
    # Copied byte for byte: the tokens stage has proved that plain AutoTokenizer reads these files.
    shutil.copytree(tokens / "tokenizer", out, dirs_exist_ok=True)
    older_names.add(out, trust_remote_code=facts["trust_remote_code"])
    check_tokenizer(out, samples_of(tokens))
    if gguf:
        gguf_file.write(extended, tokens / "tokenizer", out / gguf_file.FILE, name=facts["name"])
    inputs = {"tokens": tokens, "rows": rows, **{str(folder): folder for folder in others}}
    card.write(out, facts, inputs, read_figures(inputs.values()), license or facts.get("license"))
    return extended.dtype


def check_tokenizer(out: Path, samples: Iterable[str]) -> None:
    """Compare ids of plain ``AutoTokenizer`` with those of ``tokenizer.json`` itself. Raises ``ModelError``.

    Beside a model's config, transformers may choose another tokenizer class than in the tokenizer's own folder.
    """
    plainly = AutoTokenizer.from_pretrained(out, trust_remote_code=False)  # or it asks, where the folder has code
    itself = Tokenizer.from_file(str(out / "tokenizer.json"))
    itself.no_truncation()
    itself.no_padding()
    for text in samples:
        if plainly.encode(text, add_special_tokens=False) != itself.encode(text, add_special_tokens=False).ids:
            raise ModelError(
                f"{out}: transformers builds a {type(plainly).__name__} for this model type, which does not follow "
                f"tokenizer.json (it cuts {text[:40]!r} otherwise). tokens.boundary=word keeps the old splitting rule."
            )


def samples_of(tokens_folder: Path, limit: int = 2_000) -> list[str]:
    """Texts that show the new tokens: each alone, after a space, and inside a line of others."""
    strings = [token.string for token in read_new_tokens(tokens_folder)[:limit]]
    groups = [strings[start : start + 16] for start in range(0, len(strings), 16)]
    return [*strings, *(f" {text}" for text in strings), *(" ".join(group) for group in groups)]


def read_figures(folders: Iterable[Path]) -> dict[str, float]:
    """All ``summary.json`` figures of some artifacts in one map."""
    figures: dict[str, float] = {}
    for folder in folders:
        figures |= read_summary(folder)
    return figures
