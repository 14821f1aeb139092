"""Names of the same settings in transformers 4, written beside those of version 5, which moved and renamed them.

Version 4 ignores a key that it does not know and takes its own default instead, so a folder without the older names is
read there without complaint and computes something else: rotary positions of base 10,000 for every model, for instance.
Version 5 reads both.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from kldistill.runtime.errors import ModelError

# What of ``rope_parameters`` version 4 keeps outside ``rope_scaling``.
_APART = ("rope_theta", "partial_rotary_factor")
# Tensors that version 5 renamed, by model type; it reads the older names too.
_TENSORS = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}


def add(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Write the older names into an exported folder: its configs, and the weights of types whose tensors were renamed.

    Args:
        trust_remote_code: run the model's own code to read its config again, as the base model's was.

    Raises:
        ModelError: with them, this version of transformers reads other rotary positions than without.
    """
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    before = _rotary(folder, trust_remote_code)
    for part in (settings, settings.get("text_config")):
        if isinstance(part, dict):
            part.update({name: value for name, value in older_names(part).items() if name not in part})
    _write(path, settings)
    if _rotary(folder, trust_remote_code) != before:
        raise ModelError(
            f"{path}: with rope_theta and rope_scaling, which transformers 4 reads, transformers 5 no longer reads the "
            f"model's rotary positions ({before}): models of type {settings.get('model_type')!r} cannot be exported."
        )
    rename(folder, _TENSORS.get(settings.get("model_type"), {}))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":  # the generic one; version 4 does not know the new name
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):  # version 4 expects a mapping under this name, and fails
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    _write(path, settings)


def rename(folder: Path, names: Mapping[str, str]) -> None:
    """Give tensors of ``model*.safetensors`` other names; only files that hold one of them are written again."""
    for file in sorted(folder.glob("model*.safetensors")) if names else []:
        with safe_open(file, "pt") as opened:
            concerned = bool(names.keys() & set(opened.keys()))
        if concerned:
            tensors = {names.get(name, name): tensor for name, tensor in load_file(file).items()}
            save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if names and index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["weight_map"] = {names.get(name, name): file for name, file in listed["weight_map"].items()}
        _write(index, listed)


def older_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The keys of transformers 4 that say what ``dtype`` and ``rope_parameters`` of a config say.

    Models with two kinds of layers (Gemma 3, OLMo 3) nest ``rope_parameters`` by the kind; version 4 has plain keys for
    the global ones and ``rope_local_base_freq`` for the others.
    """
    older: dict[str, Any] = {}
    if settings.get("dtype"):
        older["torch_dtype"] = settings["dtype"]
    rope = settings.get("rope_parameters") or {}
    local = rope.get("sliding_attention")
    if local is not None:
        older["rope_local_base_freq"] = local["rope_theta"]
    rope = rope.get("full_attention", rope)
    if "rope_theta" not in rope:
        return older
    older["rope_theta"] = rope["rope_theta"]
    scaling = {name: value for name, value in rope.items() if name not in _APART}
    older["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    share = rope.get("partial_rotary_factor")
    if share is not None:
        older["partial_rotary_factor"] = share
    if settings.get("model_type") == "gpt_neox":  # has names of its own
        older["rotary_emb_base"] = older.pop("rope_theta")
        older["rotary_pct"] = older.pop("partial_rotary_factor", 1.0)
    return older


def _rotary(folder: Path, trust_remote_code: bool) -> Any:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    return getattr(config.get_text_config(), "rope_parameters", None)


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
