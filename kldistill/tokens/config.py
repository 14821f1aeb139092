"""Typed schema of the group ``tokens``."""

from dataclasses import dataclass
from typing import Any

from kldistill.runtime.config import check_choices, choice, require


@dataclass
class TokensConfig:
    """Which tokens are added, and how.

    Attributes:
        method: ``merges`` finds the terms that save most in the corpus; ``list`` takes those of the file ``terms``;
            ``none`` adds none and leaves the tokenizer as it is, for comparison: what training alone does.
        boundary: how far a new token may reach. In ``self.attention_mask = None``, ``word`` (the tokenizer's own rule)
            allows tokens up to ``attention`` and ``mask``, ``identifier`` also ``attention_mask``, ``dotted`` also
            ``self.attention_mask``; ``qualified`` also allows ``std::vector``, ``this->next`` and ``App\\Models``.
            ``auto`` takes the widest of these that the tokenizer can carry. ``line`` also goes over words and the signs
            between them, inside a line, digits left out: `` = None``, ``if self.attention_mask is not``.
        n_new: how many tokens are added, at most; ``auto`` goes up to the last that saves a token in 100,000.
        vocab_size: the size of the whole new vocabulary, instead of ``n_new``; null leaves it to ``n_new``.
        min_count: how often a term must stand in the corpus to become a token.
        min_documents: 2 asks for terms that stand in two documents or more (of conversations: messages), as a term of
            one file is learnt from that file alone; 1 takes those too. Of a corpus of one document all are taken.
        max_pieces: old tokens that one new token may replace, at most.
        max_run: repetitions of one character (the dashes of a line) in a new token, at most.
        prefix_closed: only take a token when every beginning of it, in whole old tokens, is a token already. The KL of
            distillation is then a lower bound only where merges contradict the longest match (docs/method.md).
        max_bytes: bytes of the train split in which terms are counted, at most; null for all.
        terms: the file of ``method=list``, one term a line.
        leading_space: how a term of the list becomes a token: with a space in front (``with``), without one, or both.
        as_added_tokens: put the terms of a list into the tokenizer as AddedTokens, cut out of the text before it is
            split, rather than as merges. They have no exact pieces, which some losses need.
        curve: the largest number of new tokens for which the share of tokens saved is reckoned and shown, for every
            boundary; 0 leaves that out.
    """

    method: str = choice("merges", "merges", "list", "none")
    boundary: str = choice("auto", "auto", "word", "identifier", "dotted", "qualified", "line")
    n_new: Any = 512
    vocab_size: int | None = None
    min_count: int = 4
    min_documents: int = 2
    max_pieces: int = 8
    max_run: int = 16
    prefix_closed: bool = False
    max_bytes: int | None = None
    terms: str | None = None
    leading_space: str = choice("both", "both", "with", "without")
    as_added_tokens: bool = False
    curve: int = 16_384

    def __post_init__(self) -> None:
        check_choices(self, "tokens")
        require(
            self.n_new is None or self.n_new == "auto" or (type(self.n_new) is int and 1 <= self.n_new <= 10**7),
            "tokens.n_new",
            self.n_new,
            "must be a whole number of at least 1, or auto",
        )
        require(
            self.vocab_size is not None or self.n_new is not None,
            "tokens.n_new",
            self.n_new,
            "must be at least 1 (or give tokens.vocab_size)",
        )
        for key in ("vocab_size", "max_bytes"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"tokens.{key}", value, "must be at least 1, or null")
        require(0 <= self.curve <= 10**6, "tokens.curve", self.curve, "must be 0 (none) to 1,000,000")
        require(self.min_count >= 1, "tokens.min_count", self.min_count, "must be at least 1")
        require(self.min_documents in (1, 2), "tokens.min_documents", self.min_documents, "must be 1 or 2")
        require(self.max_pieces >= 2, "tokens.max_pieces", self.max_pieces, "must be at least 2")
        require(self.max_run >= 1, "tokens.max_run", self.max_run, "must be at least 1")
        require(
            self.method != "list" or self.terms is not None,
            "tokens.terms",
            self.terms,
            "tokens.method=list needs a file with one term a line: tokens.terms=FILE",
        )
        require(
            self.method == "list" or not self.as_added_tokens,
            "tokens.as_added_tokens",
            self.as_added_tokens,
            "goes with tokens.method=list; merges are never AddedTokens",
        )
