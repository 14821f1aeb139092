"""Every key of the configuration, from the schemas' own docstrings: docs/config.md, and ``kldistill --help``."""

import inspect
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from kldistill.corpus.config import HfDatasetCorpus, LocalFilesCorpus, PythonPackageCorpus
from kldistill.model.config import Gemma3Config, GgufConfig, HfModelConfig, SmolLM2Config, TinyModelConfig
from kldistill.pipeline import compose
from kldistill.runtime.errors import ConfigError
from kldistill.training.config import DistillConfig
from kldistill.training.finetune_config import FinetuneConfig
from kldistill.training.loss_config import LossConfig

HEAD = """kldistill teaches a pre-trained LLM new domain words: it extends the tokenizer, initialises the new embedding
rows, distils the original model into the extended one across both tokenizations, and measures what came of it.

  kldistill GROUP=NAME picks a preset, GROUP.KEY=VALUE changes one value.
"""
EXAMPLES = """
Examples
  kldistill experiment=quickstart                      the whole pipeline on the embedded model, from ten minutes on
  kldistill experiment=quickstart loss=ce              the cross-entropy baseline on the same artifacts
  kldistill experiment=quickstart corpus=local_files corpus.path=FOLDER
  kldistill model=hf model.path=Qwen/Qwen2.5-0.5B corpus=local_files corpus.path=FOLDER
  kldistill 'stages=[tokens]' tokens.boundary=dotted   only extend the tokenizer, and read the preflight report
  kldistill -m loss=kl,ce seed=0,1,2                   a sweep

More
  kldistill --help GROUP       every key of one group: kldistill --help distill
  kldistill --plan ...         what a command will need (memory, disk, time), without running it
  kldistill ... --cfg job      the whole configuration that a command means, without running it
  kldistill --config-dir DIR   presets of your own, in the same folders (docs/config.md)
  kldistill --hydra-help       Hydra's own options (https://hydra.cc)
  docs/config.md               every key of every group
"""
_UNITS = (
    (r"bytes$", "bytes"),
    (r"_seconds$", "seconds"),
    (r"^(steps|checkpoint_every|validate_every)$", "steps"),
    (r"^(validation|test|warmup)$", "share"),
    (r"^(n_new|vocab_size)$", "tokens"),
    (r"^max_line_length$", "characters"),
)


class Entry(NamedTuple):
    """One key as it is told."""

    key: str
    type: str
    default: str
    unit: str
    choices: tuple[str, ...]
    meaning: str


def groups() -> list[str]:
    """Names of all groups, in the order of the configuration; those of single keys are in the group ``general``."""
    own = [item.name for item in fields(compose.Config) if item.name not in _plain_keys()]
    return ["general", *own]


def entries(group: str) -> list[Entry]:
    """Every key of a group. Raises ``ConfigError`` for a name that is no group."""
    if group not in groups():
        raise ConfigError(f"{group!r}: there is no such group. Groups are {', '.join([*groups(), 'experiment'])}.")
    known: dict[str, Entry] = {}
    for entry in _entries(group):
        known.setdefault(entry.key, entry)
    return list(known.values())


def presets(group: str) -> dict[str, str]:
    """The presets of a group, the user's own too, each with the first sentence of the comment above it."""
    comments = {}
    for folder in [compose.conf_folder(), *compose.own_folders()]:
        for path in sorted((folder / group).glob("*.yaml")):
            comments[path.stem] = _comment(path)
    return comments


def overview() -> str:
    """``kldistill --help``: the groups, their choices, examples, and where the rest is."""
    chosen = {next(iter(item)): item[next(iter(item))] for item in _defaults_list() if isinstance(item, dict)}
    lines = [HEAD, "Choices (* is taken if you say nothing)"]
    for group in [*(name for name in groups() if presets(name)), "experiment", "hydra/launcher"]:
        default = "basic" if group == "hydra/launcher" else chosen.get(group)
        names = [f"{name}{'*' if name == default else ''}" for name in presets(group)]
        lines.append(f"  {group + '=':<16}{', '.join(names)}")
    single = ", ".join(entry.key for entry in entries("general"))
    lines += ["", f"Keys without a group: {single}; and the group runtime, which says how to run."]
    return "\n".join(lines) + "\n" + EXAMPLES


def told(group: str) -> str:
    """``kldistill --help GROUP``: its presets and its keys, for a terminal."""
    if group in ("experiment", "hydra/launcher"):
        return "\n".join(f"  {group}={name:<28}{text}" for name, text in presets(group).items()) + "\n"
    lines = [f"  {group}={name:<28}{text}" for name, text in presets(group).items()]
    for entry in entries(group):
        about = ", ".join(part for part in (entry.type, entry.unit, " | ".join(entry.choices)) if part)
        lines += ["", f"  {entry.key}={entry.default}", f"      {entry.meaning} ({about})"]
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """docs/config.md, but for its introduction."""
    parts = []
    for group in [*groups(), "experiment", "hydra/launcher"]:
        parts.append(f"## {group}\n")
        if choices := presets(group):
            parts += ["| preset | |", "|---|---|"]
            parts += [f"| `{group}={name}` | {_cell(text)} |" for name, text in choices.items()]
            parts.append("")
        if group in groups():
            parts += ["| key | type | default | unit | choices | meaning |", "|---|---|---|---|---|---|"]
            for entry in entries(group):
                choices = ", ".join(f"`{name}`" for name in entry.choices)
                cells = [f"`{entry.key}`", entry.type, f"`{entry.default}`", entry.unit, choices, entry.meaning]
                parts.append("| " + " | ".join(map(_cell, cells)) + " |")
            parts.append("")
    return "\n".join(parts)


