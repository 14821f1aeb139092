"""Stage ``tokens``: extend the tokenizer, describe the new tokens, and say before any training what they will do."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from kldistill.corpus.documents import read_documents
from kldistill.model.load import load_original_config, load_original_tokenizer, old_size
from kldistill.runtime.errors import ConfigError, TokenizerError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.runtime.progress import Bar
from kldistill.tokens import preflight
from kldistill.tokens.artifact import NewToken, write_tables
from kldistill.tokens.boundaries import check_pretokenizer, widen, widest
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.curve import LIMIT, as_json, as_table, curve_of, curves, knee
from kldistill.tokens.definition import SENTENCEPIECE, Definition, definition, kind, text_bytes, token_bytes
from kldistill.tokens.encoding import count_special, reader
from kldistill.tokens.folder import extend, extensions_of, save
from kldistill.tokens.merges import Entry, Rules, choose
from kldistill.tokens.occurrences import miscounted
from kldistill.tokens.terms import added_tokens, merge_chains, read_terms
from kldistill.tokens.texts import Texts
from kldistill.tokens.words import chunks, count_words


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
    examiner = preflight.Examiner(
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
        changed = preflight.changed_words(examiner.old, examiner.new, extension.tokens, words)
        examiner.findings.changed_words = len(changed)
    examiner.findings.special = count_special(extension.spec, chain.from_iterable(texts.values()))
    write(out, extension.tokens, examiner, job)
    if cfg.method == "merges" and cfg.curve:
        show_curves(cfg, tokenizer, config, train, out, job)
    show_tokens(extension.tokens, examiner, texts["test"], job)
    job.say(f"The extended tokenizer: {str(out / 'tokenizer').replace('.partial', '')}")


class Extension(NamedTuple):
    """An extended tokenizer: its definition, and what is new in it."""

    spec: dict[str, Any]
    tokens: list[NewToken]


def extend_by(cfg: TokensConfig, tokenizer: PreTrainedTokenizerFast, train: Iterable[str], job: Job) -> Extension:
    """Extend a tokenizer by what ``cfg`` asks for, learnt on the ``train`` texts. Raises as ``build`` does."""
    spec, size = definition(tokenizer), old_size(tokenizer)
    if cfg.method == "none":
        return Extension(spec, [])
    n = wanted(cfg, size)
    wide = bounded(cfg.boundary, spec, size, job)
    if kind(spec) == SENTENCEPIECE:
        check_pretokenizer(spec)
    if cfg.method == "list" and cfg.as_added_tokens:
        old = Definition(spec, size, "word")
        contents, remarks = added_tokens(old, read_terms(Path(cfg.terms or "")), cfg.leading_space, train)
        for remark in remarks:
            job.say(remark)
        extended = extend(wide.spec, size, contents, [], added=True)
        entries = [Entry(content, content.encode(), ()) for content in contents]
        return Extension(extended, described(entries, size, uses(extended, size, len(entries), train)))
    rules = rules_of(cfg, tokenizer, spec, size, wide.spec)
    if cfg.method == "list":
        wide, chains, remarks = merge_chains(wide, read_terms(Path(cfg.terms or "")), cfg.leading_space, rules)
        for remark in remarks:
            job.say(remark)
        pairs = chains.merges
    else:
        with Bar("Counting words", total=sum(map(len, train)) / 1e6, unit="MB") as bar:
            words = count_words(wide, train, job.runtime.workers, lambda done: bar.advance(done / 1e6))
        if n is None:
            every = choose(words, rules_of(cfg, tokenizer, spec, size, wide.spec), LIMIT, cfg.min_count)
            n = max(knee(curve_of(every, words.tokens)), 1)
            job.say(f"tokens.n_new=auto takes {n:,}: the last new token that saves one in 100,000 of the train text.")
        with Bar("Choosing merges", total=n, unit="merges") as bar:
            chosen = choose(words, rules, n, cfg.min_count, bar.advance)
        if not chosen:
            raise TokenizerError(
                f"tokens.method=merges found nothing to add: no pair of old tokens occurs "
                f"tokens.min_count={cfg.min_count} times inside a word of the train text. Give more text, a lower "
                "min_count, or a wider boundary."
            )
        if len(chosen) < n:
            job.say(f"The train text gives only {len(chosen)} of the {n} new tokens asked for (no pair is left).")
        pairs = [(merge.left, merge.right) for merge in chosen]
    entries = rules.entries[size:]
    names = [entry.token for entry in rules.entries]
    extended = extend(wide.spec, size, names[size:], [(names[left], names[right]) for left, right in pairs])
    counts = uses(extended, size, len(entries), train) if cfg.method == "list" else [merge.count for merge in chosen]
    return Extension(extended, described(entries, size, counts))


def rules_of(
    cfg: TokensConfig, tokenizer: PreTrainedTokenizerFast, spec: dict[str, Any], size: int, wide: dict[str, Any]
) -> Rules:
    """The rules that ``cfg`` sets for new tokens; ``wide`` is the definition with the widened pre-tokenizer."""
    return Rules(
        entries_of(tokenizer, spec, size),
        max_pieces=cfg.max_pieces if cfg.method == "merges" else 10**6,
        max_run=cfg.max_run,
        prefix_closed=cfg.prefix_closed,
        whole=cfg.method == "merges",
        accept=_accept(spec, wide),
    )


def _accept(spec: dict[str, Any], wide: dict[str, Any]) -> Callable[[Entry], bool]:
    """The last check of a candidate, where the tokenizer itself must be asked."""
    if kind(spec) == SENTENCEPIECE:
        # Names of bytes (<0xE6>) put together are no name of a byte: decoding would show them as they are written.
        return lambda entry: "<0x" not in entry.token
    return segments_alone(wide) if spec["model"].get("ignore_merges") else lambda _entry: True


def bounded(asked: str, spec: dict[str, Any], size: int, job: Job) -> Definition:
    """A tokenizer with the boundary that ``asked`` means for it; ``auto`` says what it took."""
    if asked != "auto":
        return Definition(widen(spec, asked), size, asked)
    boundary, wide, reasons = widest(spec)
    for reason in reasons[:1]:
        job.say(f"Warning: tokens.boundary=auto takes {boundary}, as this tokenizer can carry no wider one. {reason}")
    return Definition(wide, size, boundary)


def wanted(cfg: TokensConfig, size: int) -> int | None:
    """How many tokens ``cfg`` asks for, None for ``auto``. Raises ``ConfigError`` where nothing would be new."""
    if cfg.vocab_size is None:
        return None if cfg.n_new == "auto" else cfg.n_new
    if cfg.vocab_size <= size:
        raise ConfigError(
            f"tokens.vocab_size={cfg.vocab_size}: the model's tokenizer has {size} ids already; ask for more, or give "
            "tokens.n_new."
        )
    return cfg.vocab_size - size


def use_cores(workers: int) -> None:
    """Let the Rust tokenizers use ``workers`` threads (0 means all cores).

    Only the first call in a process sets the number.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if workers == 1 else "true"
    if workers:
        os.environ.setdefault("RAYON_NUM_THREADS", str(workers))


