"""Which text trains: snippets of the domain, and a share of general text beside them."""

from pathlib import Path

from kldistill.corpus.documents import GENERAL_SPLITS, WRITTEN, has_split, read_documents
from kldistill.corpus.snippets import Snippet, cut, draw
from kldistill.runtime.errors import ConfigError


def n_general(n: int, share: float) -> int:
    """How many of ``n`` snippets are of general text."""
    return round(n * share)


def general(
    corpus: Path, part: str, size: int, *, n: int | None = None, n_bytes: int | None = None, seed: int = 0
) -> list[Snippet]:
    """Snippets of the general texts, of each kind that the corpus has (prose, code) the same number or size.

    Args:
        corpus: folder of the ``corpus`` artifact.
        part: ``train`` or ``validation``.
        size: bytes of a snippet, about.
        n: how many, or:
        n_bytes: how much text.

    Returns:
        The snippets; none where the corpus has kept no general text for this part.
    """
    kinds = [f"{name}_{part}" for name in GENERAL_SPLITS if has_split(corpus, f"{name}_{part}")]
    drawn: list[Snippet] = []
    for number, kind in enumerate(kinds):
        snippets = cut(read_documents(corpus, kind), size)
        if n is not None:
            drawn += draw(snippets, n=(n + number) // len(kinds), seed=seed)
        else:
            assert n_bytes is not None
            drawn += draw(snippets, n_bytes=n_bytes // len(kinds), seed=seed)
    return drawn


def self_written(folder: Path) -> list[Snippet]:
    """The texts that the original model wrote, each after its prompt, which is not scored.

    Args:
        folder: of the artifact ``write_train`` or ``write_test``.
    """
    return [Snippet(document.id, document.text, document.parts) for document in read_documents(folder, WRITTEN)]


def with_general(snippets: list[Snippet], corpus: Path, share: float, size: int, seed: int, key: str) -> list[Snippet]:
    """Snippets of the domain, and as many of general text as make up the ``share`` of all.

    Args:
        key: of the configuration, for errors.

    Raises:
        ConfigError: the corpus has kept no general text for training.
    """
    wanted = n_general(round(len(snippets) / (1 - share)), share)
    if not wanted:
        return snippets
    of_general = general(corpus, "train", size, n=wanted, seed=seed)
    if not of_general:
        raise ConfigError(
            f"{key}={share}: the corpus has kept no general text for training. Raise corpus.general_train, or give "
            "corpus.general more documents."
        )
    return [*snippets, *of_general]
