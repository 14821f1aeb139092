"""Stage ``evaluate``: how well a model of the run predicts held-out text, and how far it is from the original one.

It runs once per model: ``original``, ``init`` (before distillation), ``distilled``, ``finetuned``, ``control`` (the
original, fine-tuned), ``adapted`` and ``carried`` (the original and the distilled one with an adapter of the original).
The original's hidden states of the evaluation texts are stored with its artifact, so the others compare with them
without running it again; ``carried`` compares with those of ``adapted``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from kldistill.corpus.documents import WRITTEN, has_split, read_documents
from kldistill.corpus.snippets import cut, draw
from kldistill.evaluation.config import EvaluateConfig
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.evaluation.marginal import PER_TEXT, add_gaps
from kldistill.evaluation.metrics import MODELS, Name
from kldistill.evaluation.statistics import ratio_interval, with_ends
from kldistill.model.load import load_original_config, load_original_tokenizer
from kldistill.rows.sharding import home, place
from kldistill.rows.student import bare
from kldistill.runtime.devices import accelerator, sizes
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job, short_of
from kldistill.runtime.shares import Share
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.encoding import encode_snippets
from kldistill.tokens.pieces import PieceTable
from kldistill.tokens.windows import within_context
from kldistill.training import states
from kldistill.training.cuts import TwoCuts
from kldistill.training.load import load_student
from kldistill.training.scoring import score_original, score_student
from kldistill.training.sums import SUMS, Score, summarise
from kldistill.training.texts import self_written

# The split of the corpus that each kind of text comes from, or of what the original model wrote. There may be no
# general code, and nothing written.
TEXTS = {"domain": "test", "general": "general", "general_code": "general_code", "written": WRITTEN}


def evaluate_original(cfg: EvaluateConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Score the original model, and store its hidden states of the texts.

    Args:
        inputs: ``model`` and ``corpus``; ``written`` where the original model has written.
        out: gets ``NAME.jsonl`` and ``NAME.npy`` for every kind of text, ``records.jsonl`` and ``summary.json``.
    """
    accelerate, size = accelerator(job.runtime, "no"), sizes(job.runtime)
    device, share = accelerate.device, Share.of(accelerate, job.runtime)
    tokenizer = load_original_tokenizer(inputs["model"])
    model = place(bare(inputs["model"], home(device, share)), device, share)
    scores: dict[str, list[Score]] = {}
    for name, split in TEXTS.items():
        folder = inputs.get("written") if split == WRITTEN else inputs["corpus"]
        if folder is None or not has_split(folder, split):
            if name == "general_code" and (asked := cfg.eval.general_code_bytes) is not None:
                none = "The corpus has no general code: see corpus.general_code."
                short_of("eval.general_code_bytes", asked, 0, "bytes of it", none, job.say)
            continue
        if split == WRITTEN:
            windows = self_written(folder)
        else:
            wanted = cfg.eval.size_of(name)
            windows = draw(cut(read_documents(folder, split), cfg.eval.window_bytes), n_bytes=wanted)
            had, what = sum(window.n_bytes for window in windows), f"bytes in the split {split}"
            more = "more text, or a larger corpus.test," if name == "domain" else f"more documents in corpus.{name}"
            meaning = f"All of it is scored, and intervals are wider: {more} would mend that."
            short_of(f"eval.{cfg.eval.key_of(name)}", wanted, had, what, meaning, job.say)
        windows = within_context(windows, tokenizer, load_original_config(inputs["model"]))
        encoded = encode_snippets(tokenizer, windows)
        description = f"{MODELS[cfg.model].capitalize()} model on {name.replace('_', ' ')} text"
        batch_size, chunk = size.score_batch, size.chunk
        states.write(
            out,
            name,
            model,
            windows,
            encoded,
            batch_size=batch_size,
            device=device,
            description=description,
            share=share,
        )
        scores[name] = score_original(
            model, states.read(out, name), chunk=chunk, device=device, description=f"{description}, scores", share=share
        )
    if share.main:
        report(cfg, scores, ("bits_per_byte", "tokens_per_1000_bytes"), out, job)


