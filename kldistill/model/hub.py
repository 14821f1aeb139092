"""A model in a local folder or on the Hugging Face hub, and what identifies it."""

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from kldistill.model import adapter as adapters
from kldistill.model import beginning
from kldistill.model.load import read_config
from kldistill.runtime.components import component
from kldistill.runtime.errors import ModelError
from kldistill.runtime.hub_errors import HUB_ERRORS, take_the_cache
from kldistill.runtime.own import own_among

SMALL_FILE = 2**20  # bytes; smaller files enter an identity by content, larger ones by size and time
HUB = "https://huggingface.co/"


def identity(
    *,
    path: str,
    revision: str | None = None,
    local_files_only: bool = False,
    first_token: str | None = None,
    adapter: str | None = None,
    **others: object,
) -> dict[str, object]:
    """A local folder: every file's size and time, small files' content. On the hub: the commit, if the network or the
    cache knows it. The same of an adapter.
    """
    folder = local_folder(path)
    facts = beginning.identity(first_token)
    if adapter is not None:
        facts["adapter"] = adapter_identity(adapter, local_files_only)
    if folder is None:
        return facts | {"commit": commit_of(path, revision, local_files_only)}
    return facts | {"files": describe(folder)}


def local_folder(path: str) -> Path | None:
    """The model folder that ``model.path`` means; None where it is a hub id. Raises ``ModelError``."""
    try:
        folder = Path(path).expanduser()
        local = folder.is_dir()
    except (RuntimeError, OSError, ValueError):  # a user's home that is not known; a name that is too long
        raise ModelError(f"model.path={path!r}: is no path. Give a folder with config.json, or a hub id.") from None
    if path.startswith(HUB):
        name = "/".join(PurePosixPath(path.removeprefix(HUB)).parts[:2])
        raise ModelError(
            f"model.path={path!r}: is a page of the hub; the model's id is what it ends in: model.path={name}"
        )
    if not local and (not path or folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1):
        raise ModelError(f"model.path={path!r}: there is no such folder. Give a folder with config.json, or a hub id.")
    if local and not (folder / "config.json").is_file():
        if (folder / adapters.SETTINGS).is_file():
            base = adapters.trained_on(folder) or "BASE"
            raise ModelError(
                f"model.path={path!r}: the folder holds an adapter alone. Give its base beside it: model.path={base} "
                f"model.adapter={path}"
            )
        raise ModelError(f"model.path={path!r}: the folder has no config.json, so it is no model that can be read.")
    if local and (folder / adapters.SETTINGS).is_file():
        raise ModelError(f"model.path={path!r}: {adapters.BESIDE}")
    return folder if local else None


@component("model", identity)
def hf(
    out: Path,
    *,
    path: str,
    adapter: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    local_files_only: bool = False,
    first_token: str | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """A causal language model in a local folder or on the hub. Nothing is copied: ``model.json`` points to it.

    A hub id is pinned to the commit that ``revision`` means today, so that later stages all see the same weights.
    Raises ``ModelError`` when there is no such model or adapter, or when it is no decoder-only language model.
    """
    folder = local_folder(path)
    where = path if folder is None else str(folder.resolve())
    pinned = None if folder is not None else commit_of(path, revision, local_files_only) or revision
    facts: dict[str, object] = {
        "path": where,
        "revision": pinned,
        "trust_remote_code": trust_remote_code,
        "dtype": dtype,
        "local_files_only": local_files_only,
        "license": license_of(path if folder is None else folder),
        "base_model": path if folder is None else None,
        "first_token": beginning.asked(first_token),
    }
    read_config(facts, where)
    if adapter is not None:
        facts["adapters"] = [adapter_facts(adapter, path, local_files_only, say)]
        facts["name"] = f"{Path(path).name} + {Path(adapter).name}"
    return facts


def adapter_facts(
    adapter: str,
    path: str,
    local_files_only: bool,
    say: Callable[[str], None] | None,
    key: str = "model.adapter",
) -> dict[str, str | None]:
    """What ``model.json`` holds of an adapter: where it is, and its commit on the hub (None for a folder).

    Args:
        path: of the model that it is merged into; another one than the adapter names is told.
        key: of the configuration, for what is said.

    Raises:
        ModelError: see ``kldistill.model.adapter``.
    """
    commit = _adapter_commit(adapter, local_files_only)
    folder = adapters.local_adapter(adapter, commit, local_files_only, key)
    base = adapters.trained_on(folder)
    if say is not None and base is not None and Path(base).name != Path(path).name:
        say(f"{key}={adapter}: says that it was trained on {base}; it is merged into {path}.")
    return {"path": adapter if commit is not None else str(folder.resolve()), "revision": commit}


def adapter_identity(adapter: str, local_files_only: bool = False, key: str = "model.adapter") -> object:
    """An adapter's commit on the hub, or the files of its folder as ``describe`` tells them. Raises ``ModelError``."""
    commit = _adapter_commit(adapter, local_files_only)
    return commit or describe(adapters.local_adapter(adapter, None, local_files_only, key))


def _adapter_commit(adapter: str, local_files_only: bool) -> str | None:
    if Path(adapter).expanduser().is_dir():
        return None
    return commit_of(adapter, None, local_files_only, adapters.SETTINGS)


def describe(folder: Path) -> dict[str, list[object]]:
    """Every file of a model folder: its size in bytes and its digest (small files) or time (large ones). What kldistill
    itself writes below it (``model.path=.``) is no part of the model.
    """
    files: dict[str, list[object]] = {}
    every = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    for file in sorted(set(every).difference(own_among(every, folder))):
        stat = file.stat()
        small = stat.st_size < SMALL_FILE
        mark = hashlib.sha256(file.read_bytes()).hexdigest() if small else stat.st_mtime_ns
        files[str(file.relative_to(folder))] = [stat.st_size, mark]
    return files


def commit_of(path: str, revision: str | None, local_files_only: bool, file: str = "config.json") -> str | None:
    """The commit that a hub id means now: asked from the hub, else from the local cache (which has ``file`` of it),
    else None.

    Where the hub does not answer and the cache knows the model, the hub is asked no more.
    """
    from huggingface_hub import HfApi

    silent = None
    if not local_files_only:
        try:
            return HfApi().model_info(path, revision=revision, timeout=10).sha
        except (HFValidationError, *HUB_ERRORS) as error:
            silent = error  # offline, or no such model: the cache may know it, and reading the config tells otherwise
    try:
        cached = try_to_load_from_cache(path, file, revision=revision)
    except HFValidationError:
        return None
    if not isinstance(cached, str):
        return None
    if silent is not None:
        take_the_cache(path, silent)
    return Path(cached).parent.name


def license_of(model: Path | str) -> str | None:
    """The licence that the model's own card names, if there is a card at hand."""
    card = model / "README.md" if isinstance(model, Path) else try_to_load_from_cache(model, "README.md")
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except ValueError:
        return None  # a card whose header is not YAML says nothing about a licence
