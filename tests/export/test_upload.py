"""Upload to the hub: with a stand-in for it, as tests have no network and nobody is logged in."""

import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from kldistill.export import stage as export_stage
from kldistill.export import upload
from kldistill.export.config import ExportConfig
from kldistill.runtime.errors import ConfigError, ModelError
from kldistill.runtime.hub_errors import HTTP_ERROR
from kldistill.runtime.job import Job
from tests.helpers.artifacts import MakeModel, MakeTokens, rows_for

HTTP: Any = sys.modules[HTTP_ERROR.__module__.partition(".")[0]]  # the library by which the hub's client speaks
SECRET = "hf_thisIsNobodysToken123456"


def answer(status: int) -> Any:
    return HTTP.Response(status, request=HTTP.Request("GET", "https://huggingface.co/api"))


class FakeHub:
    """Stands in for ``HfApi``; ``repos`` maps names to whether they are private."""

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        self.files: dict[str, list[str]] = {}
        self.fails: Exception | None = None

    def whoami(self) -> dict[str, Any]:
        if self.fails is not None:
            raise self.fails
        return {"name": "me"}

    def repo_info(self, repo: str) -> Any:
        if repo not in self.repos:
            raise RepositoryNotFoundError("no such repository", response=answer(404))
        return type("Info", (), {"private": self.repos[repo]})

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.repos.setdefault(repo, private)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, ignore_patterns: list[str]
    ) -> CommitInfo:
        assert ignore_patterns == upload.NOT_UPLOADED
        self.files[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())
        url = f"https://huggingface.co/{repo_id}/commit/0123"
        return CommitInfo(commit_url=url, commit_message=commit_message, commit_description="", oid="0123")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub where somebody is logged in."""
    found = FakeHub()
    monkeypatch.setattr(upload, "HfApi", lambda: found)
    monkeypatch.setattr(upload, "is_offline_mode", lambda: False)
    monkeypatch.setattr(upload, "get_token", lambda: SECRET)
    return found


def test_the_exported_folder_is_uploaded(
    fake: FakeHub, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("gpt2")
    inputs = {"model": model, "tokens": fake_tokens(model), "rows": rows_for(model, 24, True, tmp_path / "rows")}
    (tmp_path / "out").mkdir()
    said: list[str] = []
    export_stage.build(ExportConfig(push_to_hub="me/extended"), inputs, tmp_path / "out", Job(say=said.append))
    assert fake.repos == {"me/extended": True}  # private unless said otherwise
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(fake.files["me/extended"])
    assert said[-1] == "Uploaded to https://huggingface.co/me/extended/commit/0123"
    out, err = capfd.readouterr()
    assert SECRET not in " ".join([*said, out, err])
    assert not [file for file in (tmp_path / "out").iterdir() if SECRET.encode() in file.read_bytes()]


def test_nothing_is_uploaded_unasked(
    fake: FakeHub, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model = tiny_model("gpt2")
    inputs = {"model": model, "tokens": fake_tokens(model), "rows": rows_for(model, 24, True, tmp_path / "rows")}
    (tmp_path / "out").mkdir()
    export_stage.build(ExportConfig(), inputs, tmp_path / "out", Job())
    assert (fake.repos, fake.files) == ({}, {})
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_public_repository_is_not_taken_for_a_private_one(fake: FakeHub, tmp_path: Path) -> None:
    fake.repos["me/open"] = False
    with pytest.raises(ConfigError, match=r"me/open: this repository is public.*export\.private=false"):
        upload.push(tmp_path, "me/open", True, print)
    assert fake.files == {}
    upload.push(tmp_path, "me/open", False, print)
    assert "me/open" in fake.files
    fake.repos["me/closed"] = True
    assert upload.check("me/closed", True) is None
    assert upload.check("me/new", True) is None


def test_offline_is_refused_before_anything_is_written(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    """Tests run with HF_HUB_OFFLINE=1: this is the real check."""
    model = tiny_model("gpt2")
    inputs = {"model": model, "tokens": fake_tokens(model), "rows": rows_for(model, 24, True, tmp_path / "rows")}
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"export\.push_to_hub=me/extended: .*HF_HUB_OFFLINE"):
        export_stage.build(ExportConfig(push_to_hub="me/extended"), inputs, tmp_path / "out", Job())
    assert not list((tmp_path / "out").iterdir())


def test_nobody_is_logged_in(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"nobody is logged in.*hf auth login"):
        upload.check("me/extended", True)


@pytest.mark.parametrize(
    "error",
    [
        HfHubHTTPError("401 Client Error: Unauthorized\n\nRequest ID: abc", response=answer(401)),
        HTTP.ConnectError("Name or service not known"),
    ],
)
def test_a_hub_that_refuses_or_is_silent(error: Exception, fake: FakeHub, tmp_path: Path) -> None:
    fake.fails = error
    with pytest.raises(ConfigError, match=r"refuses or does not answer: (401 Client|Name or).*\.$") as raised:
        upload.push(tmp_path, "me/extended", True, print)
    assert "Request ID" not in str(raised.value)
    assert fake.files == {}


def test_an_upload_that_breaks_off(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(**_: object) -> None:
        raise HTTP.ReadTimeout("timed out")

    monkeypatch.setattr(fake, "upload_folder", broken)
    with pytest.raises(ModelError, match=r"the upload failed: timed out\. Run the same command again"):
        upload.push(tmp_path, "me/extended", True, print)


@pytest.mark.parametrize("name", ["extended", "me/ext/ended", "me/", "me/with space", "../me/x"])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(ConfigError, match=r"export\.push_to_hub.*user/name"):
        ExportConfig(push_to_hub=name)
    assert ExportConfig(push_to_hub="me/extended-2.0").private
