"""Stage ``tokens``: extend the tokenizer, describe the new tokens, and say before any training what they will do."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from kldistill.corpus.documents import read_documents
from kldistill.model.load import load_original_config, load_original_tokenizer, old_size
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.tokens import preflight
from kldistill.tokens.artifact import NewToken, write_tables
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.curve import as_json, as_table, curves
from kldistill.tokens.definition import definition, kind, text_bytes, token_bytes
from kldistill.tokens.encoding import count_special, reader
from kldistill.tokens.examiner import Examiner, changed_words
from kldistill.tokens.extension import extend_by, rules_of, uses
from kldistill.tokens.folder import extensions_of, save
from kldistill.tokens.occurrences import miscounted
from kldistill.tokens.texts import Texts


def build(cfg: TokensConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Write the extended tokenizer, the table of new tokens and the preflight report.

    Args:
        cfg: which tokens are added.
        inputs: ``model`` (the original model) and ``corpus``.
        out: gets ``tokenizer/``, ``new_tokens.jsonl``, ``vocabulary.json``, ``preflight.json``, ``preflight.txt`` and
            ``summary.json``, and with ``tokens.curve`` also ``curve.json``.
        job: the runtime, and the ways to report.

    Raises:
        ConfigError: the size asked for is no larger than the old one; a file of terms cannot be read.
        TokenizerError: the tokenizer cannot be extended as asked, or preflight refuses the result.
    """
    use_cores(job.runtime.workers)
    tokenizer = load_original_tokenizer(inputs["model"])
    texts = {split: Texts(read_documents(inputs["corpus"], split)) for split in ("train", "validation", "test")}
    train = replace(texts["train"], limit=cfg.max_bytes)
    extension = extend_by(cfg, tokenizer, train, job)
    config = load_original_config(inputs["model"])
    strings = [token.string for token in extension.tokens]
    samples = ["", " ".join(strings), "\n".join(strings), *(text[:10_000] for text in islice(texts["test"], 20))]
    before = extensions_of(tokenizer)
    for made in before:
        last = made["first_id"] + made["tokens"] - 1
        job.say(f"This tokenizer was extended before: ids {made['first_id']} to {last}, which count as old tokens.")
    extensions = [*before, {"first_id": old_size(tokenizer), "tokens": len(extension.tokens)}]
    save(tokenizer, extension.spec, out / "tokenizer", samples, config, extensions)
    examiner = Examiner(
        tokenizer.backend_tokenizer,
        reader(extension.spec),
        extension.tokens,
        old_size(tokenizer),
        token_bytes(tokenizer),
    )
    for split in ("validation", "test"):
        examiner.read(split, texts[split])
    used = uses(extension.spec, examiner.size, len(extension.tokens), train)
    examiner.findings.miscounted = len(miscounted(extension.tokens, used, train))
    if extension.spec["pre_tokenizer"] != definition(tokenizer)["pre_tokenizer"]:
        words = old_words(tokenizer)
        changed = changed_words(examiner.old, examiner.new, extension.tokens, words)
        examiner.findings.changed_words = len(changed)
    examiner.findings.special = count_special(extension.spec, chain.from_iterable(texts.values()))
    write(out, extension.tokens, examiner, job)
    if cfg.method == "merges" and cfg.curve:
        show_curves(cfg, tokenizer, config, train, out, job)
    show_tokens(extension.tokens, examiner, texts["test"], job)
    job.say(f"The extended tokenizer: {str(out / 'tokenizer').replace('.partial', '')}")


def use_cores(workers: int) -> None:
    """Let the Rust tokenizers use ``workers`` threads (0 means all cores).

    Only the first call in a process sets the number.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if workers == 1 else "true"
    if workers:
        os.environ.setdefault("RAYON_NUM_THREADS", str(workers))


def old_words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of all old tokens that are whole UTF-8 with a letter in it; AddedTokens are left out."""
    of_kind, added = kind(definition(tokenizer)), tokenizer.added_tokens_decoder
    words = []
    for token, index in tokenizer.get_vocab().items():
        text = "" if index in added else text_bytes(token, of_kind).decode(errors="ignore")
        if any(map(str.isalpha, text)):
            words.append(text)
    return words


