"""Upload of an exported folder to the Hugging Face hub, as whoever is logged in there. No token passes through here."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from kldistill.export.card import FOLDER
from kldistill.export.config import UploadConfig
from kldistill.runtime.errors import ConfigError, ModelError
from kldistill.runtime.hub_errors import HUB_ERRORS
from kldistill.runtime.job import Job

NOT_UPLOADED = ["artifact.json", ".*"]  # kldistill's own manifest, and what a desktop leaves behind
# Weights of an earlier model in the repository, which transformers would read in place of the new ones, or beside them.
REPLACED = ["model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"]
TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def build(cfg: UploadConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Upload the ``export`` artifact, and write into ``upload.json`` which repository and commit it went to.

    A step of its own: where the upload fails, the exported folder is there all the same.

    Raises:
        ConfigError, ModelError: as ``push``.
    """
    commit = push(inputs["export"], cfg.repo, cfg.private, job.say)
    content = {"repo": cfg.repo, "commit": commit}
    (out / "upload.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check(repo: str, private: bool) -> None:
    """Refuse an upload that cannot succeed, before anything is trained. Asks the hub who is logged in.

    Raises:
        ConfigError: offline, nobody is logged in, the hub does not answer, who is logged in may not write there, or
            ``private`` is asked for and the repository is there for all to read.
    """
    key = f"export.push_to_hub={repo}"
    if is_offline_mode():
        raise ConfigError(f"{key}: the hub cannot be reached with HF_HUB_OFFLINE set. Unset it, or leave the key null.")
    if get_token() is None:
        raise ConfigError(f"{key}: nobody is logged in to the hub. Run `hf auth login`, or leave the key null.")
    api = HfApi()
    try:
        if obstacle := _obstacle(api.whoami(), repo.partition("/")[0]):
            raise ConfigError(f"{key}: {obstacle}")
        public = api.repo_info(repo).private is False
    except RepositoryNotFoundError:
        public = False  # the upload creates it
    except HUB_ERRORS as error:
        raise ConfigError(f"{key}: the hub refuses or does not answer: {_short(error)}") from error
    if private and public:
        raise ConfigError(f"{key}: this repository is public. Use export.private=false, or another repository.")


def _obstacle(who: Mapping[str, Any], owner: str) -> str | None:
    """Why the one who is logged in may not write to repositories of ``owner``, with the way out; None if that may be.

    Args:
        who: the hub's answer to ``whoami``, of which only what is there counts.

    Source: https://huggingface.co/docs/hub/security-tokens (roles of tokens), .../organizations-security (of members).
    """
    organisations = {member["name"]: member.get("roleInOrg") for member in who.get("orgs") or []}
    if owner != who.get("name", owner) and owner not in organisations:
        names = ", ".join([str(who["name"]), *organisations])
        return f"who is logged in may write to repositories of {names}, not of {owner}. Name one of these."
    if organisations.get(owner) == "read":
        return (
            f"who is logged in may only read the repositories of {owner}. Ask for the right to write, or name another."
        )
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        return f"the token may only read. Make one that may write ({TOKENS_PAGE}), and `hf auth login` with it."
    return None


def push(folder: Path, repo: str, private: bool, say: Callable[[str], None]) -> str | None:
    """Create the repository if need be and upload the folder's files to it. Checks first, as ``check`` does.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the upload cannot succeed, as ``check`` says.
        ModelError: the upload fails half-way; says how to go on.
    """
    check(repo, private)
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        with TemporaryDirectory() as named:
            _name(folder, Path(named), repo)
            done = api.upload_folder(
                repo_id=repo,
                folder_path=named,
                commit_message="Extended vocabulary, made with kldistill",
                ignore_patterns=NOT_UPLOADED,
                delete_patterns=REPLACED,
            )
    except HUB_ERRORS as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
        first = "Once that is mended, the" if refused else "The"
        raise ModelError(
            f"export.push_to_hub={repo}: the upload failed: {_short(error)} The exported model is whole: {folder}. "
            f"{first} same command uploads it and builds nothing anew; without the key it ends without an upload. By "
            f"hand: hf upload {repo} {folder} . --exclude artifact.json{' --private' if private else ''}"
        ) from error
    commit = getattr(done, "commit_url", None)
    say(f"Uploaded to {commit or repo}")
    return commit


def _name(folder: Path, named: Path, repo: str) -> None:
    """Link the folder's files, with a card whose code names the repository: the folder itself stays as it is."""
    shutil.copytree(folder.resolve(), named, copy_function=os.symlink, dirs_exist_ok=True)
    if (readme := named / "README.md").is_file():
        text = readme.read_text(encoding="utf-8")
        readme.unlink()
        readme.write_text(text.replace(FOLDER, repo), encoding="utf-8")


def _short(error: Exception) -> str:
    """The first line of an error's text: what follows are headers and request ids."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if text.endswith(".") else f"{text}."
