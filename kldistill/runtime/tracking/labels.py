"""How a run is named, tagged and flattened for a dashboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; lists stay."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def labels(resolved: Mapping[str, Any]) -> dict[str, str]:
    """One word each for ``model``, ``init``, ``loss`` and ``finetune``: what panels group by, and the run's tags."""
    words: dict[str, str] = {}
    for group in ("model", "init", "loss", "finetune"):
        node = resolved.get(group)
        if not isinstance(node, Mapping):
            continue
        if group == "init" and {"input", "output"} <= set(node):
            sides = [str(node[side]["_target_"]).rpartition(".")[2] for side in ("input", "output")]
            words[group] = "_".join(dict.fromkeys(sides))
        else:
            value = node.get("name") or node.get("method") or str(node.get("path") or "").rstrip("/").rpartition("/")[2]
            if value:
                words[group] = str(value)
    return words


def run_name(folder: Path, resolved: Mapping[str, Any]) -> str:
    """What a dashboard calls a run: its init, loss and seed, and what else its folder's name tells of it."""
    chosen = labels(resolved)
    first = [chosen[key] for key in ("init", "loss") if key in chosen]
    first += [f"seed {resolved['seed']}"] if "seed" in resolved else []
    told = ("init=", "loss=", "seed=")
    rest = [part for part in folder.name.split(",") if part != "default" and not part.startswith(told)]
    return " ".join([*first, *rest]) or folder.name


def run_id(path: Path) -> str:
    """The run's id. It is drawn once and kept in ``path``, so that equal paths on two machines are two runs."""
    identifier = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if not identifier:
        identifier = uuid4().hex[:16]
        path.write_text(identifier, encoding="utf-8")
    return identifier
