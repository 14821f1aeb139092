"""The method ``list``: the user's own terms become tokens.

As merge chains (the default), built left to right over the old pieces of a term, so every prefix of a term is a token
too; or as AddedTokens, which are found in the text before anything is cut.
"""

from collections import ChainMap
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kldistill.runtime.errors import ConfigError, TokenizerError
from kldistill.tokens.boundaries import BOUNDARIES, widen
from kldistill.tokens.definition import BYTE_LEVEL, SPACE, kind
from kldistill.tokens.merges import Entry, Rules, combine
from kldistill.tokens.words import encoder


class Term(NamedTuple):
    """A term with the line of the file that it stands on (from 1)."""

    text: str
    line: int


def read_terms(path: Path) -> list[Term]:
    """The terms of a file in UTF-8, one a line. Empty lines, lines that start with ``#`` and repetitions are left out.

    Raises:
        ConfigError: there is no such file, it is not UTF-8, or it holds no term.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"tokens.terms={str(path)!r}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"tokens.terms={str(path)!r}: is not UTF-8 ({error.reason} at byte {error.start})."
        ) from error
    terms: dict[str, Term] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            terms.setdefault(text, Term(text, number))
    if not terms:
        raise ConfigError(f"tokens.terms={str(path)!r}: holds no term. Write one term a line.")
    return list(terms.values())


def variants(term: Term, leading_space: str) -> list[str]:
    """The strings that a term stands for: as it is, after a space, or both."""
    return {"both": [term.text, f" {term.text}"], "with": [f" {term.text}"], "without": [term.text]}[leading_space]


def cut(pieces: list[int], ranks: Mapping[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Apply merges to a word as BPE does: always the lowest rank, leftmost first.

    Args:
        pieces: the word.
        ranks: for every pair its rank and the id that it becomes.
    """
    while True:
        found = [(ranks[pair][0], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not found:
            return pieces
        i = min(found)[1]
        pieces = [*pieces[:i], ranks[pieces[i], pieces[i + 1]][1], *pieces[i + 2 :]]


class Chains:
    """Merges that make terms whole, built one term after the other.

    A term is first cut by all merges so far, and the merges that join what is left are appended: they cannot change a
    term that is whole already, so in the end every term is one token.
    """

    def __init__(self, rules: Rules):
        self.rules = rules
        self.size = len(rules.entries)
        self.merges: list[tuple[int, int]] = []
        self.ids: dict[tuple[int, ...], int] = {}
        self._ranks: dict[tuple[int, int], tuple[int, int]] = {}

    def add(self, pieces: list[int]) -> bool:
        """Make the word one token; False (and nothing changed) if some token on the way must not be made."""
        if not (self._attempt(pieces, 0) or self._attempt(pieces, -1)):
            return False
        if self.rules.prefix_closed:
            for n in range(2, len(pieces)):
                self._attempt(pieces[:n], 0)
        return True

    def _attempt(self, pieces: list[int], at: int) -> bool:
        """Join from the left (``at`` 0) or from the right (-1) until the word is one token."""
        entries, ids = list[Entry](), dict[tuple[int, ...], int]()
        ranks: dict[tuple[int, int], tuple[int, int]] = {}
        size = len(self.rules.entries)

        def entry(index: int) -> Entry:
            return self.rules.entries[index] if index < size else entries[index - size]

        def cut_now() -> list[int]:
            # A new merge may stand at several places of the word, so the whole word is cut again.
            return cut(pieces, ChainMap(ranks, self._ranks))

        while len(state := cut_now()) > 1:
            left, right = list(pairwise(state))[at]
            joined = combine(entry(left), entry(right))
            index = ids.get(joined.pieces, self.ids.get(joined.pieces))
            if index is None:
                if not self.rules.allows(joined):
                    return False
                index = ids[joined.pieces] = size + len(entries)
                entries.append(joined)
            ranks[left, right] = (len(self.merges) + len(ranks), index)
        for joined in entries:
            self.rules.add(joined)
        self.ids |= ids
        self._ranks |= ranks
        self.merges += ranks
        return True


class Cutter:
    """Old pieces of a string by itself, and whether the boundary keeps it in one word."""

    def __init__(self, spec: dict[str, Any], size: int, boundary: str):
        bare = widen(spec, boundary)
        if kind(spec) != BYTE_LEVEL:
            # Their normalizers may put a space before everything; here a term says itself whether it has one.
            space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
            bare = {**bare, "normalizer": space, "pre_tokenizer": None}
        self._encode = encoder(bare, size, boundary)

    def __call__(self, text: str) -> tuple[list[int], bool]:
        ids, glued, _ = self._encode([text])
        return ids.tolist(), bool(glued[1:].all())


def merge_chains(
    spec: dict[str, Any], size: int, boundary: str, terms: list[Term], leading_space: str, rules: Rules
) -> tuple[Chains, list[str]]:
    """Make every term a token by merges.

    Args:
        spec: definition of the old tokenizer.
        size: V.
        boundary: one of ``boundaries.BOUNDARIES``.
        terms: the terms.
        leading_space: ``both``, ``with`` or ``without``.
        rules: which tokens may be made.

    Returns:
        The merges, and remarks on variants of terms that were one token already.

    Raises:
        TokenizerError: a term cannot become a token; the message names it, its line, and the way out.
    """
    chains, remarks = Chains(rules), []
    cutter = Cutter(spec, size, boundary)
    for term in terms:
        fresh = 0
        for text in variants(term, leading_space):
            pieces, whole = cutter(text)
            if len(pieces) < 2:
                remarks.append(f"{text!r} (line {term.line}) is one token already.")
                continue
            if not whole:
                raise TokenizerError(_unreachable(spec, size, boundary, text, term))
            if not chains.add(pieces):
                raise TokenizerError(
                    f"tokens.terms, line {term.line}: {text!r} cannot be built by merges (a token on the way would not "
                    "be whole UTF-8, hold several digits, repeat one character too often, or be in the vocabulary "
                    "already). Leave it out, or use tokens.as_added_tokens=true."
                )
            fresh += 1
        if not fresh:
            raise TokenizerError(
                f"tokens.terms, line {term.line}: {term.text!r} is one token of the old tokenizer already. Leave it "
                "out."
            )
    return chains, remarks


def _unreachable(spec: dict[str, Any], size: int, boundary: str, text: str, term: Term) -> str:
    wider = []
    for other in BOUNDARIES[BOUNDARIES.index(boundary) + 1 :]:
        try:
            if Cutter(spec, size, other)(text)[1]:
                wider.append(other)
        except TokenizerError:
            break
    ways = [f"tokens.boundary={wider[0]}"] if wider else []
    return (
        f"tokens.terms, line {term.line}: {text!r} reaches beyond tokens.boundary={boundary} (the tokenizer cuts it "
        f"first), so merges can never make it one token. Use {' or '.join([*ways, 'tokens.as_added_tokens=true'])}, or "
        "leave it out."
    )


def added_tokens(spec: dict[str, Any], terms: list[Term], leading_space: str) -> list[str]:
    """The contents of AddedTokens for the terms.

    Raises:
        TokenizerError: a term is in the vocabulary already, or is no more than what an AddedToken may not be.
    """
    vocab = spec["model"]["vocab"].keys() | {token["content"] for token in spec["added_tokens"]}
    contents = []
    for term in terms:
        for text in variants(term, leading_space):
            if text in vocab:
                raise TokenizerError(
                    f"tokens.terms, line {term.line}: {text!r} is in the old vocabulary already. Leave it out."
                )
            contents.append(text)
    return contents
