"""What a multimodal model's folder has beside model and tokenizer: how images and sound become inputs.

Text alone is learnt, and these files do not depend on the vocabulary's size, so they are kept byte for byte.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from transformers import PretrainedConfig
from transformers.utils import FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from kldistill.model.load import in_artifacts

FILES = (PROCESSOR_NAME, FEATURE_EXTRACTOR_NAME, VIDEO_PROCESSOR_NAME)


def keep(facts: Mapping[str, Any], config: PretrainedConfig, out: Path, say: Callable[[str], None]) -> None:
    """Copy the processor files of the original model into an exported folder.

    Where the hub cannot be asked for them, that is said and the export goes on: text needs none of them.

    Args:
        facts: ``model.json``, which says where the original lies.
        config: of the original model; one without parts of its own for images or sound has none.
        out: the exported folder.
    """
    if in_artifacts(facts) or config.get_text_config() is config:
        return
    missing = []
    for name in FILES:
        try:
            file = _file(facts, name)
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
            missing.append(name)
            continue
        if file is not None:
            shutil.copyfile(file, out / name)
    if missing:
        say(
            f"Warning: {facts['path']} is a multimodal model, and the hub could not be asked for {', '.join(missing)}. "
            f"To give the exported model images or sound, copy what there is of them into {out}."
        )


def _file(facts: Mapping[str, Any], name: str) -> Path | None:
    """A file of the original model; None where it has none of this name. Raises where the hub cannot say."""
    folder = Path(facts["path"])
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    only_cache = facts.get("local_files_only", False)
    try:
        return Path(hf_hub_download(facts["path"], name, revision=facts["revision"], local_files_only=only_cache))
    except LocalEntryNotFoundError:
        raise  # neither the hub nor the cache knows; it is a kind of the next
    except EntryNotFoundError:
        return None