def show_curves(
    cfg: TokensConfig,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainedConfig,
    train: Iterable[str],
    out: Path,
    job: Job,
) -> None:
    """Write ``curve.json`` and show it: tokens saved against ``n_new`` for every boundary, with the rows' memory."""
    spec, size, text = definition(tokenizer), old_size(tokenizer), config.get_text_config()
    by_boundary = curves(
        spec,
        size,
        train,
        lambda wide: rules_of(cfg, tokenizer, spec, size, wide),
        limit=cfg.curve,
        min_count=cfg.min_count,
        min_documents=cfg.min_documents,
        workers=job.runtime.workers,
    )
    row_bytes = 4 * text.hidden_size * (1 if text.tie_word_embeddings else 2)
    content = as_json(by_boundary, cfg.curve, row_bytes)
    (out / "curve.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    job.say(
        "How many new tokens pay, and where they may end (tokens.boundary): shares of the train text's tokens, on "
        "which the new ones are chosen, so held-out text saves less."
    )
    job.table("tokens_saved", *as_table(by_boundary, cfg.curve, row_bytes))


def show_tokens(tokens: list[NewToken], examiner: Examiner, texts: Iterable[str], job: Job) -> None:
    """Show the new tokens that save most, and one held-out line cut by both tokenizers."""
    best = sorted(tokens, key=lambda token: -token.count * max(len(token.pieces) - 1, 0))[:15]
    pieces = [[examiner.text_of(piece) for piece in token.pieces] for token in best]
    rows = [[repr(token.string), token.count, "|".join(cut)] for token, cut in zip(best, pieces, strict=True)]
    if not tokens:
        return
    job.table("new_tokens", ["token", "count", "pieces"], rows)
    lines = [line.strip() for text in islice(texts, 50) for line in text.splitlines() if 40 <= len(line.strip()) <= 100]
    cuts = [
        [t.encode(line, add_special_tokens=False).ids for t in (examiner.old, examiner.new)] for line in lines[:2000]
    ]
    if cuts:
        old, new = max(cuts, key=lambda cut: len(cut[0]) - len(cut[1]))
        for name, ids in (("before", old), ("after", new)):
            job.say(f"A held-out line {name} ({len(ids)} tokens): {'|'.join(map(examiner.text_of, ids))}")


def write(out: Path, tokens: list[NewToken], examiner: Examiner, job: Job) -> None:
    """Write everything but the tokenizer, and tell the user what preflight says.

    Raises:
        TokenizerError: preflight refuses the result.
    """
    figures, held_out = preflight.figures(examiner, tokens), examiner.findings.uses
    write_tables(out, tokens, examiner.size, examiner.new_bytes.tolist())
    (out / "preflight.json").write_text(preflight.as_json(figures, tokens, held_out), encoding="utf-8")
    (out / "preflight.txt").write_text(preflight.as_text(figures, tokens, held_out), encoding="utf-8")
    write_summary(out, figures)
    preflight.check(figures)
    job.table("preflight", ["figure", "value"], [[name, value] for name, value in figures.items()])
    if special := figures["tokens/special_in_text"]:
        job.say(f"The text spells special tokens {special:,} times (<|endoftext|> and the like): read as text.")
    for warning in preflight.warnings(figures):
        job.say(f"Warning: {warning}")
    job.say(
        f"{len(tokens)} new tokens save {figures['tokens/saved']:.1%} of the tokens of held-out text "
        f"({figures['tokens/per_1000_bytes/old']:.0f} -> {figures['tokens/per_1000_bytes/new']:.0f} per 1,000 bytes); "
        f"half of its {figures['tokens/documents']} documents save {figures['tokens/saved/lower_quartile']:.1%} to "
        f"{figures['tokens/saved/upper_quartile']:.1%}."
    )
