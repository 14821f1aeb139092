"""What new tokens save with real tokenizers, all on the same text: one record a tokenizer, and a table of them.

    python -m kldistill stages=[corpus] corpus=transformers_models corpus.max_bytes=10_000_000
    python scripts/measure_tokenizers.py --corpus outputs/artifacts/corpus/FINGERPRINT "GPT-2=FOLDER" "Gemma 3=FOLDER"

A folder (or file) holds a ``tokenizer.json``. Tokens are learnt on the corpus' train split and counted on its test
split. Every tokenizer has a process of its own, so that memory is its own; records that are there already for this text
are kept, so a run that was stopped goes on. Without tokenizers, only the table in docs/models.md is written anew. What
each boundary saves of other text is another table, of records of its own (docs/choosing.md):

    python scripts/measure_tokenizers.py --corpus outputs/artifacts/corpus/FINGERPRINT --boundary line \\
        --records docs/results/boundaries.jsonl --page docs/choosing.md "C++, SmolLM2=FOLDER"
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from kldistill.corpus.documents import read_documents
from kldistill.model.load import old_size
from kldistill.runtime.errors import KldistillError
from kldistill.runtime.files import append, dump, read_lines
from kldistill.runtime.job import Job
from kldistill.tokens.boundaries import BOUNDARIES, widen, widest
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.definition import definition, token_bytes
from kldistill.tokens.encoding import reader
from kldistill.tokens.examiner import Examiner, changed_words
from kldistill.tokens.extension import extend_by, uses
from kldistill.tokens.occurrences import miscounted
from kldistill.tokens.stage import old_words

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = DOCS / "results" / "tokenizers.jsonl"
PAGE = DOCS / "models.md"
BEGIN, END = "<!-- tokenizers: begin -->\n", "<!-- tokenizers: end -->\n"
SIZES = (512, 4_096, 16_384)


def measure(
    file: Path, train: list[str], test: list[str], sizes: tuple[int, ...] = SIZES, boundary: str = "auto"
) -> dict[str, Any]:
    """One tokenizer's figures, with ``boundary`` and the most new tokens of ``sizes``.

    ``saved`` are shares of the test text's tokens; ``faults`` counts student tokens that are no whole old tokens, old
    words that a wider word changes, documents that decode otherwise, and new tokens that the train text does not have.
    ``seconds`` of processor time is what learning the most tokens took, ``memory_mb`` the most that this process held.
    """
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    spec, size = definition(tokenizer), old_size(tokenizer)
    record: dict[str, Any] = {"vocabulary": size}
    try:
        record["boundary"], wide, record["refused"] = (
            widest(spec) if boundary == "auto" else (boundary, widen(spec, boundary), [])
        )
        started = processor()
        cfg = TokensConfig(n_new=max(sizes), min_documents=1, boundary=boundary)
        spec, tokens = extend_by(cfg, tokenizer, train, Job(say=lambda _line: None))
    except KldistillError as error:
        return {**record, "error": str(error)}
    record |= {"seconds": round(processor() - started, 1), "added": len(tokens), "saved": {}}
    examiner = Examiner(tokenizer.backend_tokenizer, reader(spec), tokens, size, token_bytes(tokenizer))
    examiner.read("test", test)
    found, texts = examiner.findings, examiner.findings.splits["test"]
    learnt = len(wide["model"]["merges"])
    for n in sorted({*(n for n in sizes if n < len(tokens)), len(tokens)}):
        # Greedy: the first n tokens are what asking for n gives, and every token comes with one merge.
        model = {**spec["model"], "merges": spec["model"]["merges"][: learnt + n]}
        model["vocab"] = {token: index for token, index in spec["model"]["vocab"].items() if index < size + n}
        cut = reader({**spec, "model": model}).encode_batch_fast(test, add_special_tokens=False)
        record["saved"][str(n)] = round(1 - sum(len(encoding.ids) for encoding in cut) / texts.old, 4)
    used = uses(spec, size, len(tokens), train)
    record["faults"] = {
        "violations": found.violations + found.mismatches,
        "broken_documents": found.broken,
        "old_words": len(changed_words(examiner.old, examiner.new, tokens, old_words(tokenizer))),
        "miscounted": len(miscounted(tokens, used, train)),
    }
    record["old_per_1000_bytes"] = round(1000 * texts.old / texts.bytes, 1)
    # Linux counts kilobytes, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record["memory_mb"] = round(peak / (1e6 if sys.platform == "darwin" else 1e3))
    return record


def processor() -> float:
    """Seconds of processor time that this process and those it waited for have used."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def texts_of(corpus: Path, split: str) -> list[str]:
    """The texts of one split of a corpus artifact."""
    return [document.text for document in read_documents(corpus, split)]