def _entries(group: str) -> Iterator[Entry]:
    if group == "general":
        yield from _of_schema(compose.Config, "", only=_plain_keys())
        return
    schemas: dict[str, Sequence[type]] = {
        "model": (SmolLM2Config, Gemma3Config, GgufConfig, HfModelConfig, TinyModelConfig),
        "corpus": (PythonPackageCorpus, LocalFilesCorpus, HfDatasetCorpus),
    }
    hints = get_type_hints(compose.Config)
    for schema in schemas.get(group, [hints[group]]):
        several = len(schemas.get(group, [])) > 1
        yield from _of_schema(schema, group, preset=_preset_of(schema) if several else None)
    if group == "eval":
        for name, node in _raw()["eval"].items():
            if isinstance(node, dict) and "_target_" in node:
                module, _, suite = node["_target_"].rpartition(".")
                yield from _of_schema(getattr(__import__(module, fromlist=[suite]), suite), f"eval.{name}")


def _of_schema(schema: type, prefix: str, only: Sequence[str] = (), preset: str | None = None) -> Iterator[Entry]:
    hints, meanings = get_type_hints(schema), _meanings(schema)
    for item in fields(schema):
        if item.name == "_target_" or (only and item.name not in only):
            continue
        key = f"{prefix}.{item.name}" if prefix else item.name
        hint = hints[item.name]
        inner = get_args(hint)[1] if get_origin(hint) is dict else hint
        optional = next((part for part in get_args(hint) if is_dataclass(part)), None) if inner is hint else None
        # A loss inside another group is the group loss once more.
        if is_dataclass(inner) and (inner is not LossConfig or prefix == "loss"):
            yield from _of_schema(cast(type, inner), f"{key}.NAME" if get_origin(hint) is dict else key)
            continue
        meaning = meanings.get(item.name, "")
        # A key of one preset alone says so; those of the base class belong to all of them.
        if preset is not None and item.name not in _shared(schema):
            meaning += f" (`{prefix}={preset}`)"
        unit = next((unit for pattern, unit in _UNITS if re.search(pattern, item.name)), "")
        yield Entry(key, _type(hint), _default(item, key), unit, item.metadata.get("choices", ()), meaning)
        if optional is not None:
            yield from _of_schema(cast(type, optional), key)


def presets_with(key: str) -> list[str]:
    """The choices whose presets have a key that those of the group do not share: ``model.path`` is of ``model=hf``."""
    group, _, name = key.partition(".")
    schemas = [schema for known, schema in compose.SCHEMAS.items() if known.partition("_")[0] == group]
    having = [s for s in schemas if name.partition(".")[0] in {item.name for item in fields(s)} - _shared(s)]
    return sorted(f"{group}={_preset_of(schema)}" for schema in having)


def _shared(schema: type) -> set[str]:
    return {item.name for base in schema.__mro__[1:] if is_dataclass(base) for item in fields(base)} | {"name"}


def _preset_of(schema: type) -> str:
    names = {name: cls for name, cls in compose.SCHEMAS.items() if cls is schema}
    (name,) = names
    return {"model_smollm2": "smollm2_135m", "model_gemma3": "gemma3_270m"}.get(name, name.partition("_")[2])


@cache
def _meanings(schema: type) -> dict[str, str]:
    """What the docstrings of a schema and of its bases say of each key. Fine-tuning shares keys with distillation."""
    meanings: dict[str, str] = {}
    bases = [FinetuneConfig, DistillConfig] if schema is FinetuneConfig else schema.__mro__
    for base in reversed([base for base in bases if is_dataclass(base)]):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        # An entry begins at the margin of its section; the lines that continue it stand further in.
        section = re.match(r"((?:    .*\n?|\n)*)", text)
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section[1] if section else "", re.MULTILINE):
            meanings[name] = " ".join(meaning.split())
    return meanings


def _type(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in get_args(hint))
    if get_origin(hint) is list:
        return f"list of {_type(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(hint, "mapping" if is_dataclass(hint) else "any")


def _default(item: Field[Any], key: str) -> str:
    node: Any = _raw()
    for part in key.split("."):
        node = node.get(part, MISSING) if isinstance(node, dict) else MISSING
    if node is MISSING:
        node = item.default if item.default_factory is MISSING else item.default_factory()
    if node is MISSING or node == "???":
        return "(needed)"
    if isinstance(node, dict):
        return "{...}" if node else "{}"
    return yaml.safe_dump(node, default_flow_style=True, width=1000).removesuffix("...\n").strip()


@cache
def _raw() -> dict[str, Any]:
    """The default configuration, interpolations as they are written."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
            container: Any = OmegaConf.to_container(hydra_compose("config", overrides=_searchpath()))
    finally:
        GlobalHydra.instance().clear()
        if running is not None:
            GlobalHydra.instance().initialize(running)
    return container


def _searchpath() -> list[str]:
    return [f"hydra.searchpath=['file://{folder}']" for folder in compose.own_folders()]


def _plain_keys() -> list[str]:
    return ["seed", "outputs", "stages", "force", "objective"]


def _defaults_list() -> list[Any]:
    return yaml.safe_load((compose.conf_folder() / "config.yaml").read_text())["defaults"]


def _comment(path: Path) -> str:
    """The comment at the head of a YAML file, up to the end of its first sentence."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return re.split(r"(?<=[.)])\s|:\s", " ".join(lines), maxsplit=1)[0].rstrip(".:")


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("``", "`")
