"""The extended tokenizer that a configuration asks for, learnt on text: its definition, and what is new in it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from kldistill.model.load import old_size
from kldistill.runtime.errors import ConfigError, TokenizerError
from kldistill.runtime.job import Job
from kldistill.runtime.progress import Bar
from kldistill.tokens.artifact import NewToken
from kldistill.tokens.boundaries import check_pretokenizer, widen, widest
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.curve import LIMIT, curve_of, knee
from kldistill.tokens.definition import SENTENCEPIECE, Definition, definition, kind, text_bytes
from kldistill.tokens.encoding import reader
from kldistill.tokens.folder import extend
from kldistill.tokens.merges import Entry, Rules, choose
from kldistill.tokens.terms import added_tokens, merge_chains, read_terms
from kldistill.tokens.words import chunks, count_words


class Extension(NamedTuple):
    """An extended tokenizer: its definition, and what is new in it."""

    spec: dict[str, Any]
    tokens: list[NewToken]


def extend_by(cfg: TokensConfig, tokenizer: PreTrainedTokenizerFast, train: Iterable[str], job: Job) -> Extension:
    """Extend a tokenizer by what ``cfg`` asks for, learnt on the ``train`` texts.

    Raises:
        ConfigError: the size asked for is no larger than the old one; a file of terms cannot be read.
        TokenizerError: the tokenizer cannot be extended as asked.
    """
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
            every_rules = rules_of(cfg, tokenizer, spec, size, wide.spec)
            every = choose(words, every_rules, LIMIT, cfg.min_count, min_documents=cfg.min_documents)
            n = max(knee(curve_of(every, words.tokens)), 1)
            job.say(f"tokens.n_new=auto takes {n:,}: the last new token that saves one in 100,000 of the train text.")
        with Bar("Choosing merges", total=n, unit="merges") as bar:
            chosen = choose(words, rules, n, cfg.min_count, bar.advance, min_documents=cfg.min_documents)
        if not chosen:
            raise TokenizerError(
                f"tokens.method=merges found nothing to add: no pair of old tokens occurs "
                f"tokens.min_count={cfg.min_count} times inside a word of the train text, in "
                f"tokens.min_documents={cfg.min_documents} documents. Give more text, a lower min_count, "
                "min_documents=1, or a wider boundary."
            )
        if len(chosen) < n:
            job.say(
                f"The train text gives only {len(chosen)} of the {n} new tokens asked for: no more pairs stand in it "
                f"tokens.min_count={cfg.min_count} times, in tokens.min_documents={cfg.min_documents} documents."
            )
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


def entries_of(tokenizer: PreTrainedTokenizerFast, spec: dict[str, Any], size: int) -> list[Entry]:
    """The entry of every old id, as the choice of merges needs it."""
    of_kind = kind(spec)
    entries = [Entry("", b"", (index,)) for index in range(size)]
    for token, index in tokenizer.get_vocab().items():
        entries[index] = Entry(token, text_bytes(token, of_kind), (index,))
    return entries


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
