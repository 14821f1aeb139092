"""Typed schemas of every config group. Hydra refuses a misspelt key or a wrong type with them, before anything runs.

Ranges are checked in ``__post_init__``, which runs when ``OmegaConf.to_object`` makes a stage's slice; what concerns
several groups at once is in ``kldistill.checks``.
"""

from dataclasses import dataclass, field
from typing import Any

from kldistill.errors import ConfigError


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Raise ``ConfigError`` naming ``key`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key}={value!r}: {rule}.")


@dataclass
class RuntimeConfig:
    """How to run. Never changes a result, so it never enters a fingerprint.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``mps`` (through accelerate; only ``cpu`` is tested).
        workers: threads and processes for text work; 0 means all cores.
        threads: torch threads; 0 leaves torch's own choice.
        checkpoint_every: training steps between two checkpoints.
        generation_batch: completions that are written at a time; changes them by no more than rounding does.
    """

    device: str = "auto"
    workers: int = 0
    threads: int = 0
    checkpoint_every: int = 20
    generation_batch: int = 64

    def __post_init__(self) -> None:
        require(self.workers >= 0, "runtime.workers", self.workers, "must be 0 (all cores) or more")
        require(self.threads >= 0, "runtime.threads", self.threads, "must be 0 (torch's choice) or more")
        for key in ("checkpoint_every", "generation_batch"):
            require(getattr(self, key) >= 1, f"runtime.{key}", getattr(self, key), "must be at least 1")


@dataclass
class CorpusConfig:
    """Where the text comes from and how it is split. Sizes are in bytes of UTF-8."""

    source: dict[str, Any] = field(default_factory=dict)
    general: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    validation: float = 0.05
    test: float = 0.1
    max_bytes: int | None = None
    general_max_bytes: int = 1_000_000
    min_document_bytes: int = 64
    max_document_bytes: int = 1_000_000
    max_line_length: int = 1_000
    near_duplicate: float = 0.8

    def __post_init__(self) -> None:
        require("_target_" in self.source, "corpus.source", self.source, "needs a _target_ (see conf/corpus)")
        require("_target_" in self.general, "corpus.general", self.general, "needs a _target_ (see conf/corpus)")
        for key in ("validation", "test"):
            value = getattr(self, key)
            require(0 < value < 0.5, f"corpus.{key}", value, "is a share of the documents, above 0 and below 0.5")
        require(
            0 < self.near_duplicate <= 1,
            "corpus.near_duplicate",
            self.near_duplicate,
            "is a Jaccard similarity above 0, at most 1",
        )
        for key in ("general_max_bytes", "min_document_bytes", "max_document_bytes", "max_line_length"):
            require(getattr(self, key) >= 1, f"corpus.{key}", getattr(self, key), "must be at least 1")
        require(
            self.max_bytes is None or self.max_bytes >= 1,
            "corpus.max_bytes",
            self.max_bytes,
            "must be at least 1, or null for all",
        )


@dataclass
class PythonPackageCorpus(CorpusConfig):
    """Sources of installed packages.

    Attributes:
        packages: import names or distribution names; parts such as ``transformers.generation`` work too.
        suffixes: which files of them.
    """

    packages: list[str] = field(default_factory=list)
    suffixes: list[str] = field(default_factory=lambda: [".py"])

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.packages), "corpus.packages", self.packages, "name installed packages: corpus.packages=[requests]"
        )
        require(bool(self.suffixes), "corpus.suffixes", self.suffixes, "name at least one, such as .py")


@dataclass
class LocalFilesCorpus(CorpusConfig):
    """Text files below a folder.

    Attributes:
        path: the folder.
        glob: which files below it, in the language of ``pathlib``: ``**/*.py``.
    """

    path: str | None = None
    glob: str = "**/*.py"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.path), "corpus.path", self.path, "name the folder of your files: corpus.path=FOLDER")
        require(bool(self.glob), "corpus.glob", self.glob, 'say which files, such as "**/*.py"')


@dataclass
class HfDatasetCorpus(CorpusConfig):
    """One text column of a dataset that ``datasets`` can load.

    Attributes:
        path: a dataset of the hub, a local folder, or a format (``json``, ``parquet``, ``csv``, ``text``) with
            ``data_files``.
        name: the dataset's configuration, where it has several.
        split: as ``datasets`` spells it, such as ``train`` or ``train[:10%]`` (slices not with streaming).
        text_field: the column that holds the text.
        streaming: read rows as they come rather than load the whole dataset into the local cache first.
        revision: branch, tag or commit on the hub.
        data_files: files or patterns, relative to ``path`` or, with a format, to the working folder.
        limit: read at most this many rows; null for all.
    """

    path: str | None = None
    name: str | None = None
    split: str = "train"
    text_field: str = "text"
    streaming: bool = False
    revision: str | None = None
    data_files: list[str] = field(default_factory=list)
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.path), "corpus.path", self.path, "name a dataset, folder or format: corpus.path=DATASET")
        require(
            self.limit is None or self.limit >= 1, "corpus.limit", self.limit, "must be at least 1, or null for all"
        )
        require(
            not (self.streaming and "[" in self.split),
            "corpus.split",
            self.split,
            "cannot be sliced with corpus.streaming=true; use corpus.limit",
        )


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


@dataclass
class InitConfig:
    """How the new rows start.

    Attributes:
        input: a function of ``kldistill.inits`` by ``_target_`` (``_partial_: true``), for the input rows.
        output: the same for the output rows.
        tie: null keeps what the model does; false gives a tied model separate output rows.
        calibrate: scale every new row to the median norm of the old ones.
        seed: of the methods that draw random numbers.
    """

    input: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    tie: bool | None = None
    calibrate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require("_target_" in self.input, "init.input", self.input, "needs a _target_ (see conf/init)")
        require("_target_" in self.output, "init.output", self.output, "needs a _target_ (see conf/init)")


@dataclass
class LoggerConfig:
    """Where figures go beside ``metrics.jsonl``."""

    name: str = "wandb"
    project: str = "kldistill"
    mode: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.name in ("wandb", "trackio", "none"), "logger.name", self.name, "must be wandb, trackio or none")
        require(
            self.mode in (None, "offline", "online", "disabled", "shared"),
            "logger.mode",
            self.mode,
            "must be offline, online, shared or disabled",
        )
