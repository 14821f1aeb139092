"""Upload of an exported folder to the Hugging Face hub, as whoever is logged in there. No token passes through here."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import RepositoryNotFoundError

from kldistill.runtime.errors import ConfigError, ModelError
from kldistill.runtime.hub_errors import HUB_ERRORS

NOT_UPLOADED = ["artifact.json", ".*"]  # kldistill's own manifest, and what a desktop leaves behind


def check(repo: str, private: bool) -> None:
    """Refuse an upload that cannot succeed, before anything is trained. Asks the hub who is logged in.

    Raises:
        ConfigError: offline, nobody is logged in, the hub does not answer, or ``private`` is asked for and the
            repository is there for all to read.
    """
    key = f"export.push_to_hub={repo}"
    if is_offline_mode():
        raise ConfigError(f"{key}: the hub cannot be reached with HF_HUB_OFFLINE set. Unset it, or leave the key null.")
    if get_token() is None:
        raise ConfigError(f"{key}: nobody is logged in to the hub. Run `hf auth login`, or leave the key null.")
    api = HfApi()
    try:
        api.whoami()
        public = api.repo_info(repo).private is False
    except RepositoryNotFoundError:
        public = False  # the upload creates it
    except HUB_ERRORS as error:
        raise ConfigError(f"{key}: the hub refuses or does not answer: {_short(error)}") from error
    if private and public:
        raise ConfigError(f"{key}: this repository is public. Use export.private=false, or another repository.")


def push(folder: Path, repo: str, private: bool, say: Callable[[str], None]) -> None:
    """Create the repository if need be and upload the folder's files to it. Checks first, as ``check`` does.

    Raises:
        ConfigError: the upload cannot succeed, as ``check`` says.
        ModelError: the upload fails half-way.
    """
    check(repo, private)
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Extended vocabulary, made with kldistill",
            ignore_patterns=NOT_UPLOADED,
        )
    except HUB_ERRORS as error:
        raise ModelError(
            f"export.push_to_hub={repo}: the upload failed: {_short(error)} Run the same command again: all stages "
            "before export are kept."
        ) from error
    say(f"Uploaded to {getattr(done, 'commit_url', repo)}")


def _short(error: Exception) -> str:
    """The first line of an error's text: what follows are headers and request ids."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if text.endswith(".") else f"{text}."
