"""Typed schemas of the group ``corpus``."""

from dataclasses import dataclass, field
from typing import Any

from kldistill.runtime.config import require


@dataclass
class CorpusConfig:
    """Where the text comes from and how it is split. Sizes are in bytes of UTF-8.

    Attributes:
        source: the function that reads the domain's text, by ``_target_``, and its settings. The keys of the chosen
            preset fill it in.
        general: the same for general text, which measures what is forgotten, and may be mixed into training.
        general_code: the same for general text of another kind; empty for none.
        seed: draws the split, and the order in which ``max_bytes`` takes documents.
        validation: share of the groups of documents (see ``split_by``) that validation during training draws on.
        test: share of the groups of documents that the evaluation draws on.
        split_by: ``folder`` (documents of one folder share a split; a folder with more text than the smaller of the
            held-out splits is divided into its documents) or ``document``.
        max_copied: held-out documents of whose 13-token shingles more than this share stands in train are left out;
            what stands in many documents of train, such as a licence, does not count.
        general_train: share of the documents of the general texts that training may draw on (``distill.general``), a
            quarter of these for validation; the evaluation sees the others alone.
        max_bytes: domain text that is kept, at most; null for all.
        general_max_bytes: text that is kept of each of the general texts, at most.
        min_document_bytes: shorter documents are left out.
        max_document_bytes: longer documents are cut, at lines, into several; so are those that hold more than half of
            what the smaller held-out split is to hold.
        max_line_length: in characters; code with a longer line is left out, as minified (prose and logs are not).
        near_duplicate: Jaccard similarity at which a document counts as a copy of another, and is left out; 1 leaves
            out exact copies alone.
    """

    source: dict[str, Any] = field(default_factory=dict)
    general: dict[str, Any] = field(default_factory=dict)
    general_code: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    validation: float = 0.05
    test: float = 0.1
    split_by: str = "folder"
    max_copied: float = 0.1
    general_train: float = 0.3
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
        rule = "is a share of the documents, from 0 to below 1"
        require(0 <= self.general_train < 1, "corpus.general_train", self.general_train, rule)
        rule = "must be folder or document"
        require(self.split_by in ("folder", "document"), "corpus.split_by", self.split_by, rule)
        rule = "is a share of a document's shingles, from 0 to 1 (1 leaves nothing out)"
        require(0 <= self.max_copied <= 1, "corpus.max_copied", self.max_copied, rule)
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
        suffixes: which of their files, by the ends of the names.
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
        path: the folder, or one file.
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
    """One column, of texts or of conversations, of a dataset that ``datasets`` can load.

    Attributes:
        path: a dataset of the hub, a local folder, or a format (``json``, ``parquet``, ``csv``, ``text``) with
            ``data_files``.
        name: the dataset's configuration, where it has several.
        split: as ``datasets`` spells it, such as ``train`` or ``train[:10%]`` (slices not with streaming).
        text_field: the column that holds the text.
        messages_field: the column that holds conversations, in place of texts: lists of messages with a ``role`` and
            a ``content``, which the model's own chat template renders. Empty for texts.
        answers_only: of conversations, losses and metrics are of what the assistant says alone, with the special
            token that ends it; the rest is read and not scored.
        streaming: read rows as they come rather than load the whole dataset into the local cache first.
        revision: branch, tag or commit on the hub.
        data_files: files or patterns, relative to ``path`` or, with a format, to the working folder.
        limit: read at most this many rows; null for all.
    """

    path: str | None = None
    name: str | None = None
    split: str = "train"
    text_field: str = "text"
    messages_field: str | None = None
    answers_only: bool = False
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
        require(
            not self.answers_only or bool(self.messages_field),
            "corpus.answers_only",
            self.answers_only,
            "is for conversations: name their column, corpus.messages_field=messages (or take corpus=chat)",
        )