def entries_of(tokenizer: PreTrainedTokenizerFast, spec: dict[str, Any], size: int) -> list[Entry]:
    """The entry of every old id, as the choice of merges needs it."""
    of_kind = kind(spec)
    entries = [Entry("", b"", (index,)) for index in range(size)]
    for token, index in tokenizer.get_vocab().items():
        entries[index] = Entry(token, text_bytes(token, of_kind), (index,))
    return entries


def old_words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The texts of all old tokens that are whole UTF-8 with a letter in it; AddedTokens are left out."""
    of_kind, added = kind(definition(tokenizer)), tokenizer.added_tokens_decoder
    words = []
    for token, index in tokenizer.get_vocab().items():
        text = "" if index in added else text_bytes(token, of_kind).decode(errors="ignore")
        if any(map(str.isalpha, text)):
            words.append(text)
    return words


def segments_alone(wide: dict[str, Any]) -> Callable[[Entry], bool]:
    """For tokenizers that look whole words up before merging (Llama-3's ``ignore_merges``).

    There a new token also stands for its string as a word of its own, whatever merges would make of that; so the old
    pieces of that word must be the token's own.
    """
    tokenizer = reader(wide)

    def same(entry: Entry) -> bool:
        encoding = tokenizer.encode(entry.bytes.decode(), add_special_tokens=False)
        one_word = len(set(encoding.word_ids)) == 1
        return not one_word or tuple(encoding.ids) == entry.pieces

    return same


def uses(spec: dict[str, Any], size: int, n: int, texts: Iterable[str]) -> list[int]:
    """How often each of ``n`` new tokens stands in the texts, cut by the extended tokenizer."""
    tokenizer = reader(spec)
    total = np.zeros(n, np.int64)
    for group in chunks(texts):
        for encoding in tokenizer.encode_batch_fast(group, add_special_tokens=False):
            ids = np.asarray(encoding.ids, dtype=np.int64)
            total += np.bincount(ids[ids >= size] - size, minlength=n)
    return total.tolist()


def described(entries: list[Entry], size: int, counts: list[int]) -> list[NewToken]:
    """The table of new tokens."""
    return [
        NewToken(size + i, entry.bytes.decode(errors="replace"), entry.token, list(entry.pieces), count)
        for i, (entry, count) in enumerate(zip(entries, counts, strict=True))
    ]


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


def show_tokens(tokens: list[NewToken], examiner: preflight.Examiner, texts: Iterable[str], job: Job) -> None:
    """Show the new tokens that save most, and one held-out line cut by both tokenizers."""
    best = sorted(tokens, key=lambda token: -token.count * max(len(token.pieces) - 1, 0))[:15]
    pieces = [[on_a_line(examiner.old.decode([piece])) for piece in token.pieces] for token in best]
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
        for name, by, ids in (("before", examiner.old, old), ("after", examiner.new, new)):
            job.say(f"A held-out line {name} ({len(ids)} tokens): {'|'.join(by.decode([i]) for i in ids)}")


def on_a_line(text: str) -> str:
    """Text whose control characters are spelt out, as a string in a program has them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def write(out: Path, tokens: list[NewToken], examiner: preflight.Examiner, job: Job) -> None:
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
        f"({figures['tokens/per_1000_bytes/old']:.0f} -> {figures['tokens/per_1000_bytes/new']:.0f} per 1,000 bytes)."
    )
