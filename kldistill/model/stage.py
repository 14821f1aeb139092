"""Stage ``model``: where the original model comes from.

The ``model`` artifact holds ``model.json`` and, when ``path`` is ``"."``, the weights and the tokenizer themselves.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kldistill.model.hub import commit_of, describe
from kldistill.model.load import load_original_config, load_original_tokenizer
from kldistill.runtime.components import component, plain
from kldistill.runtime.errors import ModelError
from kldistill.runtime.job import Job


def build(cfg: Any, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Make the ``model`` artifact: call the function that ``cfg._target_`` names and write ``model.json``.

    ``cfg`` is one of the model schemas of ``kldistill.model.config``, or the same as a mapping.
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
    tokenizer, config = load_original_tokenizer(out), load_original_config(out)
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
    if target == "kldistill.model.hub.hf":
        folder = Path(node["path"]).expanduser()
        if folder.is_dir():
            return {"files": describe(folder)}
        return {"commit": commit_of(node["path"], node.get("revision"), bool(node.get("local_files_only")))}
    own = f"{target.rpartition('.')[0]}.identity"
    return component(own, "model")() if _exists(own) else {}


def _exists(target: str) -> bool:
    """Whether a dotted path names something in an importable module."""
    module, _, name = target.rpartition(".")
    if not module or find_spec(module) is None:
        return False
    return hasattr(__import__(module, fromlist=[name]), name)
