"""The corpus stage: documents from a source, cleaned, rid of near-duplicates, split by folder, rid of copied text.

Nothing depends on the order in which a source gives its documents: each is ranked by a seeded hash of its name, and put
into its split by a seeded hash of its group's (see ``leakage``). A cap on size therefore keeps an arbitrary sample, and
a larger cap keeps what a smaller one kept, in the same splits.

The texts lie on disk all the while. Memory holds names, sizes and hashes: of each document's words for near-duplicates,
and of the train split's words and lines for copies.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kldistill.corpus.config import CorpusConfig
from kldistill.corpus.documents import DOMAIN_SPLITS, GENERAL_SPLITS, Document, Skipped, Source, line_of, reasons
from kldistill.corpus.generated import is_generated
from kldistill.corpus.leakage import Seen, groups_of
from kldistill.corpus.near_duplicates import NearDuplicates
from kldistill.corpus.snippets import cut
from kldistill.corpus.spool import Entry, Spool
from kldistill.runtime.components import find
from kldistill.runtime.errors import ConfigError, CorpusError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.runtime.progress import track

T = TypeVar("T")
HELD_OUT = ("validation", "test")
# May have a paragraph, or a record, on a line.
PROSE_SUFFIXES = (
    *(".md", ".mdx", ".markdown", ".rst", ".adoc", ".asciidoc", ".org", ".txt", ".text", ".ipynb"),
    *(".tex", ".bib", ".typ", ".log"),
)


def build(cfg: CorpusConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Write the splits of the corpus as JSON Lines, and ``summary.json``, into ``out``. It reads no ``inputs``.

    The splits are ``train``, ``validation``, ``test``, ``general`` and, if there is one, ``general_code``, and the
    parts of the general texts that training may draw on.

    Raises:
        CorpusError: a source cannot be read, or a split would be empty.
    """
    with Spool(out / "spool.jsonl") as spool:
        summary = _write_splits(cfg, spool, out, job)
    write_summary(out, summary)
    job.log({name: float(number) for name, number in summary.items()})