def table(records: list[dict[str, Any]]) -> str:
    """The records as a Markdown table, in their order."""
    shares = " | ".join(f"{n:,}" for n in SIZES)
    lines = [f"| tokenizer | ids | tokens in 1,000 bytes | boundary | {shares} | seconds | MB | refused, and faults |"]
    lines.append("|" + "---|" * (7 + len(SIZES)))
    for record in records:
        if "error" in record:
            cells = ["", "refused", *[""] * (len(SIZES) + 2), record["error"]]
        else:
            faults = [f"{count:,} {name.replace('_', ' ')}" for name, count in record["faults"].items() if count]
            saved = [f"{record['saved'][str(n)]:.1%}" if str(n) in record["saved"] else "" for n in SIZES]
            refused = [reason.partition(": ")[2].partition(" Use ")[0] for reason in record["refused"][:1]]
            cells = [f"{record['old_per_1000_bytes']:.0f}", record["boundary"], *saved]
            cells += [f"{record['seconds']:.0f}", f"{record['memory_mb']:,}", "; ".join([*refused, *faults]) or "none"]
        lines.append(" | ".join([f"| {record['name']}", f"{record['vocabulary']:,}", *cells]) + " |")
    return "\n".join(line.replace("\n", " ") for line in lines) + "\n"


def main() -> None:
    """Measure what has no record yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--corpus", type=Path, help="folder of a corpus artifact")
    parser.add_argument("--boundary", choices=["auto", *BOUNDARIES], default="auto", help="as tokens.boundary")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--page", type=Path, default=PAGE, help="the table is written between its two marks")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # what the processes of its own are told
    options = parser.parse_args()
    if options.one is not None:
        train, test = (texts_of(options.corpus, split) for split in ("train", "test"))
        print(dump(measure(options.one, train, test, boundary=options.boundary)))
        return
    if options.tokenizers and options.corpus is None:
        parser.error("--corpus is needed to measure")
    records = [json.loads(line) for line in read_lines(options.records)]
    text = ""
    if options.corpus is not None:
        splits = [(options.corpus / f"{split}.jsonl").read_bytes() for split in ("train", "test")]
        text = hashlib.sha256(b"\0".join(splits)).hexdigest()[:16]
    for given in options.tokenizers:
        name, _, place = given.partition("=")
        if any(
            (record["name"], record["text"], record.get("asked", "auto")) == (name, text, options.boundary)
            for record in records
        ):
            continue
        file = Path(place) if place.endswith(".json") else Path(place) / "tokenizer.json"
        command = [sys.executable, __file__, "--corpus", str(options.corpus), "--one", str(file)]
        command += ["--boundary", options.boundary]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{given}: ended with status {done.returncode}; the other records are kept.")
        asked = {} if options.boundary == "auto" else {"asked": options.boundary}
        records.append({"name": name, "text": text, **asked, **json.loads(done.stdout.splitlines()[-1])})
        append(options.records, dump(records[-1]))
        print(dump(records[-1]), flush=True)
    before, _, rest = options.page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    options.page.write_text(f"{before}{BEGIN}{table(records)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
