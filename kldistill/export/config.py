"""Typed schema of the group ``export``."""

from dataclasses import dataclass

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from kldistill.runtime.config import check_choices, choice, require


@dataclass
class ExportConfig:
    """The exported folder, and where else it goes.

    Attributes:
        license: the license of the extended model; null takes the base model's.
        gguf: also write ``model.gguf`` (models with ``tokens.boundary=word`` of the families that docs/serving.md
            names; others are refused before training).
        pad_to_multiple_of: round the height of embedding and head up to a multiple of this, where a server wants that
            (64 or 128, for instance); 1 leaves exactly one row for every id.
        dtype: in which type the weights are written: ``float32``, ``bfloat16`` or ``float16``; null is that in which
            the model was held (``model.dtype``). Figures are of the model as it was held.
        push_to_hub: upload the folder to this repository of the hub, ``user/name``, as whoever is logged in
            (``hf auth login``) and may write there; null uploads nothing.
        private: whether a repository that the upload creates is private.
    """

    license: str | None = None
    gguf: bool = False
    pad_to_multiple_of: int = 1
    dtype: str | None = choice(None, "float32", "bfloat16", "float16")
    push_to_hub: str | None = None
    private: bool = True

    def __post_init__(self) -> None:
        check_choices(self, "export")
        require(
            1 <= self.pad_to_multiple_of <= 65_536,
            "export.pad_to_multiple_of",
            self.pad_to_multiple_of,
            "must be between 1 (no padding) and 65536",
        )
        if self.push_to_hub is None:
            return
        try:
            validate_repo_id(self.push_to_hub)
            named = self.push_to_hub.count("/") == 1
        except HFValidationError:
            named = False
        require(named, "export.push_to_hub", self.push_to_hub, "must be a repository of the hub, such as user/name")


@dataclass
class UploadConfig:
    """Where the exported folder is uploaded to: ``export.push_to_hub`` and ``export.private``."""

    repo: str
    private: bool
