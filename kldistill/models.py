"""Where the original model comes from, and how to read it again.

The ``model`` artifact holds ``model.json`` and, when ``path`` is ``"."``, the weights and the tokenizer themselves.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import hydra.utils
import torch
from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kldistill.errors import ConfigError, ModelError
from kldistill.job import Job

SMALL_FILE = 2**20  # bytes; smaller files enter an identity by content, larger ones by size and time


def build(cfg: Any, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Make the ``model`` artifact: call the function that ``cfg._target_`` names and write ``model.json``.

    ``cfg`` is one of the model schemas of ``kldistill.config``, or the same as a mapping.
    Raises ``ModelError`` when the model cannot be had or cannot be extended.
    """
    node = plain(cfg)
    maker = component(str(node.pop("_target_", "")), "model")
    name = node.pop("name", None)
    license_name = node.pop("license", None)
    made = maker(out, say=job.say, **node)
    facts: dict[str, object] = {
        "revision": None,
        "trust_remote_code": False,
        "dtype": "float32",
        "local_files_only": False,
        **made,
    }
    facts["name"] = name or made.get("name") or Path(str(made["path"])).name
    facts["license"] = license_name or made.get("license")
    (out / "model.json").write_text(json.dumps(facts, indent=2) + "\n")
    tokenizer, config = load_tokenizer(out), load_config(out)
    figures = {
        "model/old_size": 1 + max(tokenizer.get_vocab().values()),
        "model/embedding_height": config.get_text_config().vocab_size,
        "model/hidden_size": config.get_text_config().hidden_size,
        "model/tied": int(bool(config.get_text_config().tie_word_embeddings)),
    }
    if figures["model/old_size"] > figures["model/embedding_height"]:
        raise ModelError(
            f"{facts['name']}: the tokenizer has ids up to {figures['model/old_size'] - 1}, but the embedding only "
            f"{figures['model/embedding_height']} rows. Resize the model's embedding to its tokenizer first."
        )
    (out / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")


def identity(cfg: Any) -> dict[str, object]:
    """What the model is right now, cheaply, for its fingerprint: a name alone says nothing about changed content.

    Local folders: every file's size and time, small files' content. Hub: the commit, if the network or the cache
    knows it. Others: what their own module says.
    """
    node = plain(cfg)
    target = str(node.get("_target_", ""))
    if target == f"{__name__}.hf":
        folder = Path(node["path"]).expanduser()
        if folder.is_dir():
            return {"files": describe(folder)}
        return {"commit": commit_of(node["path"], node.get("revision"), bool(node.get("local_files_only")))}
    own = f"{target.rpartition('.')[0]}.identity"
    return component(own, "model")() if _exists(own) else {}


def hf(
    out: Path,
    *,
    path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    local_files_only: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """A causal language model in a local folder or on the hub. Nothing is copied: ``model.json`` points to it.

    A hub id is pinned to the commit that ``revision`` means today, so that later stages all see the same weights.
    Raises ``ModelError`` when there is no such model, or when it is no decoder-only language model.
    """
    folder = Path(path).expanduser()
    local = folder.is_dir()
    if not local and (folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1):
        raise ModelError(f"model.path={path!r}: there is no such folder. Give a folder with config.json, or a hub id.")
    where = str(folder.resolve()) if local else path
    if local and not (folder / "config.json").is_file():
        raise ModelError(f"model.path={path!r}: the folder has no config.json, so it is no model that can be read.")
    pinned = None if local else commit_of(path, revision, local_files_only) or revision
    facts: dict[str, object] = {
        "path": where,
        "revision": pinned,
        "trust_remote_code": trust_remote_code,
        "dtype": dtype,
        "local_files_only": local_files_only,
        "license": license_of(folder if local else path),
        "base_model": None if local else path,
    }
    read_config(facts, where)
    return facts


def load(folder: Path, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The frozen original model of a ``model`` artifact: eval mode, no parameter asks for a gradient.

    Attention implementation and everything else are transformers' own defaults, so that an exported model gives the
    same logits when somebody loads it plainly. Raises ``ModelError``.
    """
    facts = read_facts(folder)
    where = str(folder) if facts["path"] == "." else facts["path"]
    load_config(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=getattr(torch, facts.get("dtype", "float32")), **_source(facts)
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: the model cannot be read: {error}") from error
    return cast(PreTrainedModel, nn.Module.to(model, device)).eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The original tokenizer of a ``model`` artifact. Raises ``ModelError`` for one without a ``tokenizer.json``."""
    facts = read_facts(folder)
    where = str(folder) if facts["path"] == "." else facts["path"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **_source(facts))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{where}: the tokenizer cannot be read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{where}: its tokenizer is a slow one ({type(tokenizer).__name__}); kldistill extends tokenizer.json. "
            "Convert it (transformers.convert_slow_tokenizer) and save it beside the model."
        )
    return tokenizer


def load_config(folder: Path) -> PretrainedConfig:
    """The original model's config. Raises ``ModelError`` when it is no decoder-only language model."""
    facts = read_facts(folder)
    return read_config(facts, str(folder) if facts["path"] == "." else facts["path"])


def read_config(facts: Mapping[str, Any], where: str) -> PretrainedConfig:
    """The config at ``where``, checked to be one that kldistill can extend."""
    try:
        config = AutoConfig.from_pretrained(where, **_source(facts))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{where}: no model config can be read there: {error}") from error
    if config.is_encoder_decoder:
        raise ModelError(f"{where}: {config.model_type} is an encoder-decoder model; kldistill extends causal ones.")
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping and "AutoModelForCausalLM" not in getattr(config, "auto_map", {}):
        raise ModelError(f"{where}: transformers knows no causal language model of type {config.model_type!r}.")
    return config


def read_facts(folder: Path) -> dict[str, Any]:
    """``model.json`` of a ``model`` artifact."""
    file = folder / "model.json"
    if not file.is_file():
        raise ModelError(f"{file}: missing; this folder is no model artifact.")
    return json.loads(file.read_text())


def component(target: str, key: str) -> Callable[..., Any]:
    """The function of this package that ``target`` names.

    The function must be *defined* in kldistill: a dotted path through one of its imports is refused too.
    Raises ``ConfigError`` naming ``key``.
    """
    if not target.startswith("kldistill."):
        raise ConfigError(f"{key}._target_={target!r}: only functions of kldistill may be named here.")
    try:
        found = hydra.utils.get_method(target)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target!r}: there is no such function.") from error
    if not str(getattr(found, "__module__", "")).startswith("kldistill."):
        raise ConfigError(f"{key}._target_={target!r}: only functions of kldistill may be named here.")
    return found


def plain(cfg: Any) -> dict[str, Any]:
    """A config node (dataclass, DictConfig or mapping) as a plain dict."""
    if dataclasses.is_dataclass(cfg):
        return dataclasses.asdict(cast(Any, cfg))
    return {str(key): value for key, value in cfg.items()}


def describe(folder: Path) -> dict[str, list[object]]:
    """Every file of a model folder: its size in bytes and its digest (small files) or time (large ones)."""
    found: dict[str, list[object]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts):
        stat = file.stat()
        small = stat.st_size < SMALL_FILE
        mark = hashlib.sha256(file.read_bytes()).hexdigest() if small else stat.st_mtime_ns
        found[str(file.relative_to(folder))] = [stat.st_size, mark]
    return found


def commit_of(path: str, revision: str | None, local_files_only: bool) -> str | None:
    """The commit that a hub id means now: asked from the hub, else from the local cache, else None."""
    import httpx
    from huggingface_hub import HfApi

    if not local_files_only:
        try:
            return HfApi().model_info(path, revision=revision, timeout=10).sha
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.HTTPError, OSError):
            pass  # offline, or no such model: the cache may still know it, and reading the config will tell otherwise
    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(cached).parent.name if isinstance(cached, str) else None


def license_of(model: Path | str) -> str | None:
    """The licence that the model's own card names, if there is a card at hand."""
    card = model / "README.md" if isinstance(model, Path) else try_to_load_from_cache(model, "README.md")
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except ValueError:
        return None  # a card whose header is not YAML says nothing about a licence


def _source(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``from_pretrained`` that ``model.json`` fixes."""
    return {
        "revision": facts["revision"] or "main",
        "trust_remote_code": facts["trust_remote_code"],
        "local_files_only": facts.get("local_files_only", False) or facts["path"] == ".",
    }


def _exists(target: str) -> bool:
    """Whether a dotted path names something in an importable module."""
    module, _, name = target.rpartition(".")
    if not module or find_spec(module) is None:
        return False
    return hasattr(__import__(module, fromlist=[name]), name)
