"""Stage ``finetune``: adapt the extended model further, with its new vocabulary, to the domain's text."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kldistill.corpus.documents import read_documents
from kldistill.corpus.snippets import Snippet, cut, draw
from kldistill.losses.facts import loss_facts
from kldistill.model.load import load_original, load_original_config, load_original_tokenizer
from kldistill.rows.rows import Rows
from kldistill.rows.sharding import home, place
from kldistill.runtime.devices import accelerator, sizes
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.runtime.shares import Share
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.encoding import encode_snippets
from kldistill.tokens.pieces import PieceTable
from kldistill.tokens.windows import within_context
from kldistill.training import adapters, states, texts
from kldistill.training.batches import Steps, schedule
from kldistill.training.compiled import compile_layers
from kldistill.training.cuts import TwoCuts
from kldistill.training.finetune_config import FinetuneConfig
from kldistill.training.loop import train
from kldistill.training.objective import Objective, any_masked, held_out, needs_teacher, terms_of, unit_of, validation
from kldistill.training.states import States


def build(cfg: FinetuneConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Train the body, the new rows, or both on the chosen loss; goes on from ``checkpoint.safetensors`` if
    there is one.

    Args:
        inputs: ``model``, ``tokens``, ``corpus``, ``rows`` (of ``distill``) and ``teacher``, whose validation text is
            scored and, with a loss that needs the teacher, whose training text and states are used.
        out: gets ``rows.safetensors``, ``rows.json``, ``body.json``, ``summary.json`` and what of the body has
            learnt (see ``kldistill.training.adapters``).

    Raises:
        ConfigError: a loss that needs the teacher without its states, or exact pieces that AddedTokens do not have.
    """
    if cfg.method == "none":
        raise ConfigError("finetune.method='none': there is nothing to do; choose lora, full or rows.")
    accelerate, size = accelerator(job.runtime, cfg.precision), sizes(job.runtime)
    device, share = accelerate.device, Share.of(accelerate, job.runtime)
    pieces = PieceTable.load(inputs["tokens"])
    tokenizer = load_extended_tokenizer(inputs["tokens"])
    text, general_share = training_text(cfg, inputs, pieces, job.say)
    cuts = TwoCuts.of(text, tokenizer, pieces)
    if general_share is None:
        more = "A loss that compares with the teacher takes those of the distillation: raise distill.snippets."
    else:
        more = "More text, or smaller snippets (finetune.snippet_bytes), give more."
    passes = texts.passes(cfg, "finetune", len(cuts), more, job.say)
    torch.manual_seed(cfg.seed)
    model = load_original(inputs["model"], home(device, share))
    dtype = model.dtype
    model = adapters.adapt(model, inputs["rows"])  # where distillation has changed the body, go on from there
    learns = adapters.Training(cfg.method, cfg.lora, cfg.train_rows, cfg.gradient_checkpointing)
    student, adapter = adapters.unfreeze(model, Rows.load(inputs["rows"]), pieces.old_size, learns)
    place(student, device, share)
    if job.runtime.compile:
        compile_layers(student)
    n_trainable = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    # Distillation shuffles by its seed alone; the same seed must not show the text in the same order again.
    order = schedule(cuts.lengths, cfg.batch_size, cfg.steps, f"finetune/{cfg.seed}")
    batches = Steps(
        cuts,
        order,
        chunk=size.chunk,
        # Where every weight learns, every pass adds a gradient as large as the model.
        budget=job.runtime.pass_tokens if cfg.method == "full" else size.pass_tokens,
        share=share,
        stage="finetune",
    )
    checkpoint = out / "checkpoint.safetensors"
    rows_lr = cfg.lr if cfg.rows_lr is None else cfg.rows_lr * unit_of(student, cfg.lr_unit)
    terms = terms_of(cfg.loss)
    objective = Objective(student, terms)
    figures = train(
        objective,
        batches,
        cfg,
        checkpoint,
        job,
        description=f"Fine-tuning ({cfg.method})",
        validate=validation(
            student,
            held_out(inputs["teacher"], tokenizer, pieces),
            batch_size=2 * cfg.batch_size,
            chunk=size.chunk,
            device=device,
            share=share,
            masked=any_masked(terms),
        ),
        factor=lambda name: rows_lr / cfg.lr if ".rows." in name else 1.0,
        seen=objective.seen if cfg.lazy_rows else None,
    )
    if not share.main:
        return
    adapters.save(student, adapter, learns, out, dtype, before=inputs["rows"])
    summary = {f"finetune/{name}": value for name, value in figures.items()}
    summary |= {"finetune/trainable_parameters": n_trainable, "finetune/snippets": len(text.snippets)}
    summary |= {"finetune/passes": passes}
    summary |= {} if general_share is None else {"finetune/general_share": general_share}
    write_summary(out, summary)
    checkpoint.unlink(missing_ok=True)


def training_text(
    cfg: FinetuneConfig, inputs: Mapping[str, Path], pieces: PieceTable, say: Callable[[str], None]
) -> tuple[States, float | None]:
    """The snippets to train on: fresh ones with the share that general text has of them, or where the loss needs the
    teacher those that its states are stored of, of which the teacher has told it.
    """
    seen = states.read(inputs["teacher"], "train")
    terms = terms_of(cfg.loss)
    if not needs_teacher(terms):
        return fresh(
            inputs["corpus"],
            load_original_tokenizer(inputs["model"]),
            seen.snippets,
            cfg.n_snippets,
            cfg.snippet_bytes,
            load_original_config(inputs["model"]),
            cfg.general,
            say,
        )
    if not pieces.exact and any(loss_facts(term.function).exact_pieces for term in terms.values()):
        raise ConfigError(
            f"finetune.loss={cfg.loss.name} with tokens.as_added_tokens=true: it needs the exact pieces of every new "
            "token, and AddedTokens have none. Use loss@finetune.loss=ce, or tokens.as_added_tokens=false."
        )
    if seen.values is None:
        raise ConfigError(
            f"finetune.loss={cfg.loss.name} without the teacher's states of the training text, which are stored with "
            "distill.teacher=self alone: use that, or loss@finetune.loss=ce."
        )
    return seen, None


def fresh(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    seen: Sequence[Snippet],
    n: int,
    snippet_bytes: int,
    config: PretrainedConfig,
    general: float,
    say: Callable[[str], None],
) -> tuple[States, float]:
    """``n`` snippets of the train split, those that are not among ``seen`` first; fewer if there are no more. A share
    of them is of general text; ``say`` is told where there is too little for that, and it comes back as it is.
    """
    known = set(seen)
    n_domain = n - texts.n_of(n, general)
    order = draw(cut(read_documents(folder, "train"), snippet_bytes), n=n_domain + len(known))
    chosen = [snippet for snippet in order if snippet not in known][:n_domain]
    chosen += [snippet for snippet in order if snippet in known][: n_domain - len(chosen)]
    chosen, had = texts.with_general(chosen, folder, general, snippet_bytes, 0, "finetune.general", say)
    chosen = within_context(chosen, tokenizer, config)
    return States.of(chosen, encode_snippets(tokenizer, chosen)), had
