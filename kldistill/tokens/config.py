"""Typed schema of the group ``tokens``."""

from dataclasses import dataclass

from kldistill.runtime.config import require


@dataclass
class TokensConfig:
    """Which tokens are added, and how."""

    method: str = "merges"
    boundary: str = "identifier"
    n_new: int | None = 512
    vocab_size: int | None = None
    min_count: int = 4
    max_pieces: int = 8
    max_run: int = 16
    prefix_closed: bool = False
    max_bytes: int | None = None
    terms: str | None = None
    leading_space: str = "both"
    as_added_tokens: bool = False

    def __post_init__(self) -> None:
        require(self.method in ("merges", "list"), "tokens.method", self.method, "must be merges or list")
        require(
            self.boundary in ("word", "identifier", "dotted"),
            "tokens.boundary",
            self.boundary,
            "must be word, identifier or dotted",
        )
        require(
            self.leading_space in ("both", "with", "without"),
            "tokens.leading_space",
            self.leading_space,
            "must be both, with or without",
        )
        require(
            self.vocab_size is not None or (self.n_new or 0) >= 1,
            "tokens.n_new",
            self.n_new,
            "must be at least 1 (or give tokens.vocab_size)",
        )
        require(self.min_count >= 1, "tokens.min_count", self.min_count, "must be at least 1")
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
