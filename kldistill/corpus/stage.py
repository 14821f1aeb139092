"""The corpus stage: documents from a source, cleaned, rid of near-duplicates, and split by document.

Nothing depends on the order in which a source gives its documents: each is ranked, and put into its split, by a seeded
hash of its name. A cap on size therefore keeps an arbitrary sample, and a larger cap keeps what a smaller one kept, in
the same splits.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kldistill.corpus.config import CorpusConfig
from kldistill.corpus.documents import DOMAIN_SPLITS, SPLITS, Document, Skipped, Source
from kldistill.corpus.near_duplicates import NearDuplicates
from kldistill.runtime.components import find
from kldistill.runtime.errors import ConfigError, CorpusError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.runtime.progress import track

# What a comment near the top says if a program wrote the file.
GENERATED_LINES = 30
_COMMENT = re.compile(r"\s*(?:#|//|/\*|\*|;|--|<!--|%)[\s#/*;<!%-]*(.*)")
_GENERATED = re.compile(
    r"@generated\b|\bdo not (?:edit|modify)\b|\bauto(?:matically)?[ -]?generated (?:file|code|by|from)\b|"
    r"\bfile (?:is |was |has been )?(?:auto(?:matically)?[ -]?)?generated\b|"
    r"^generated (?:automatically|by|from|with)\b",
    flags=re.IGNORECASE,
)


def build(cfg: CorpusConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Write ``train``, ``validation``, ``test`` and ``general`` as JSON Lines, and ``summary.json``, into ``out``.

    It reads none of the ``inputs``.

    Raises:
        CorpusError: a source cannot be read, or a split would be empty.
    """
    skipped: Counter[str] = Counter()
    documents = _usable(_read(cfg.source, "corpus.source", "Reading the corpus"), cfg, skipped, code=True)
    read = {"documents": len(documents), "bytes": sum(_bytes(document) for document in documents)}
    kept = _choose(documents, cfg, cfg.max_bytes, skipped)
    splits: dict[str, list[Document]] = {name: [] for name in DOMAIN_SPLITS}
    for document in kept:
        splits[split_of(document.id, cfg)].append(document)

    general_skipped: Counter[str] = Counter()
    documents = _usable(_read(cfg.general, "corpus.general", "Reading general text"), cfg, general_skipped, code=False)
    splits["general"] = _choose(documents, cfg, cfg.general_max_bytes, general_skipped)

    _refuse_empty(splits, cfg, skipped, general_skipped)
    summary: dict[str, int] = {f"corpus/usable/{unit}": number for unit, number in read.items()}
    for name, members in splits.items():
        _write(out / f"{name}.jsonl", members)
        summary[f"corpus/{name}/documents"] = len(members)
        summary[f"corpus/{name}/bytes"] = sum(_bytes(document) for document in members)
    summary |= {f"corpus/skipped/{reason}": number for reason, number in sorted(skipped.items())}
    summary |= {f"corpus/general/skipped/{reason}": number for reason, number in sorted(general_skipped.items())}
    write_summary(out, summary)
    job.log({name: float(number) for name, number in summary.items()})
    rows = [[name, summary[f"corpus/{name}/documents"], summary[f"corpus/{name}/bytes"]] for name in SPLITS]
    job.table("corpus", ["split", "documents", "bytes"], rows)
    for what, counts in (("domain", skipped), ("general", general_skipped)):
        if counts:
            job.say(f"Left out of the {what} text: {_reasons(counts)}.")


def identity(cfg: CorpusConfig) -> dict[str, Any]:
    """What the sources hold right now, for the fingerprint: a changed file or package version means another corpus.

    Cheap beside building: files are hashed, nothing is decoded. Raises ``CorpusError`` if a source does not exist.
    """
    nodes = {"source": cfg.source, "general": cfg.general}
    return {key: _source(node, f"corpus.{key}").identity() for key, node in nodes.items()}


def split_of(name: str, cfg: CorpusConfig) -> str:
    """The split that a domain document of this name belongs to, whatever else the corpus holds."""
    share = _hash(cfg.seed, "split", name) / 2**64
    if share < cfg.test:
        return "test"
    return "validation" if share < cfg.test + cfg.validation else "train"


