"""Which text trains: snippets of the domain, and a share of general text beside them."""

import itertools
from collections.abc import Callable
from pathlib import Path

from kldistill.corpus.documents import GENERAL_SPLITS, WRITTEN, has_split, read_documents
from kldistill.corpus.snippets import Snippet, cut, draw
from kldistill.runtime.errors import ConfigError
from kldistill.training.config import DistillConfig
from kldistill.training.finetune_config import FinetuneConfig


def n_of(n: int, share: float) -> int:
    """How many snippets a share of ``n`` of them is."""
    return round(n * share)


def passes(cfg: DistillConfig | FinetuneConfig, group: str, n: int, more: str, say: Callable[[str], None]) -> float:
    """How often training goes over its ``n`` snippets, in the mean.

    Args:
        group: ``distill`` or ``finetune``.
        more: what gives more of them; ``say`` is told where they are fewer than ``group.snippets`` asks for.
    """
    often = cfg.steps * min(cfg.batch_size, n) / n
    if n < cfg.n_snippets:
        asked = f"{cfg.n_snippets:,} snippets" + ("" if cfg.snippets else ", one for each step and place in the batch")
        say(
            f"Warning: {group}.snippets={cfg.snippets or 'null'} asks for {asked}, and there are {n:,}: "
            f"{group}.steps={cfg.steps} trains on each {often:.1f} times in the mean. {more}"
        )
    return often


def general(
    corpus: Path,
    part: str,
    size: int,
    *,
    n: int | None = None,
    n_bytes: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Snippet]:
    """Snippets of the general texts, of each kind that the corpus has (prose, code) the same number or size. Where one
    kind has less than its half, the other makes up for it as far as it can, and ``say`` is told.

    Args:
        corpus: folder of the ``corpus`` artifact.
        part: ``train`` or ``validation``.
        size: bytes of a snippet, about.
        n: how many, or:
        n_bytes: how much text.

    Returns:
        The snippets; none where the corpus has kept no general text for this part.
    """
    kinds = [name for name in GENERAL_SPLITS if has_split(corpus, f"{name}_{part}")]
    total, unit = (n, "snippets") if n is not None else (n_bytes, "bytes")
    assert total is not None

    def drawn(kind: str, amount: int) -> list[Snippet]:
        snippets = cut(read_documents(corpus, f"{kind}_{part}"), size)
        return draw(snippets, n=amount, seed=seed) if n is not None else draw(snippets, n_bytes=amount, seed=seed)

    halves = {kind: (total + number) // len(kinds) for number, kind in enumerate(kinds)}
    found = {kind: drawn(kind, half) for kind, half in halves.items()}
    had = {kind: len(of) if n is not None else sum(one.n_bytes for one in of) for kind, of in found.items()}
    for kind, other in itertools.permutations(kinds, 2):
        missing = halves[kind] - had[kind]
        if missing > 0 and had[other] >= halves[other]:
            found[other] = drawn(other, halves[other] + missing)
            say(
                f"General text for {part}: corpus.{kind} has {had[kind]:,} of its {halves[kind]:,} {unit}, so more of "
                f"corpus.{other} takes their place."
            )
    return [snippet for kind in kinds for snippet in found[kind]]


def self_written(folder: Path) -> list[Snippet]:
    """The texts that the original model wrote, each after its prompt, which is not scored.

    Args:
        folder: of the artifact ``write_train`` or ``write_test``.
    """
    return [Snippet(document.id, document.text, document.parts) for document in read_documents(folder, WRITTEN)]


def with_general(
    snippets: list[Snippet], corpus: Path, share: float, size: int, seed: int, key: str, say: Callable[[str], None]
) -> tuple[list[Snippet], float]:
    """Snippets of the domain, and as many of general text as make up the ``share`` of all, or as there are.

    Args:
        key: of the configuration, for errors.
        say: told where the corpus has too little general text for this share.

    Returns:
        The snippets, and the share that general text has of them.

    Raises:
        ConfigError: the corpus has kept no general text for training.
    """
    wanted = n_of(round(len(snippets) / (1 - share)), share)
    if not wanted:
        return snippets, 0.0
    of_general = general(corpus, "train", size, n=wanted, seed=seed, say=say)
    if not of_general:
        raise ConfigError(
            f"{key}={share}: the corpus has kept no general text for training. Raise corpus.general_train, or give "
            f"corpus.general more documents; {key}=0 trains on the domain alone."
        )
    every = [*snippets, *of_general]
    cure = "Raise corpus.general_max_bytes or corpus.general_train, or give corpus.general more documents."
    return every, had_of(len(of_general), wanted, len(every), f"{key}={share}", "of general text", cure, say)


def had_of(n: int, wanted: int, of: int, asked: str, what: str, cure: str, say: Callable[[str], None]) -> float:
    """The share that ``n`` of the ``of`` snippets are; ``say`` is told where more were ``wanted``."""
    had = n / of if of else 0.0
    if n < wanted:
        say(f"Warning: {asked} asks for {wanted:,} snippets {what}, and there are {n:,}: {had:.1%} of all. {cure}")
    return had
