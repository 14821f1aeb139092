"""Stage ``tokens``: extend the tokenizer, describe the new tokens, and say before any training what they will do."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from kldistill.corpus.documents import read_documents
from kldistill.model.load import load_original_config, load_original_tokenizer, old_size
from kldistill.runtime.errors import ConfigError, TokenizerError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.runtime.progress import Bar
from kldistill.tokens import preflight
from kldistill.tokens.artifact import NewToken
from kldistill.tokens.boundaries import check_pretokenizer, widen
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.definition import SENTENCEPIECE, definition, kind, text_bytes, token_bytes
from kldistill.tokens.encoding import count_special, reader
from kldistill.tokens.folder import extend, save
from kldistill.tokens.merges import Entry, Rules, choose
from kldistill.tokens.terms import added_tokens, merge_chains, read_terms
from kldistill.tokens.words import chunks, count_words


def build(cfg: TokensConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Write the extended tokenizer, the table of new tokens and the preflight report.

    Args:
        cfg: which tokens are added.
        inputs: ``model`` (the original model) and ``corpus``.
        out: gets ``tokenizer/``, ``new_tokens.jsonl``, ``vocabulary.json``, ``preflight.json``, ``preflight.txt`` and
            ``summary.json``.
        job: the runtime, and the ways to report.

    Raises:
        ConfigError: the size asked for is no larger than the old one; a file of terms cannot be read.
        TokenizerError: the tokenizer cannot be extended as asked, or preflight refuses the result.
    """
    use_cores(job.runtime.workers)
    tokenizer = load_original_tokenizer(inputs["model"])
    documents = {
        split: [document.text for document in read_documents(inputs["corpus"], split)]
        for split in ("train", "validation", "test")
    }
    extension = extend_by(cfg, tokenizer, list(up_to(documents["train"], cfg.max_bytes)), job)
    config = load_original_config(inputs["model"])
    strings = [token.string for token in extension.tokens]
    samples = ["", " ".join(strings), "\n".join(strings), *(text[:10_000] for text in documents["test"][:20])]
    save(tokenizer, extension.spec, out / "tokenizer", samples, config)
    examiner = preflight.Examiner(
        tokenizer.backend_tokenizer,
        reader(extension.spec),
        extension.tokens,
        old_size(tokenizer),
        token_bytes(tokenizer),
    )
    for split in ("validation", "test"):
        examiner.read(split, documents[split])
    examiner.findings.special = count_special(extension.spec, chain.from_iterable(documents.values()))
    write(out, extension.tokens, examiner, job)


class Extension(NamedTuple):
    """An extended tokenizer: its definition, and what is new in it."""

    spec: dict[str, Any]
    tokens: list[NewToken]


def extend_by(cfg: TokensConfig, tokenizer: PreTrainedTokenizerFast, train: list[str], job: Job) -> Extension:
    """Extend a tokenizer by what ``cfg`` asks for, learnt on the ``train`` texts. Raises as ``build`` does."""
    spec, size = definition(tokenizer), old_size(tokenizer)
    n = wanted(cfg, size)
    wide = widen(spec, cfg.boundary)
    if kind(spec) == SENTENCEPIECE:
        check_pretokenizer(spec)
    if cfg.method == "list" and cfg.as_added_tokens:
        contents = added_tokens(spec, read_terms(Path(cfg.terms or "")), cfg.leading_space)
        extended = extend(wide, size, contents, [], added=True)
        entries = [Entry(content, content.encode(), ()) for content in contents]
        return Extension(extended, described(entries, size, uses(extended, size, len(entries), train)))
    rules = Rules(
        entries_of(tokenizer, spec, size),
        max_pieces=cfg.max_pieces if cfg.method == "merges" else 10**6,
        max_run=cfg.max_run,
        prefix_closed=cfg.prefix_closed,
        accept=segments_alone(wide) if spec["model"].get("ignore_merges") else lambda _entry: True,
    )
    if cfg.method == "list":
        chains, remarks = merge_chains(
            spec, size, cfg.boundary, read_terms(Path(cfg.terms or "")), cfg.leading_space, rules
        )
        for remark in remarks:
            job.say(remark)
        pairs = chains.merges
    else:
        with Bar("Counting words", total=sum(map(len, train)) / 1e6, unit="MB") as bar:
            words = count_words(
                wide, size, cfg.boundary, train, job.runtime.workers, lambda done: bar.advance(done / 1e6)
            )
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
    extended = extend(wide, size, names[size:], [(names[left], names[right]) for left, right in pairs])
    counts = uses(extended, size, len(entries), train) if cfg.method == "list" else [merge.count for merge in chosen]
    return Extension(extended, described(entries, size, counts))


def wanted(cfg: TokensConfig, size: int) -> int:
    """How many tokens ``cfg`` asks for. Raises ``ConfigError`` for a vocabulary that would not grow."""
    if cfg.vocab_size is None:
        return cfg.n_new or 0
    if cfg.vocab_size <= size:
        raise ConfigError(
            f"tokens.vocab_size={cfg.vocab_size}: the model's tokenizer has {size} ids already; ask for more, or give "
            "tokens.n_new."
        )
    return cfg.vocab_size - size


def use_cores(workers: int) -> None:
    """Let the Rust tokenizers use ``workers`` threads (0: all cores); only the first call in a process sets the "
    "number."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if workers == 1 else "true"
    if workers:
        os.environ.setdefault("RAYON_NUM_THREADS", str(workers))


def up_to(texts: Iterable[str], limit: int | None) -> Iterator[str]:
    """The first texts that together hold no more than ``limit`` bytes (at least one text)."""
    total = 0
    for i, text in enumerate(texts):
        total += len(text.encode())
        if limit is not None and total > limit and i:
            return
        yield text


def entries_of(tokenizer: PreTrainedTokenizerFast, spec: dict[str, Any], size: int) -> list[Entry]:
    """What every old id is to the choice of merges."""
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


def uses(spec: dict[str, Any], size: int, n: int, texts: list[str]) -> list[int]:
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
        NewToken(size + i, entry.bytes.decode(), entry.token, list(entry.pieces), count)
        for i, (entry, count) in enumerate(zip(entries, counts, strict=True))
    ]


def write(out: Path, tokens: list[NewToken], examiner: preflight.Examiner, job: Job) -> None:
    """Write everything but the tokenizer, and tell the user what preflight says.

    Raises:
        TokenizerError: preflight refuses the result.
    """
    figures, held_out = preflight.figures(examiner, tokens), examiner.findings.uses
    lines = "".join(json.dumps(token._asdict(), ensure_ascii=False) + "\n" for token in tokens)
    (out / "new_tokens.jsonl").write_text(lines, encoding="utf-8")
    vocabulary = {
        "old_size": examiner.size,
        "new_size": examiner.size + len(tokens),
        "byte_lengths": examiner.new_bytes.tolist(),
    }
    (out / "vocabulary.json").write_text(json.dumps(vocabulary) + "\n", encoding="utf-8")
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
