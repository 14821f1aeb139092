"""The method ``list``: the user's own terms become tokens.

They become merge chains (the default), which are built from left to right over the old pieces of a term, so that every
prefix of a term is a token too, or AddedTokens, which are found in the text before anything is cut.
"""

from bisect import bisect_right
from collections import ChainMap
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import regex

from kldistill.runtime.errors import ConfigError, TokenizerError
from kldistill.tokens.boundaries import let_through
from kldistill.tokens.definition import BYTE_LEVEL, SPACE, Definition, kind, parts, text_bytes
from kldistill.tokens.encoding import reader
from kldistill.tokens.joints import any_of
from kldistill.tokens.merge_order import cut
from kldistill.tokens.merges import Entry, Rules, combine
from kldistill.tokens.words import encoder


class Term(NamedTuple):
    """A term with the line of the file that it stands on (from 1)."""

    text: str
    line: int


def read_terms(path: Path) -> list[Term]:
    """The terms of a file in UTF-8, one a line. Empty lines, comments and repetitions are left out.

    A comment begins with ``#`` and a space: ``#include`` and ``##`` are terms.

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
        if text and text != "#" and not text.startswith("# "):
            terms.setdefault(text, Term(text, number))
    if not terms:
        raise ConfigError(f"tokens.terms={str(path)!r}: holds no term. Write one term a line.")
    return list(terms.values())


def variants(term: Term, leading_space: str) -> list[str]:
    """The strings that a term stands for: as it is, after a space, or both."""
    return {"both": [term.text, f" {term.text}"], "with": [f" {term.text}"], "without": [term.text]}[leading_space]


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
        """Make the word one token; False if some token on the way must not be made.

        Characters that are spread over several pieces become tokens first, so that what they share serves all terms.
        """
        for character in self._characters(pieces):
            if len(character) > 1 and not self._attempt(character, 0):
                return False
        if not (self._attempt(pieces, 0) or self._attempt(pieces, -1)):
            return False
        if self.rules.prefix_closed:
            for n in range(2, len(pieces)):
                self._attempt(pieces[:n], 0)
        return True

    def _characters(self, pieces: list[int]) -> list[list[int]]:
        """The pieces in groups that are whole UTF-8."""
        groups, group, data = [], [], b""
        for piece in pieces:
            group.append(piece)
            data += self.rules.entries[piece].bytes
            try:
                data.decode()
            except UnicodeDecodeError:
                continue
            groups.append(group)
            group, data = [], b""
        return [*groups, group] if group else groups

    def _attempt(self, pieces: list[int], end: int) -> bool:
        """Join from the left (``end`` 0) or from the right (-1) until the word is one token."""
        entries, ids = list[Entry](), dict[tuple[int, ...], int]()
        ranks: dict[tuple[int, int], tuple[int, int]] = {}
        size = len(self.rules.entries)

        def entry(index: int) -> Entry:
            return self.rules.entries[index] if index < size else entries[index - size]

        def cut_now() -> list[int]:
            # A new merge may stand at several places of the word, so the whole word is cut again.
            return cut(pieces, ChainMap(ranks, self._ranks))

        while len(state := cut_now()) > 1:
            left, right = list(pairwise(state))[end]
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
    """Old pieces of a string by itself, and whether the boundary keeps it in one word.

    Args:
        wide: the old tokenizer, its pre-tokenizer widened.
    """

    def __init__(self, wide: Definition):
        spec = wide.spec
        self._byte_level = kind(spec) == BYTE_LEVEL
        # Gemma's split at spaces finds none, as its normalizer has written them otherwise.
        steps = parts(spec["pre_tokenizer"], "pretokenizers")
        self._cuts_spaces = any(step["type"] == "Metaspace" and step.get("split", True) for step in steps)
        if not self._byte_level:
            # Their normalizers may put a space before everything; here a term says itself whether it has one.
            space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
            spec = {**spec, "normalizer": space, "pre_tokenizer": None}
        self._encode = encoder(wide._replace(spec=spec))

    def __call__(self, text: str) -> tuple[list[int], bool]:
        ids, glued, _ = self._encode([text])
        if self._byte_level:
            return ids.tolist(), bool(glued[1:].all())
        # Nothing but Metaspace cuts there, at spaces, so a user's own term may hold anything else.
        return ids.tolist(), not (self._cuts_spaces and " " in text[1:])


def merge_chains(
    wide: Definition, terms: list[Term], leading_space: str, rules: Rules
) -> tuple[Definition, Chains, list[str]]:
    """Make every term a token by merges.

    A term may reach beyond the boundary: the pre-tokenizer then keeps that very term whole, wherever it stands as a
    union of whole old pre-tokens (``boundaries.let_through``).

    Args:
        wide: the old tokenizer, its pre-tokenizer widened.
        terms: the terms.
        leading_space: ``both``, ``with`` or ``without``.
        rules: which tokens may be made.

    Returns:
        The tokenizer with a pre-tokenizer that lets the terms through, the merges, and remarks on what was left out.

    Raises:
        TokenizerError: terms cannot become tokens; the message names all of them, their lines, and the way out.
    """
    texts = [text for term in terms for text in variants(term, leading_space)]
    cutter = Cutter(wide)
    if beyond := [text for text in texts if not cutter(text)[1]]:
        wide = wide._replace(spec=let_through(wide.spec, beyond))
        cutter = Cutter(wide)
    chains, known, faults = Chains(rules), list[str](), list[str]()
    for term in terms:
        for text in variants(term, leading_space):
            pieces, whole = cutter(text)
            if len(pieces) < 2:
                known.append(f"{text!r} (line {term.line})")
            elif not whole:
                faults.append(f"line {term.line}: {text!r} is cut before the boundary's rule sees it")
                break
            elif not chains.add(pieces):
                faults.append(
                    f"line {term.line}: {text!r} cannot be built by merges (a token on the way would hold several "
                    "digits, repeat one character too often, or be in the vocabulary already)"
                )
                break
    if faults:
        raise TokenizerError(
            f"tokens.terms: {len(faults)} of {len(terms)} terms can be no tokens by merges: {listed(faults, '; ')}. "
            "Leave them out, or make these terms AddedTokens: tokens.as_added_tokens=true loss=ce init=mean."
        )
    if not chains.merges:
        raise TokenizerError(f"tokens.terms: every term is one token of the old tokenizer already: {listed(known)}.")
    remarks = [f"{len(known)} terms, with or without a space, are one token already: {listed(known)}."] if known else []
    return wide, chains, remarks


def listed(items: list[str], between: str = ", ", limit: int = 20) -> str:
    """The first of them, and how many more there are."""
    return between.join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def added_tokens(
    old: Definition, terms: list[Term], leading_space: str, texts: Iterable[str]
) -> tuple[list[str], list[str]]:
    """The contents of AddedTokens for the terms, and remarks on what was left out.

    No untrained row may stand over one that the model has learnt, so a term that is one old token is left out, also
    without a space where it is one with a space: AddedTokens are found before anything is cut, after a space too.
    ``single_word`` keeps those without a space out of longer words; with
    a space before them it would ask that no word stands before the space, as it hardly ever is. So a term gets no token
    with a space where that would cut a longer word that the old tokenizer keeps together: ``interna`` gets none beside
    `` internal``, and is found after a space by the token without one.

    Args:
        old: the old tokenizer.
        terms: the terms.
        leading_space: ``both``, ``with`` or ``without``.
        texts: where longer words are looked for, beside the old vocabulary.

    Raises:
        TokenizerError: the old tokenizer has every term as one token already, or terms that were asked for with a space
            alone would cut longer words.
    """
    cutter = Cutter(old)
    added = {token["content"] for token in old.spec["added_tokens"]}
    contents, known = dict[str, Term](), list[str]()
    for term in terms:
        for text in variants(term, leading_space):
            if any(form in added or len(cutter(form)[0]) == 1 for form in {text, f" {term.text}"}):
                known.append(f"{text!r} (line {term.line})")
            else:
                contents[text] = term
    remarks = [f"{len(known)} terms are one token already and are left out: {listed(known)}."] if known else []
    if cuts := _longer_words(old.spec, [text for text in contents if text.startswith(" ")], texts):
        faults = [f"{text!r} (line {contents[text].line}) would cut {word!r}" for text, word in cuts.items()]
        told = listed(faults, "; ")
        if leading_space == "with":
            raise TokenizerError(
                f"tokens.terms: {len(cuts)} terms would cut longer words as AddedTokens with a space: {told}. Use "
                "tokens.leading_space=both, or merges, which know where words end (tokens.as_added_tokens=false)."
            )
        remarks.append(f"{len(cuts)} terms get no token with a space before, as it would cut longer words: {told}.")
    if not (made := [text for text in contents if text not in cuts]):
        raise TokenizerError(f"tokens.terms: every term is one token of the old tokenizer already: {listed(known)}.")
    return made, remarks


def _longer_words(spec: dict[str, Any], contents: list[str], texts: Iterable[str]) -> dict[str, str]:
    """For each content, a word that it begins and that the old tokenizer does not cut there, where there is one."""
    if not contents:
        return {}
    word = regex.compile(rf"{any_of(contents)}\w*")
    old = (text_bytes(token, kind(spec)).decode(errors="ignore") for token in spec["model"]["vocab"])
    words = sorted({match[0] for text in chain(old, texts) for match in word.finditer(text)})
    encodings = reader(spec).encode_batch(words, add_special_tokens=False)
    ends = [{end for _, end in encoding.offsets} for encoding in encodings]
    found = {}
    for content in contents:
        for i in range(bisect_right(words, content), len(words)):
            if not words[i].startswith(content):
                break
            if regex.match(r"\w", words[i], pos=len(content)) and len(content) not in ends[i]:
                found[content] = words[i]
                break
    return found
