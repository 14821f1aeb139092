"""A LoRA adapter of the original model, merged into it whenever it is read: a part of it (``model.adapter``), or one
that is to work with the extended model too (``eval.adapter``).

Weights are read from ``adapter_model.safetensors`` alone: peft's older ``adapter_model.bin`` is a pickle, which can run
programs.
"""

import json
import warnings
from pathlib import Path
from typing import Any, cast

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from kldistill.runtime.errors import ModelError
from kldistill.runtime.hub_errors import HUB_ERRORS

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# transformers adds such an adapter to the model by itself, and then saves the adapter alone.
BESIDE = (
    f"an adapter ({SETTINGS}) lies in the model's own folder, and transformers reads the two as one. Move the "
    "adapter's files into a folder of their own, and give that as model.adapter, with the model that it was trained on "
    "as model.path."
)
UNTIED = (
    "Untie the model first (model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone()) and "
    "model.config.tie_word_embeddings = False), merge with peft (PeftModel.from_pretrained(model, ADAPTER)"
    ".merge_and_unload().save_pretrained(FOLDER)), save the tokenizer beside it, and give that folder as model.path."
)


def local_adapter(
    adapter: str, revision: str | None = None, local_files_only: bool = False, key: str = "model.adapter"
) -> Path:
    """The folder of an adapter, fetched from the hub where ``adapter`` is an id; both its files are there.

    Args:
        key: of the configuration, for errors.

    Raises:
        ModelError: there is no such adapter, or it is none that can be merged.
    """
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or adapter.startswith((".", "~")) or adapter.count("/") != 1:
            raise ModelError(f"{key}={adapter!r}: there is no such folder. Give one with {SETTINGS}, or a hub id.")
        try:
            # File by file: of a pinned commit, what is in the cache is taken without asking the hub, at every stage.
            files = [
                hf_hub_download(adapter, name, revision=revision, local_files_only=local_files_only)
                for name in (SETTINGS, WEIGHTS)
            ]
        except RemoteEntryNotFoundError as error:
            raise _lacks(SETTINGS if SETTINGS in str(error) else WEIGHTS, adapter, key) from error
        except (HFValidationError, *HUB_ERRORS) as error:
            raise ModelError(f"{key}={adapter!r}: cannot be had from the hub: {error}") from error
        folder = Path(files[0]).parent
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise _lacks(name, adapter, key)
    return folder


def _lacks(name: str, adapter: str, key: str) -> ModelError:
    return ModelError(
        f"{key}={adapter!r}: has no {name}. Give an adapter as peft's save_pretrained writes it, with "
        "safe_serialization; one of another form is merged by its own library, and given as model.path."
    )


def trained_on(folder: Path) -> str | None:
    """The model that an adapter says it was trained on. Raises ``ModelError`` for one that is no LoRA adapter."""
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        kind = settings["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / SETTINGS}: cannot be read as the settings of an adapter: {error!r}") from error
    if kind != "LORA":
        raise ModelError(
            f"{folder / SETTINGS}: is of peft's kind {kind}; only LORA can be merged into a model's weights."
        )
    base = settings.get("base_model_name_or_path")
    return base if isinstance(base, str) else None


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``model`` with the adapter in its weights, in their own type. The model that is given is changed itself.

    Raises:
        ModelError: the adapter does not fit the model, all of it, or is of another vocabulary than the model's.
    """
    import peft
    from peft.tuners.lora import LoraLayer

    height, tied = _height(model), _tied(model)
    try:
        with warnings.catch_warnings():  # what is missing is an error below; the rest is of peft's own old names
            warnings.simplefilter("ignore")
            device = str(next(model.parameters()).device)
            view = peft.PeftModel.from_pretrained(model, str(folder), torch_device=device)
            expected, possible = (  # peft adds an embedding or head that the adapter changes, as it was
                set(peft.get_peft_model_state_dict(view, save_embedding_layers=whole)) for whole in (False, True)
            )
        with safe_open(folder / WEIGHTS, "pt") as file:
            held = set(file.keys())
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter does not fit {type(model).__name__}: {error}") from error
    if expected - held or held - possible:
        lacks, odd = expected - held, sorted(expected - held or held - possible)
        told = f"lacks {len(odd)} weights of the model's layers" if lacks else f"has {len(odd)} weights without a place"
        raise ModelError(
            f"{folder / WEIGHTS}: {told}, such as {odd[0]}. It was trained on another model, or saved in parts."
        )
    base = cast(Any, view).get_base_model()
    if tied and any(isinstance(of(), LoraLayer) for of in (base.get_input_embeddings, base.get_output_embeddings)):
        raise ModelError(
            f"{folder}: the adapter has a LoRA of the embedding or of the head, but the model has one matrix for both "
            f"(tied), which merging would change for both. {UNTIED}"
        )
    merged = cast(PreTrainedModel, cast(Any, view).merge_and_unload())
    if (_height(merged), _tied(merged)) != (height, tied):
        raise ModelError(
            f"{folder}: the adapter replaces the embedding ({height:,} rows, {'tied' if tied else 'not tied'}) by "
            f"one of {_height(merged):,} rows, {'tied' if _tied(merged) else 'not tied'}. Merge it with peft "
            "(PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(FOLDER)), save the "
            "tokenizer beside it, and give that folder as model.path. Adapters with ensure_weight_tying stay tied."
        )
    return merged


def _height(model: PreTrainedModel) -> int:
    return cast(Any, model.get_input_embeddings()).weight.shape[0]


def _tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and cast(Any, head).weight is cast(Any, model.get_input_embeddings()).weight
