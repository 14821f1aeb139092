"""Stage ``model``: where the original model comes from.

The ``model`` artifact holds ``model.json`` and, when ``path`` is ``"."``, the weights and the tokenizer themselves. A
step ``adapted`` is one too: the same weights, with an adapter.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kldistill.model import beginning, hub
from kldistill.model.config import AdapterConfig
from kldistill.model.load import (
    in_artifacts,
    load_original,
    load_original_config,
    load_original_tokenizer,
    old_size,
    read_facts,
    where_of,
)
from kldistill.runtime.components import facts_of, find, plain
from kldistill.runtime.devices import device_of
from kldistill.runtime.errors import ModelError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job


def build(cfg: Any, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Make the ``model`` artifact: call the function that ``cfg._target_`` names and write ``model.json``.

    ``cfg`` is one of the model schemas of ``kldistill.model.config``, or the same as a mapping.
    Raises ``ModelError`` when the model cannot be had or cannot be extended.
    """
    node = plain(cfg)
    name = node.pop("name", None)
    license_name = node.pop("license", None)
    made = find(node, "model", "model")(out, say=job.say)
    facts: dict[str, object] = {
        "revision": None,
        "trust_remote_code": False,
        "dtype": "float32",
        "local_files_only": False,
        **made,
    }
    facts["name"] = name or made.get("name") or Path(str(made["path"])).name
    facts["license"] = license_name or made.get("license")
    measured = facts.get("first_token") == beginning.BEST
    if measured:
        facts["first_token"] = None
    write_facts(out, facts)
    tokenizer, config = load_original_tokenizer(out), load_original_config(out)
    if beginning.own(tokenizer) is None:
        special = sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        told = f"say which one with model.first_token ({', '.join(special)})" if special else "it has no special token"
        raise ModelError(
            f"{facts['name']}: every text begins with a special token, and this tokenizer names neither a BOS nor an "
            f"EOS: {told}, or set eos_token in the model's folder (tokenizer_config.json)."
        )
    facts["vocabulary"] = old_size(tokenizer)
    figures = {
        "model/old_size": old_size(tokenizer),
        "model/embedding_height": config.get_text_config().vocab_size,
        "model/hidden_size": config.get_text_config().hidden_size,
        "model/tied": int(bool(config.get_text_config().tie_word_embeddings)),
    }
    beyond = figures["model/old_size"] - figures["model/embedding_height"]
    if beyond > 0:
        # Gemma 3's small models have the tokenizer of the large ones, with a token for images that they do not know.
        special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        if not set(range(figures["model/embedding_height"], figures["model/old_size"])) <= special:
            raise ModelError(
                f"{facts['name']}: the tokenizer has ids up to {figures['model/old_size'] - 1}, but the embedding only "
                f"{figures['model/embedding_height']} rows. Resize the model's embedding to its tokenizer first."
            )
        facts["rows_added"] = beyond
        job.say(f"{beyond} special tokens have no row in this model's embedding; they get that of padding, unused.")
    write_facts(out, facts)
    if facts.get("adapters"):
        load_original(out)  # one that does not fit is told here, not when the first stage reads the model
    if measured and len(tokens := beginning.candidates(tokenizer)) > 1:
        chosen, why = beginning.best(load_original(out, device_of(job.runtime)), tokenizer, tokens)
        facts["first_token"] = None if chosen == tokens[0] else chosen
        job.say(why)
        write_facts(out, facts)
    write_summary(out, figures)


def adapted(cfg: AdapterConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Make a ``model`` artifact of the original model with one more adapter; its weights stay where they are.

    Args:
        inputs: ``model``.
        out: gets ``model.json``.

    Raises:
        ModelError: there is no such adapter, or it does not fit the model.
    """
    facts = read_facts(inputs["model"])
    path = where_of(inputs["model"], facts)
    if in_artifacts(facts):
        facts["path"] = os.path.relpath(path, out)
        path = facts["base_model"] or facts["name"]
    found = hub.adapter_facts(cfg.adapter, path, cfg.local_files_only, job.say, cfg.key)
    write_facts(out, {**facts, "adapters": [*facts.get("adapters", []), found]})
    load_original(out)


def adapter_identity(cfg: AdapterConfig) -> dict[str, object]:
    """What the adapter is right now, for the fingerprint of ``adapted``."""
    return {"adapter": hub.adapter_identity(cfg.adapter, cfg.local_files_only, cfg.key)}


def write_facts(out: Path, facts: Mapping[str, object]) -> None:
    """Write ``model.json``."""
    (out / "model.json").write_text(json.dumps(facts, indent=2) + "\n")


def identity(cfg: Any) -> dict[str, object]:
    """What the model is right now, cheaply, for its fingerprint: a name alone says nothing about changed content.

    Every maker of a model is marked with the function that tells it (``@component("model", identity)``), which takes
    the maker's own settings.
    """
    node = {key: value for key, value in plain(cfg).items() if key not in ("name", "license")}
    maker = find(node, "model", "model")
    return facts_of(maker)(**maker.keywords)