def _hash(seed: int, purpose: str, name: str) -> int:
    """64 bits that depend on nothing but the arguments."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode(), digest_size=8).digest())


def _bytes(document: Document) -> int:
    return len(document.text.encode())


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
    found: Iterable[Document | Skipped], cfg: CorpusConfig, skipped: Counter[str], code: bool
) -> list[Document]:
    """Documents that are text of a sensible size and, for ``code``, written by hand; the others are counted."""
    usable = []
    for document in found:
        reason = document.reason if isinstance(document, Skipped) else _flaw(document.text, cfg, code)
        if reason:
            skipped[reason] += 1
        elif isinstance(document, Document):
            usable.append(document)
    return usable


def _flaw(text: str, cfg: CorpusConfig, code: bool) -> str | None:
    """Why a text is of no use, in one word."""
    size = len(text.encode())
    if size > cfg.max_document_bytes:
        return "too_large"
    if size < cfg.min_document_bytes or not text.strip():
        return "too_small"
    if not code:
        return None
    if max(map(len, text.split("\n"))) > cfg.max_line_length:
        return "minified"
    comments = (_COMMENT.match(line) for line in text.split("\n", GENERATED_LINES)[:GENERATED_LINES])
    return "generated" if any(comment and _GENERATED.search(comment[1]) for comment in comments) else None


def _choose(
    documents: list[Document], cfg: CorpusConfig, max_bytes: int | None, skipped: Counter[str]
) -> list[Document]:
    """Documents in seeded order without near-duplicates, up to the one that would take them beyond ``max_bytes``."""
    ranked = sorted(documents, key=lambda document: (_hash(cfg.seed, "rank", document.id), document.id))
    known = NearDuplicates(cfg.near_duplicate)
    chosen: list[Document] = []
    total = 0
    for number, document in enumerate(track(ranked, "Removing near-duplicates", len(ranked), "documents")):
        size = _bytes(document)
        if max_bytes is not None and total + size > max_bytes:
            skipped["over_max_bytes"] += len(ranked) - number
            break
        if not known.add(document.text):
            skipped["near_duplicate"] += 1
            continue
        chosen.append(document)
        total += size
    return chosen


def _reasons(skipped: Counter[str]) -> str:
    return ", ".join(f"{number:,} {reason.replace('_', ' ')}" for reason, number in sorted(skipped.items()))


def _refuse_empty(
    splits: dict[str, list[Document]], cfg: CorpusConfig, skipped: Counter[str], general_skipped: Counter[str]
) -> None:
    """Raise ``CorpusError`` if a split has no document, saying which key may mend it."""
    number = sum(len(splits[name]) for name in DOMAIN_SPLITS)
    if number == 0:
        raise CorpusError(
            f"The source gave no usable document (left out: {_reasons(skipped) or 'nothing'}). See corpus.source; "
            "corpus.max_bytes, corpus.max_document_bytes and corpus.max_line_length say what is left out."
        )
    for name in DOMAIN_SPLITS:
        if not splits[name]:
            key = f"raise corpus.{name}" if name != "train" else "lower corpus.validation and corpus.test"
            raise CorpusError(
                f"The {name} split is empty: {number} documents are too few for the shares validation="
                f"{cfg.validation}, test={cfg.test} (left out: {_reasons(skipped) or 'nothing'}). Give more documents, "
                f"{key}, raise corpus.max_bytes, or try another corpus.seed."
            )
    if not splits["general"]:
        raise CorpusError(
            f"There is no general text (left out: {_reasons(general_skipped) or 'nothing'}). Name other packages in "
            "corpus.general.packages ([] for all that are installed), another source in corpus.general, or raise "
            "corpus.general_max_bytes."
        )


def _write(path: Path, documents: Iterable[Document]) -> None:
    """One JSON object a line: ``{"id": ..., "text": ...}``."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            file.write(json.dumps(document._asdict(), ensure_ascii=False) + "\n")
