"""Upload to the hub: with a stand-in for it, as tests have no network and nobody is logged in."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import CommitInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from kldistill.export import stage as export_stage
from kldistill.export import upload
from kldistill.export.config import ExportConfig, UploadConfig
from kldistill.pipeline import compose
from kldistill.pipeline.steps import steps_of
from kldistill.runtime.errors import ConfigError, ModelError
from kldistill.runtime.hub_errors import HTTP_ERROR
from kldistill.runtime.job import Job
from tests.helpers.artifacts import MakeModel, MakeTokens, rows_for
from tests.helpers.paths import ROOT
from tests.helpers.runs import config

HTTP: Any = sys.modules[HTTP_ERROR.__module__.partition(".")[0]]  # the library by which the hub's client speaks
HF = str(Path(sys.executable).with_name("hf"))  # the command line that the hub's client brings
SECRET = "hf_thisIsNobodysToken123456"


def answer(status: int) -> Any:
    return HTTP.Response(status, request=HTTP.Request("GET", "https://huggingface.co/api"))


class FakeHub:
    """Stands in for ``HfApi``; ``repos`` maps names to whether they are private."""

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}
        self.files: dict[str, list[str]] = {}
        self.card = ""
        self.fails: Exception | None = None
        self.who: dict[str, Any] = {"name": "me"}

    def whoami(self) -> dict[str, Any]:
        if self.fails is not None:
            raise self.fails
        return self.who

    def repo_info(self, repo: str) -> Any:
        if repo not in self.repos:
            raise RepositoryNotFoundError("no such repository", response=answer(404))
        return type("Info", (), {"private": self.repos[repo]})

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.repos.setdefault(repo, private)

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        commit_message: str,
        ignore_patterns: list[str],
        delete_patterns: list[str],
    ) -> CommitInfo:
        assert ignore_patterns == upload.NOT_UPLOADED
        stay = [
            name
            for name in self.files.get(repo_id, [])
            if not list(filter_repo_objects([name], allow_patterns=delete_patterns))
        ]
        added = filter_repo_objects(
            [path.name for path in Path(folder_path).iterdir()], ignore_patterns=ignore_patterns
        )
        self.files[repo_id] = sorted({*stay, *added})
        if (readme := Path(folder_path) / "README.md").is_file():
            self.card = readme.read_text()
        assert all(path.exists() for path in Path(folder_path).rglob("*"))  # no link leads nowhere
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
    (tmp_path / "upload").mkdir()
    said: list[str] = []
    export_stage.build(ExportConfig(), inputs, tmp_path / "out", Job(say=said.append))
    exported = {"export": tmp_path / "out"}
    upload.build(UploadConfig("me/extended", True), exported, tmp_path / "upload", Job(say=said.append))
    written = json.loads((tmp_path / "upload" / "upload.json").read_text())
    assert written == {"repo": "me/extended", "commit": "https://huggingface.co/me/extended/commit/0123"}
    assert fake.repos == {"me/extended": True}  # private unless said otherwise
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(fake.files["me/extended"])
    assert said[-1] == "Uploaded to https://huggingface.co/me/extended/commit/0123"
    assert fake.card.count('from_pretrained("me/extended")') == 2 and "path/to" not in fake.card
    local = (tmp_path / "out" / "README.md").read_text()
    assert local.count('from_pretrained("path/to/this/folder")') == 2
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


def test_offline_is_refused() -> None:
    """Tests run with HF_HUB_OFFLINE=1: this is the real check."""
    with pytest.raises(ConfigError, match=r"export\.push_to_hub=me/extended: .*HF_HUB_OFFLINE"):
        upload.check("me/extended", True)


@pytest.mark.parametrize(
    ("who", "repo", "told"),
    [
        ({"auth": {"accessToken": {"role": "read"}}}, "me/extended", "the token may only read.*settings/tokens"),
        ({"orgs": [{"name": "team", "roleInOrg": "write"}]}, "other/theirs", "of me, team, not of other"),
        ({"orgs": [{"name": "team", "roleInOrg": "read"}]}, "team/ours", "may only read the repositories of team"),
    ],
)
def test_who_may_not_write_is_told_before_training(who: dict[str, Any], repo: str, told: str, fake: FakeHub) -> None:
    fake.who |= who
    with pytest.raises(ConfigError, match=f"export.push_to_hub={repo}: .*{told}"):
        upload.check(repo, True)


@pytest.mark.parametrize(
    ("who", "repo"),
    [
        ({"auth": {"accessToken": {"role": "write"}}, "orgs": []}, "me/extended"),
        ({"auth": {"accessToken": {"role": "fineGrained"}}}, "me/extended"),
        ({"orgs": [{"name": "team", "roleInOrg": "contributor"}, {"name": "elsewhere"}]}, "team/ours"),
        ({"orgs": [{"name": "team", "roleInOrg": "read"}]}, "me/extended"),
    ],
)
def test_who_may_write_is_let_through(who: dict[str, Any], repo: str, fake: FakeHub) -> None:
    fake.who |= who
    upload.check(repo, True)


def test_weights_of_an_earlier_model_do_not_stay_beside_the_new_ones(fake: FakeHub, tmp_path: Path) -> None:
    fake.repos["me/extended"] = True
    fake.files["me/extended"] = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "notes.md",
        "pytorch_model.bin",
    ]
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "artifact.json").touch()
    upload.push(tmp_path, "me/extended", True, print)
    assert fake.files["me/extended"] == ["model.safetensors", "notes.md"]


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
    with pytest.raises(ModelError, match=r"the upload failed: timed out\. .* The same command uploads it") as raised:
        upload.push(tmp_path, "me/extended", True, print)
    assert f"whole: {tmp_path}." in str(raised.value)
    # What it says works as typed: the hub's own command line knows every option of it.
    by_hand = shlex.split(str(raised.value).partition("By hand: ")[2])
    assert by_hand == ["hf", "upload", "me/extended", str(tmp_path), ".", "--exclude", "artifact.json", "--private"]
    usage = subprocess.run([HF, "upload", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(word in usage for word in ("REPO_ID", "LOCAL_PATH", "PATH_IN_REPO", "--exclude", "--private"))


def test_a_hub_that_refuses_half_way_is_not_asked_again_as_if_nothing_were(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(**_: object) -> None:
        raise HfHubHTTPError("403 Forbidden: no right to create a model", response=answer(403))

    monkeypatch.setattr(fake, "upload_folder", refused)
    with pytest.raises(ModelError, match=r"no right to create a model\..* Once that is mended, the same command"):
        upload.push(tmp_path, "me/extended", True, print)


def test_the_upload_is_a_step_after_the_export_and_changes_no_folder() -> None:
    """A network that fails at the end takes nothing with it, and a folder that is there is not made once more."""

    def composed(*overrides: str) -> compose.Config:
        return compose.typed(config(["model=tiny", *overrides]))

    cfg = composed("export.push_to_hub=me/extended", "export.private=false")
    without, with_it = steps_of(composed()), steps_of(cfg)
    assert list(with_it) == [*without, "upload"]
    assert with_it["upload"].stage("upload") == "export"
    assert with_it["export"].config(cfg) == ExportConfig()
    assert with_it["upload"].config(cfg) == UploadConfig("me/extended", False)


@pytest.mark.parametrize("name", ["extended", "me/ext/ended", "me/", "me/with space", "../me/x"])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(ConfigError, match=r"export\.push_to_hub.*user/name"):
        ExportConfig(push_to_hub=name)
    assert ExportConfig(push_to_hub="me/extended-2.0").private


def test_requests_to_the_hub_are_no_lines_of_the_log() -> None:
    """The client's library tells of each at INFO, with the signed address of an upload."""
    logging_config = yaml.safe_load((ROOT / "conf" / "hydra" / "job_logging" / "kldistill.yaml").read_text())
    assert logging_config["loggers"][HTTP.__name__]["level"] == "WARNING"
