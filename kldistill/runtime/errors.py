"""Errors that the user can mend: each has one readable message. Internal invariants assert instead."""

from collections.abc import Iterator


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


class KldistillError(ValueError):
    """Base class. The message names the key or file, what is wrong with it, and what to do."""


class ConfigError(KldistillError):
    """A configuration that cannot work, found before any expensive work."""


class CorpusError(KldistillError):
    """A text source that cannot be read, or that gives too little text."""


class TokenizerError(KldistillError):
    """A tokenizer that cannot be extended as asked."""


class ModelError(KldistillError):
    """A model that cannot be found, read, or extended."""


class ArtifactError(KldistillError):
    """An artifact on disk that is damaged or incomplete."""


class TrainingError(KldistillError):
    """Training that has left the realm of finite numbers."""


class EvaluationError(KldistillError):
    """A suite of tasks that cannot be built or judged."""


class ProcessError(KldistillError):
    """Another process of the same run has failed; its own message says why."""


class StorageError(KldistillError):
    """A disk that is full, a folder that cannot be written, or another fault of the file system."""


class MemoryShortageError(KldistillError):
    """A device, or the machine, without the memory that a step needs."""


class FolderInUseError(KldistillError):
    """Another process is running in the same run folder."""


class Stopped(KeyboardInterrupt):
    """The user or the system has asked the run to end (SIGINT, SIGTERM). The same command goes on with it."""