def evaluate_student(cfg: EvaluateConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Score the extended model with some rows, and compare it with the original.

    Args:
        inputs: ``model``, ``tokens``, ``rows`` and ``evaluate_original``.
        out: gets ``records.jsonl`` and ``summary.json``.
    """
    accelerate, size = accelerator(job.runtime, "no"), sizes(job.runtime)
    device, share = accelerate.device, Share.of(accelerate, job.runtime)
    pieces = PieceTable.load(inputs["tokens"])
    tokenizer = load_extended_tokenizer(inputs["tokens"])
    student = place(load_student(inputs["model"], inputs["rows"], home(device, share)), device, share)
    scores: dict[str, list[Score]] = {}
    plain: list[Score] = []
    for name in TEXTS:
        if not states.exists(inputs["evaluate_original"], name):
            continue
        cuts = TwoCuts.read(inputs["evaluate_original"], name, tokenizer, pieces)
        scores[name] = score_student(
            student,
            cuts,
            teacher=pieces.exact,
            batch_size=size.score_batch,
            chunk=size.chunk,
            device=device,
            description=f"{MODELS[cfg.model].capitalize()} model on {name.replace('_', ' ')} text",
            share=share,
            masked=cfg.eval.masked,
        )
        # No new token, not even where nothing is scored: both models see the same contexts, so any distance is mass
        # that new tokens took.
        plain += [score for score, ids in zip(scores[name], cuts.new_ids, strict=True) if max(ids) < student.old_size]
        if name == "domain":
            add_gaps(
                student,
                Spelling(tokenizer),
                cuts,
                scores[name],
                cfg.eval.marginal_words,
                description=f"All cuts of words, {MODELS[cfg.model]} model",
                share=share,
            )
            if 0 < PER_TEXT * len(cuts) < cfg.eval.marginal_words and student.new_size > student.old_size:
                n_words, what = sum(score.n_words for score in scores[name]), f"words, {PER_TEXT} in each text at most"
                more = "A larger eval.domain_bytes, or a smaller eval.window_bytes, gives more texts."
                short_of("eval.marginal_words", cfg.eval.marginal_words, n_words, what, more, job.say)
    if plain:
        scores["plain"] = plain
    if share.main:
        report(cfg, scores, tuple(SUMS), out, job)


def report(
    cfg: EvaluateConfig, scores: Mapping[str, Sequence[Score]], names: Sequence[str], out: Path, job: Job
) -> None:
    """Write all metrics with their intervals, and one record per text."""
    metrics: dict[str, float] = {}
    with (out / "records.jsonl").open("w", encoding="utf-8") as file:
        for text, of_text in scores.items():
            for score in of_text:
                file.write(json.dumps({"text": text, **asdict(score)}) + "\n")
            documents = [score.document for score in of_text]
            for name, value in summarise(of_text, names).items():
                sums = SUMS[name]
                above = [sums.factor * getattr(score, sums.above) for score in of_text]
                interval = ratio_interval(documents, above, [getattr(score, sums.below) for score in of_text])
                metrics |= with_ends(str(Name(cfg.model, text, name)), value, interval)
            metrics[str(Name(cfg.model, text, "bytes"))] = sum(score.n_bytes for score in of_text)
            metrics[str(Name(cfg.model, text, "documents"))] = len(set(documents))
            if n_words := sum(score.n_words for score in of_text):
                metrics[str(Name(cfg.model, text, "marginal_words"))] = n_words
                looked_at = {score.document for score in of_text if score.gap_bytes}
                metrics[str(Name(cfg.model, text, "marginal_documents"))] = len(looked_at)
    write_summary(out, metrics)
    job.log(metrics)