def _write_splits(cfg: CorpusConfig, spool: Spool, out: Path, job: Job) -> dict[str, float]:
    """Write the splits, tell of them, and give back the figures."""
    skipped: Counter[str] = Counter()
    entries = _usable(_read(cfg.source, "corpus.source", "Reading the corpus"), spool, cfg, skipped, code=True)
    read = {"documents": len(entries), "bytes": sum(entry.n_bytes for entry in entries)}
    entries = _cut_large(entries, spool, _largest(entries, cfg))
    sizes = {entry.id: entry.n_bytes for entry in entries}
    groups = groups_of(sizes, min(cfg.validation, cfg.test)) if cfg.split_by == "folder" else {}
    splits: dict[str, list[Entry]] = {name: [] for name in DOMAIN_SPLITS}
    for entry in _choose(entries, spool, cfg, cfg.max_bytes, skipped):
        splits[split_of(groups.get(entry.id, entry.id), cfg)].append(entry)
    copied = _remove_copies(splits, spool, cfg.max_copied, skipped)

    left_out = {"domain": skipped}
    for name, node in _general_texts(cfg).items():
        left_out[name] = Counter()
        found = _read(node, f"corpus.{name}", f"Reading {name.replace('_', ' ')} text")
        entries = _usable(found, spool, cfg, left_out[name], code=name != "general")
        entries = _cut_large(entries, spool, cfg.max_document_bytes)
        chosen = _choose(entries, spool, cfg, cfg.general_max_bytes, left_out[name])
        splits |= _share_out(name, chosen, cfg.general_train)

    _refuse_empty(splits, cfg, left_out)
    summary: dict[str, float] = {f"corpus/usable/{unit}": number for unit, number in read.items()}
    for name, members in splits.items():
        with (out / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(map(line_of, spool.documents(members)))
        summary[f"corpus/{name}/documents"] = len(members)
        summary[f"corpus/{name}/bytes"] = sum(entry.n_bytes for entry in members)
    summary["corpus/groups"] = len({groups.get(name, name) for name in sizes})
    summary |= copied
    for what, counts in left_out.items():
        start = "corpus/skipped" if what == "domain" else f"corpus/{what}/skipped"
        summary |= {f"{start}/{reason}": number for reason, number in sorted(counts.items())}
    rows = [[name, summary[f"corpus/{name}/documents"], summary[f"corpus/{name}/bytes"]] for name in splits]
    job.table("corpus", ["split", "documents", "bytes"], rows)
    for name in HELD_OUT:
        before, after, lines = (copied[f"corpus/{name}/{what}"] for what in ("copied_before", "copied", "lines_copied"))
        job.say(
            f"Of the {name} text, {after:.1%} stands in train (13-token shingles; {before:.1%} before documents with "
            f"more than {cfg.max_copied:.0%} were left out), and {lines:.1%} of its lines of 20 characters or more."
        )
    for what, counts in left_out.items():
        if counts:
            job.say(f"Left out of the {what.replace('_', ' ')} text: {reasons(counts)}.")
    return summary


def identity(cfg: CorpusConfig) -> dict[str, Any]:
    """What the sources hold right now, for the fingerprint: a changed file or package version means another corpus.

    Cheap beside building: files are hashed, nothing is decoded. Raises ``CorpusError`` if a source does not exist.
    """
    nodes = {"source": cfg.source, **_general_texts(cfg)}
    sources = {key: _source(node, f"corpus.{key}").identity() for key, node in nodes.items()}
    # A version of this part alone: what is made with other thresholds has not changed.
    return sources | ({"exact_copies": 2} if cfg.near_duplicate == 1 else {})


def _general_texts(cfg: CorpusConfig) -> dict[str, dict[str, Any]]:
    """The nodes of the general texts by the names of their splits."""
    nodes = {name: getattr(cfg, name) for name in GENERAL_SPLITS}
    return {name: node for name, node in nodes.items() if node or name == "general"}


def split_of(group: str, cfg: CorpusConfig) -> str:
    """The split that a group of domain documents belongs to, whatever else the corpus holds."""
    share = _hash(cfg.seed, "split", group) / 2**64
    if share < cfg.test:
        return "test"
    return "validation" if share < cfg.test + cfg.validation else "train"


def _hash(seed: int, purpose: str, name: str) -> int:
    """64 bits that depend on nothing but the arguments."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=8).digest())


def _source(node: dict[str, Any], key: str) -> Source:
    """The source that a config node describes."""
    source = find(node, "source", key)()
    if not isinstance(source, Source):
        target = node["_target_"]
        raise ConfigError(f"{key}._target_={target!r}: does not give a kldistill.corpus.documents.Source.")
    return source


def _read(node: dict[str, Any], key: str, description: str) -> Iterable[Document | Skipped]:
    return track(_source(node, key).read(), description, unit="documents")


def _usable(
    documents: Iterable[Document | Skipped], spool: Spool, cfg: CorpusConfig, skipped: Counter[str], code: bool
) -> list[Entry]:
    """Documents that are text of some size and, for ``code``, written by hand; ``skipped`` counts the others."""
    usable = []
    for document in documents:
        reason = document.reason if isinstance(document, Skipped) else _flaw(document, cfg, code)
        if reason:
            skipped[reason] += 1
        elif isinstance(document, Document):
            usable.append(spool.add(document))
    return usable


def _largest(entries: list[Entry], cfg: CorpusConfig) -> int:
    """How many bytes of the domain's text a document may hold.

    That is half of what the smaller held-out split is to hold, or the splits would have nothing to choose from; but at
    least 4,096 bytes, and never more than ``max_document_bytes``.
    """
    total = sum(entry.n_bytes for entry in entries)
    return min(cfg.max_document_bytes, max(4_096, int(min(cfg.validation, cfg.test) * total / 2)))


def _cut_large(entries: list[Entry], spool: Spool, largest: int) -> list[Entry]:
    """The documents, those of more than ``largest`` bytes cut at lines: ``a.txt`` into ``a.txt#1``, ``a.txt#2``, ..."""
    small: list[Entry] = []
    for entry in entries:
        document = spool.read(entry) if entry.n_bytes > largest else None
        if document is None or document.messages:  # a conversation stays whole
            small.append(entry)
        else:  # a part has less than two and a half times the size that is asked for
            parts = cut([document], max(1, int(largest / 2.5)))
            small += [spool.add(Document(f"{entry.id}#{number}", part.text)) for number, part in enumerate(parts, 1)]
    return small


def _flaw(document: Document, cfg: CorpusConfig, code: bool) -> str | None:
    """Why a document is of no use, in one word."""
    text = document.text
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # half a surrogate pair, as the JSON of a notebook may spell one
        return "not_utf8"
    if size < cfg.min_document_bytes or not text.strip():
        return "too_small"
    if not code:
        return None
    if max(map(len, text.split("\n"))) > cfg.max_line_length and not document.id.endswith(PROSE_SUFFIXES):
        return "minified"
    return "generated" if is_generated(document) else None


def _choose(
    entries: list[Entry], spool: Spool, cfg: CorpusConfig, max_bytes: int | None, skipped: Counter[str]
) -> list[Entry]:
    """Documents in seeded order without near-duplicates, up to the one that would take them beyond ``max_bytes``."""
    ranked = sorted(entries, key=lambda entry: (_hash(cfg.seed, "rank", entry.id), entry.id))
    known = NearDuplicates(cfg.near_duplicate, spool.text)
    chosen: list[Entry] = []
    total = 0
    for number, entry in enumerate(track(ranked, "Removing near-duplicates", len(ranked), "documents")):
        if max_bytes is not None and total + entry.n_bytes > max_bytes:
            skipped["over_max_bytes"] += len(ranked) - number
            break
        if not known.add(spool.text(entry), entry):
            skipped["near_duplicate"] += 1
            continue
        chosen.append(entry)
        total += entry.n_bytes
    return chosen


def _share_out(name: str, documents: list[T], share: float) -> dict[str, list[T]]:
    """Share general documents, in seeded order, out to the evaluation, to training, and to validation during training.

    A ``share`` of them goes to the latter two, every fourth of these to validation; the others, and the first in any
    case, go to the evaluation. Empty parts are left out.
    """
    parts: dict[str, list[T]] = {name: []}
    taken = 0
    for number, document in enumerate(documents):
        part = name
        if int((number + 1) * share) > taken:
            taken += 1
            part = f"{name}_validation" if taken % 4 == 0 else f"{name}_train"
        parts.setdefault(part, []).append(document)
    return parts


def _remove_copies(
    splits: dict[str, list[Entry]], spool: Spool, max_copied: float, skipped: Counter[str]
) -> dict[str, float]:
    """Take held-out documents that are copied from train out of ``splits``; say how much was and is copied."""
    seen = Seen(spool.documents(splits["train"]))
    figures: dict[str, float] = {}
    for name in HELD_OUT:
        figures[f"corpus/{name}/copied_before"] = seen.copied(spool.documents(splits[name])).shingles
        kept = [entry for entry in splits[name] if seen.containment(spool.text(entry)) <= max_copied]
        if len(kept) < len(splits[name]):
            skipped[f"copied_{name}"] += len(splits[name]) - len(kept)
        splits[name] = kept
        left = seen.copied(spool.documents(kept))
        figures |= {f"corpus/{name}/copied": left.shingles, f"corpus/{name}/lines_copied": left.lines}
    return figures


def _refuse_empty(splits: dict[str, list[Entry]], cfg: CorpusConfig, left_out: Mapping[str, Counter[str]]) -> None:
    """Raise ``CorpusError`` if a split has no document, saying which key may mend it."""
    number = sum(len(splits[name]) for name in DOMAIN_SPLITS)
    skipped = left_out["domain"]
    if number == 0:
        raise CorpusError(
            f"The source gave no usable document (left out: {reasons(skipped) or 'nothing'}). See corpus.source; "
            "corpus.max_bytes, corpus.max_document_bytes and corpus.max_line_length say what is left out."
        )
    for name in DOMAIN_SPLITS:
        if not splits[name]:
            if copied := skipped[f"copied_{name}"]:
                raise CorpusError(
                    f"The {name} split is empty: of each of the {copied:,} documents drawn for it, more than "
                    f"corpus.max_copied={cfg.max_copied} stands in train too. corpus.max_copied=1 keeps them (what "
                    "was learnt by heart then counts as learnt); corpus.split_by=document or another corpus.seed "
                    "draws others."
                )
            key = (
                f"raise corpus.{name}, set corpus.split_by=document"
                if name != "train"
                else "lower corpus.validation and corpus.test"
            )
            more = "Give more documents" if cfg.max_bytes is None else "Give more documents, raise corpus.max_bytes"
            raise CorpusError(
                f"The {name} split is empty: {number:,} documents are too few for the shares validation="
                f"{cfg.validation}, test={cfg.test} (left out: {reasons(skipped) or 'nothing'}). {more}, {key}, or try "
                "another corpus.seed."
            )
    for name in GENERAL_SPLITS:
        if name in splits and not splits[name]:
            raise CorpusError(
                f"corpus.{name} gave no text (left out: {reasons(left_out[name]) or 'nothing'}). Name other packages "
                f"in corpus.{name}.packages, another source in corpus.{name}, or raise corpus.general_max_bytes."
            )
