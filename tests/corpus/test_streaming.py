"""A corpus of any size: its documents are read from disk one at a time, and never held together."""

import hashlib
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from kldistill.corpus.config import CorpusConfig
from kldistill.corpus.documents import Document, Documents, Skipped, Source, line_of, read_documents
from kldistill.corpus.near_duplicates import shingles
from kldistill.corpus.snippets import Snippet, cut, draw
from kldistill.corpus.stage import build
from kldistill.runtime.components import component
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.job import Job

T = TypeVar("T")
N, SIZE = 400, 60_000  # documents, and the bytes of each: 24 MB


def text_of(number: int) -> str:
    """A few words of its own and many blank lines, so that the hashes of its words are few."""
    digits = hashlib.shake_256(str(number).encode()).hexdigest(60)
    words = " ".join(digits[at : at + 6] for at in range(0, 120, 6))
    blank = " " * 599 + "\n"
    return f"{words}\n" + blank * (SIZE // len(blank))


@component("source")
def blank() -> Source:
    def read() -> Iterator[Document | Skipped]:
        return (Document(f"{number % 40}/{number}", text_of(number)) for number in range(N))

    return Source(read, dict)


def peak(work: Callable[[], T]) -> tuple[T, int]:
    """What ``work`` gives, and the most bytes that Python held for it at a time."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a corpus of 24 MB, made while less than half of that was held."""
    out = tmp_path_factory.mktemp("corpus")
    node = {"_target_": f"{__name__}.blank"}
    cfg = CorpusConfig(source=node, general=node, general_max_bytes=100_000, max_copied=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kldistill.corpus.stage.find", lambda *_: blank)
        shingles("a text")  # what is made once, whatever the corpus
        _, most = peak(lambda: build(cfg, {}, out, Job(RuntimeConfig())))
    assert most < N * SIZE / 2, f"{most:,} bytes were held"
    return out


def test_the_corpus_is_written_without_holding_it(corpus: Path) -> None:
    sizes = [(corpus / f"{split}.jsonl").stat().st_size for split in ("train", "validation", "test")]
    assert sum(sizes) > N * SIZE, "all documents were kept"
    assert not (corpus / "spool.jsonl").exists()


def test_training_text_is_drawn_without_holding_the_corpus(corpus: Path) -> None:
    def drawn() -> list[Snippet]:
        return draw(cut(read_documents(corpus, "train"), 700), n=20)

    chosen, most = peak(drawn)
    assert len(chosen) == 20 and len({snippet.document for snippet in chosen}) == 20
    assert most < 20 * SIZE, f"{most:,} bytes were held"


def test_what_is_drawn_is_the_beginning_of_all_in_the_order_of_their_hashes(tmp_path: Path) -> None:
    snippets = [Snippet(f"d{number % 9}", f"text {number}\n" * (1 + number % 5)) for number in range(300)]
    ranked = sorted(snippets, key=lambda s: hashlib.sha256(f"{s.document}\n{s.text}".encode()).digest())
    assert draw(iter(snippets), n=50) == ranked[:50]
    for n_bytes in (1, 100, 1_000, 10**9):
        found = draw(iter(snippets), n_bytes=n_bytes)
        assert found == ranked[: len(found)]
        total = sum(snippet.n_bytes for snippet in found)
        assert total - found[-1].n_bytes < n_bytes and (total >= n_bytes or len(found) == 300)


def test_documents_are_a_sequence(tmp_path: Path) -> None:
    found = [Document(f"{number}", f"ä line {number}\n\u2028 and more\r\n" * number) for number in range(7)]
    path = tmp_path / "train.jsonl"
    path.write_bytes("".join(map(line_of, found)).encode())
    documents = Documents(path)
    assert len(documents) == 7 and list(documents) == found == list(documents), "as often as one likes"
    assert documents[3] == found[3] and documents[-1] == found[-1] and documents[2:5] == found[2:5]
    with pytest.raises(IndexError):
        documents[7]
    path.write_bytes(b"")
    assert len(Documents(path)) == 0 == len(list(Documents(path)))
