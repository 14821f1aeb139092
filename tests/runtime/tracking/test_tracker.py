import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kldistill.runtime.config import LoggerConfig, RuntimeConfig
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.tracking.labels import flatten, labels, run_name
from kldistill.runtime.tracking.tracker import METRICS, TABLES, Tracker
from kldistill.runtime.tracking.wandb_run import chosen_mode
from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE

OFFLINE = LoggerConfig(name="wandb")
NONE = LoggerConfig(name="none")
SECRET = "hf_abcDEF0123456789"
PNG = bytes.fromhex(  # one black pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a494441"
    "54789c636000000002000148afa4710000000049454e44ae426082"
)


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_") or name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(home))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts" / "distill" / "abc.partial"
    folder.mkdir(parents=True)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path: Path, stage: str = "distill") -> list[int | None]:
    return [line["step"] for line in lines(path) if line["stage"] == stage]


def records(folder: Path) -> list[list[Any]]:
    """All records of each finished offline run below ``folder``, oldest run first."""
    return sorted((closed(path) for path in folder.glob("wandb/offline-run-*")), key=started)


def closed(folder: Path) -> list[Any]:
    """All records of one finished offline run.

    wandb's service writes the file in the background and may be at it after ``finish``: wait for the exit record.
    """
    (path,) = folder.glob("run-*.wandb")
    end = time.monotonic() + PATIENCE
    while not exit_codes(found := read_wandb_file(path)):
        assert time.monotonic() < end, "a run was never closed"
        time.sleep(0.02)
    return found


def read_wandb_file(path: Path) -> list[Any]:
    """A .wandb file is a LevelDB log of protobufs: blocks of 32 KiB, in them pieces with a header of checksum, length
    and kind (1 whole, 2 first, 3 middle, 4 last)."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, at, part, found = path.read_bytes(), 7, b"", []
    assert data[:4] in (b":W&B", b"")
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + size > len(data):
            break  # still being written
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            found.append(Record.FromString(part))
            part = b""
    return found


def started(found: list[Any]) -> tuple[int, int]:
    (start,) = [record.run.start_time for record in found if record.HasField("run")]
    return start.seconds, start.nanos


def items(record: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record}


def history(found: list[Any]) -> list[dict[str, Any]]:
    rows = [items(record.history.item) for record in found if record.HasField("history")]
    return [{key: value for key, value in row.items() if key[0] != "_"} for row in rows]


def exit_codes(found: list[Any]) -> list[int]:
    return [record.exit.exit_code for record in found if record.HasField("exit")]


def config_of(found: list[Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for record in found:
        for part in (record.config, record.run.config):
            flat.update(items(part.update))
    return {key: value for key, value in flat.items() if not key.startswith("_wandb")}


# metrics.jsonl


def test_a_line_has_stage_step_time_and_full_names_in_both_files(run: Path, out: Path) -> None:
    with Tracker(run, NONE) as tracker:
        job = tracker.job("distill", RuntimeConfig(), out)
        job.log({"loss": 0.5, "distill/lr": 1e-3}, step=3)
        job.log({"eval/domain/bits_per_byte": 1, "bad": float("nan")})
    assert (out / METRICS).read_text() == (run / METRICS).read_text()
    first, second = lines(run / METRICS)
    assert abs(first.pop("time") - time.time()) < 30
    assert abs(second.pop("time") - time.time()) < 30
    assert first == {"stage": "distill", "step": 3, "distill/loss": 0.5, "distill/lr": 1e-3}
    assert second == {"stage": "distill", "step": None, "eval/domain/bits_per_byte": 1, "distill/bad": None}


def test_rewind_leaves_each_step_once_and_other_stages_alone(run: Path, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with Tracker(run, NONE) as tracker:
        tracker.job("init", RuntimeConfig(), other).log({"loss": 1.0}, step=9)
        job = tracker.job("distill", RuntimeConfig(), out)
        job.log({"rows": 512})
        for step in range(6):
            job.log({"loss": 1.0}, step=step)
            if step % 2 == 0:
                job.log({"val": 1.0}, step=step)
        job.log({"seconds": 2.0})
    with Tracker(run, NONE) as tracker:  # killed, run again, from the checkpoint of step 2
        job = tracker.job("distill", RuntimeConfig(), out)
        job.rewind(2)
        assert steps(out / METRICS) == steps(run / METRICS) == [None, 0, 0, 1, 2, 2]
        for step in (3, 4):
            job.log({"loss": 0.5}, step=step)
        assert steps(out / METRICS) == steps(run / METRICS) == [None, 0, 0, 1, 2, 2, 3, 4]
        assert steps(run / METRICS, "init") == [9]
        job.rewind(-1)
        assert steps(out / METRICS) == steps(run / METRICS) == []


def test_a_torn_last_line_is_dropped_and_what_follows_is_whole(run: Path, out: Path) -> None:
    with Tracker(run, NONE) as tracker:
        tracker.job("distill", RuntimeConfig(), out).log({"loss": 1.0}, step=0)
    for path in (run / METRICS, out / METRICS):
        with path.open("a") as file:
            file.write('{"stage": "distill", "st')
    with Tracker(run, NONE) as tracker:
        tracker.job("distill", RuntimeConfig(), out).log({"loss": 0.5}, step=1)
    assert steps(run / METRICS) == steps(out / METRICS) == [0, 1]


def test_lines_of_a_build_that_was_thrown_away_go(run: Path, out: Path) -> None:
    with Tracker(run, NONE) as tracker:
        tracker.job("distill", RuntimeConfig(), out).log({"loss": 1.0}, step=0)
    (out / METRICS).unlink()  # the partial folder was wiped
    with Tracker(run, NONE) as tracker:
        tracker.job("distill", RuntimeConfig(), out).log({"loss": 0.5}, step=0)
    assert [line["distill/loss"] for line in lines(run / METRICS)] == [0.5]


# Weights & Biases


def test_offline_run_holds_config_curves_summary_and_table(run: Path, out: Path) -> None:
    config = LoggerConfig(name="wandb", project="words", group="grid", tags=["a", "b"])
    resolved = {"loss": {"weight": 0.3}, "stages": ["init", "distill"], "n": 512}
    with Tracker(run, config, resolved=resolved, name="kl", job_type="run") as tracker:
        job = tracker.job("distill", RuntimeConfig(), out)
        for step in range(3):
            job.log({"loss": 1.0 / (step + 1)}, step=step)
        job.log({"eval/init/domain/bits_per_byte": 1.1}, step=2)
        job.table("preflight", ["token", "count"], [["attention_mask", 12], ["self.", None]])
        tracker.summary({"tokens/saved": 0.168})
    (found,) = records(run)
    (info,) = [record.run for record in found if record.HasField("run")]
    assert (info.project, info.run_group, info.display_name, info.job_type) == ("words", "grid", "kl", "run")
    assert list(info.tags) == ["a", "b"]
    assert config_of(found) == {"loss": {"weight": 0.3}, "stages": ["init", "distill"], "n": 512, "labels": {}}
    rows = history(found)
    assert rows[:3] == [{"distill/step": step, "distill/loss": 1.0 / (step + 1)} for step in range(3)]
    assert rows[3] == {"distill/step": 2, "eval/init/domain/bits_per_byte": 1.1}
    axes = {record.metric.glob_name or record.metric.name: record.metric.step_metric for record in found}
    assert axes["distill/*"] == axes["eval/init/domain/bits_per_byte"] == "distill/step"
    (table,) = run.glob("wandb/offline-run-*/files/media/table/distill/preflight*.table.json")
    assert json.loads(table.read_text())["data"] == [["attention_mask", 12], ["self.", None]]
    summary = {key: value for record in found for key, value in items(record.summary.update).items()}
    assert summary["tokens/saved"] == 0.168
    assert exit_codes(found) == [0]


def test_the_environment_comes_before_defaults_and_after_the_configuration(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {"PROJECT": "of-env", "RUN_GROUP": "group-of-env", "TAGS": "red, blue", "NAME": "name-of-env"}
    for name, value in values.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with Tracker(run, OFFLINE, name="made", group="experiment"):
        pass
    chosen = LoggerConfig(name="wandb", mode="offline", project="mine", group="my-group", tags=["a"])
    with Tracker(tmp_path / "other", chosen, group="experiment"):
        pass
    (first,), (second,) = records(run), records(tmp_path / "other")
    (info,) = [record.run for record in first if record.HasField("run")]
    assert (info.project, info.run_group, info.display_name) == ("of-env", "group-of-env", "name-of-env")
    assert list(info.tags) == ["red", "blue"]
    (info,) = [record.run for record in second if record.HasField("run")]
    assert (info.project, info.run_group, list(info.tags)) == ("mine", "my-group", ["a"])


def test_single_points_have_no_panel_of_their_own_and_the_model_is_referred_to(run: Path, out: Path) -> None:
    (out / "model.safetensors").write_bytes(b"weights")
    with Tracker(run, OFFLINE) as tracker:
        tracker.log({"eval/init/domain/bits_per_byte": 1.1}, stage="evaluate_init")
        tracker.log({"interpret/lens": 1.1}, stage="interpret")
        tracker.log({"loss": 1.0}, 1, stage="distill")
        tracker.model(out)
    (found,) = records(run)
    metrics = {record.metric.glob_name or record.metric.name: record.metric for record in found}
    for name, hidden in (("eval/init/domain/bits_per_byte", True), ("interpret/*", True), ("distill/*", False)):
        assert metrics[name].options.hidden == hidden, name
    sent = [record.request.log_artifact.artifact for record in found if record.request.HasField("log_artifact")]
    (artifact,) = sent or [record.artifact for record in found if record.HasField("artifact")]
    assert artifact.type == "model"
    assert not list(run.rglob("model.safetensors")), "a reference, no copy"


def test_the_message_names_every_offline_folder_of_a_run_that_goes_on(run: Path) -> None:
    printed = io.StringIO()
    for _ in range(2):
        with Tracker(run, OFFLINE, console=Console(file=printed, width=500)):
            pass
        time.sleep(1.1)  # wandb names its folders by the second
    folders = sorted(str(path) for path in run.glob("wandb/offline-run-*"))
    assert len(folders) == 2
    assert f"`wandb sync {folders[0]} {folders[1]}` uploads it" in printed.getvalue().splitlines()[-1]


def test_a_runs_name_tells_init_loss_and_seed() -> None:
    resolved = {"init": {"input": {"_target_": "a.mean"}, "output": {"_target_": "a.mean"}}, "loss": {"name": "kl"}}
    resolved |= {"seed": 3}
    assert run_name(Path("runs/default"), resolved) == "mean kl seed 3"
    assert run_name(Path("runs/init=mean,loss=kl,seed=3,tokens.n_new=9"), resolved) == "mean kl seed 3 tokens.n_new=9"
    assert run_name(Path("runs/plain"), {}) == "plain"


def test_a_crashed_run_is_marked_as_failed(run: Path, out: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), Tracker(run, OFFLINE) as tracker:
        tracker.job("distill", RuntimeConfig(), out).log({"loss": 1.0}, step=0)
        raise RuntimeError("boom")
    (found,) = records(run)
    assert exit_codes(found) == [1]
    assert history(found) == [{"distill/step": 0, "distill/loss": 1.0}]


def test_runs_of_one_process_do_not_leak_into_each_other(tmp_path: Path) -> None:
    import wandb

    outs = [tmp_path / "a", tmp_path / "b"]
    for folder in outs:
        folder.mkdir()
    one = Tracker(tmp_path / "one", OFFLINE, resolved={"only/one": 1})
    two = Tracker(tmp_path / "two", OFFLINE, resolved={"only/two": 2})  # while the first is still open
    for step in range(2):
        one.job("distill", RuntimeConfig(), outs[0]).log({"first": 1.0}, step=step)
        two.job("distill", RuntimeConfig(), outs[1]).log({"second": 2.0}, step=step)
    assert wandb.run is None
    one.finish("failed")
    two.finish("finished")
    two.finish("failed")  # closed already
    (first,), (second,) = records(tmp_path / "one"), records(tmp_path / "two")
    assert history(first) == [{"distill/step": step, "distill/first": 1} for step in range(2)]
    assert history(second) == [{"distill/step": step, "distill/second": 2} for step in range(2)]
    assert config_of(first) == {"only/one": 1, "labels": {}}
    assert config_of(second) == {"only/two": 2, "labels": {}}
    assert (exit_codes(first), exit_codes(second)) == ([1], [0])
    assert first[1].run.run_id != second[1].run.run_id


def test_running_again_continues_the_same_run_and_repeats_nothing(run: Path, out: Path) -> None:
    artifact = out.with_name("abc")
    with Tracker(run, OFFLINE, resolved={"runtime": {"workers": 1}}) as tracker:
        job = tracker.job("distill", RuntimeConfig(), out)
        job.log({"loss": 1.0}, step=0)
        job.table("t", ["a"], [["x"]])
    out.rename(artifact)
    before = (run / METRICS).read_text()
    with Tracker(run, OFFLINE, resolved={"runtime": {"workers": 2}}) as tracker:
        tracker.replay("distill", artifact)
    assert (run / METRICS).read_text() == before
    first, second = records(run)
    assert first[1].run.run_id == second[1].run.run_id
    assert len(history(first)) == 2
    assert history(second) == []


def test_what_wandb_may_have_lost_with_a_killed_process_is_sent_again(run: Path, out: Path) -> None:
    body = f"""
import os, signal
from pathlib import Path
from kldistill.runtime.config import LoggerConfig, RuntimeConfig
from kldistill.runtime.tracking.tracker import Tracker
job = Tracker(Path({str(run)!r}), LoggerConfig(mode="offline")).job("distill", RuntimeConfig(), Path({str(out)!r}))
for step in range(3):
    job.log({{"loss": 1.0}}, step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", body], cwd=run.parent, start_new_session=True, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL
    before = set(run.glob("wandb/offline-run-*"))
    for expected in ([0, 1, 2], []):
        with Tracker(run, OFFLINE) as tracker:
            tracker.replay("distill", out)
        (made,) = set(run.glob("wandb/offline-run-*")) - before
        before.add(made)
        assert [row["distill/step"] for row in history(closed(made))] == expected


def test_a_reused_artifact_still_shows_its_curves_and_tables(run: Path, out: Path, tmp_path: Path) -> None:
    with Tracker(run, NONE) as tracker:
        job = tracker.job("distill", RuntimeConfig(), out)
        for step in range(3):
            job.log({"loss": float(step)}, step=step)
        job.table("preflight", ["a"], [["x"]])
    other = tmp_path / "other"
    for _ in range(2):
        with Tracker(other, OFFLINE) as tracker:
            tracker.replay("distill", out)
            tracker.replay("distill", out)
        assert (other / METRICS).read_text() == (run / METRICS).read_text()
    first, second = records(other)
    assert history(first)[:3] == [{"distill/step": step, "distill/loss": step} for step in range(3)]
    assert len(list(other.glob("wandb/offline-run-*/files/media/table/distill/preflight*"))) == 1
    assert history(second) == []


def test_the_rest_of_a_build_that_another_run_finished_is_sent(run: Path, out: Path, tmp_path: Path) -> None:
    with Tracker(run, OFFLINE) as tracker:
        tracker.job("distill", RuntimeConfig(), out).log({"loss": 1.0}, step=0)
    with Tracker(tmp_path / "other", OFFLINE) as tracker:
        tracker.job("distill", RuntimeConfig(), out).log({"loss": 0.5}, step=1)
    with Tracker(run, OFFLINE) as tracker:
        tracker.replay("distill", out)
    assert steps(run / METRICS) == steps(tmp_path / "other" / METRICS) == [0, 1]
    assert [[row["distill/step"] for row in history(found)] for found in records(run)] == [[0], [1]]
    (other,) = records(tmp_path / "other")
    assert [row["distill/step"] for row in history(other)] == [0, 1]


def test_steps_done_again_after_a_rewind_are_sent(run: Path, out: Path) -> None:
    with Tracker(run, OFFLINE) as tracker:
        job = tracker.job("distill", RuntimeConfig(), out)
        for step in range(3):
            job.log({"loss": 1.0}, step=step)
        job.rewind(0)
        job.log({"loss": 0.25}, step=1)
    (found,) = records(run)
    assert [row["distill/step"] for row in history(found)] == [0, 1, 2, 1]
    assert history(found)[-1]["distill/loss"] == 0.25
    assert steps(run / METRICS) == [0, 1]


# Groups, tags and pictures

RESOLVED = {
    "model": {"_target_": "kldistill.model.hub.hf", "path": "some/where/Qwen2.5-0.5B/", "name": None},
    "init": {
        "input": {"_target_": "kldistill.rows.inits.last_piece"},
        "output": {"_target_": "kldistill.rows.inits.subtoken_mean"},
    },
    "loss": {"name": "kl_ce", "terms": {}},
    "finetune": {"method": "lora"},
    "seed": 1,
}
LABELS = {"model": "Qwen2.5-0.5B", "init": "last_piece_subtoken_mean", "loss": "kl_ce", "finetune": "lora"}


def test_labels_are_one_word_of_each_group() -> None:
    assert labels(RESOLVED) == LABELS
    same = {"input": {"_target_": "kldistill.rows.inits.mean"}, "output": {"_target_": "kldistill.rows.inits.mean"}}
    assert labels({"init": same, "model": {"name": "tiny"}}) == {"model": "tiny", "init": "mean"}
    assert labels({}) == {}


def test_what_panels_need_is_in_the_run(run: Path) -> None:
    """Group and job type, tags, labels beside the nested configuration, a table and a picture."""
    png = run.parent / "some.png"
    png.write_bytes(PNG)
    page = run.parent / "report.html"
    page.write_text("<!doctype html><p>All of it.</p>")
    with Tracker(run, LoggerConfig(tags=["mine"]), resolved=RESOLVED, job_type="train", group="kl_vs_ce") as tracker:
        tracker.image("pictures/some", png)
        tracker.image("report", page)
        tracker.table("result", ["model", "bits/byte"], [["original", 0.98]])
        tracker.summary({"eval/distilled/domain/bits_per_byte": 0.9})
    (found,) = records(run)
    (start,) = [record.run for record in found if record.HasField("run")]
    assert (start.run_group, start.job_type) == ("kl_vs_ce", "train")
    assert list(start.tags) == ["mine", *(f"{key}={value}" for key, value in LABELS.items())]
    config = config_of(found)
    assert config["labels"] == LABELS
    assert (config["loss"]["name"], config["seed"]) == ("kl_ce", 1)
    sent = {key: value for row in history(found) for key, value in row.items()}
    assert sent["pictures/some/_type"] == "image-file"
    assert sent["result/_type"] == "table-file"
    assert sent["report/_type"] == "html-file"
    (kept,) = run.glob("wandb/offline-run-*/files/media/html/report*.html")
    assert kept.read_text() == page.read_text()
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/pictures/some*.png"))) == 1


def test_a_group_of_the_users_own_comes_first(run: Path) -> None:
    with Tracker(run, LoggerConfig(group="theirs"), group="kl_vs_ce"):
        pass
    (found,) = records(run)
    assert [record.run.run_group for record in found if record.HasField("run")] == ["theirs"]


# Choosing the logger


@pytest.mark.parametrize(
    ("name", "mode", "variable", "expected"),
    [
        ("wandb", None, None, "offline"),
        ("wandb", None, "online", "online"),
        ("wandb", "offline", "online", "offline"),
        ("wandb", None, "disabled", "disabled"),
        ("none", "online", "online", "disabled"),
    ],
)
def test_mode(
    monkeypatch: pytest.MonkeyPatch, name: str, mode: str | None, variable: str | None, expected: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert chosen_mode(LoggerConfig(name=name, mode=mode)) == expected


def test_wrong_mode_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match="WANDB_MODE='ofline'"):
        Tracker(run, OFFLINE)


def test_missing_wandb_is_said_clearly(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb cannot be imported.*pip install wandb.*logger=none"):
        Tracker(run, OFFLINE)
    with Tracker(run, NONE) as tracker:
        tracker.table("t", ["a"], [[1]])


def test_online_without_a_key_is_said_clearly(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kldistill.runtime.config import LoggerConfig;"
        "from kldistill.runtime.tracking.tracker import Tracker;"
        "Tracker(Path(sys.argv[1]), LoggerConfig(mode='online'))"
    )
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(run), "NETRC": str(run / "netrc")}
    child = python(code, str(run), **nowhere)
    assert child.returncode == 1
    assert "ConfigError: logger.mode=online: wandb does not start" in child.stderr
    assert "logger=none" in child.stderr


@pytest.mark.parametrize("logger", ["name='none'", "mode='disabled'"])
def test_no_logger_never_imports_wandb(run: Path, logger: str) -> None:
    code = (
        "import sys; from pathlib import Path; from kldistill.runtime.config import LoggerConfig, RuntimeConfig;"
        "from kldistill.runtime.tracking.tracker import Tracker; folder = Path(sys.argv[1]);"
        f"tracker = Tracker(folder, LoggerConfig({logger})); job = tracker.job('init', RuntimeConfig(), folder);"
        "job.log({'a': 1}); job.table('t', ['a'], [[1]]); tracker.summary({'a': 1}); tracker.finish('finished');"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'wandb']"
    )
    child = python(code, str(run))
    assert child.returncode == 0, child.stderr
    assert not (run / "wandb").exists()


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


# Secrets and the console


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    values = {"HF_TOKEN": SECRET, "WANDB_API_KEY": 'a"b' + "0" * 37}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["kldistill", f"model.token={SECRET}"])
    yield list(values.values())


def test_no_secret_is_written_anywhere(run: Path, out: Path, secrets: list[str]) -> None:
    printed = io.StringIO()
    said = " and ".join(secrets)
    with Tracker(run, OFFLINE, resolved={"token": said, "list": [said]}, console=Console(file=printed)) as tracker:
        job = tracker.job("distill", RuntimeConfig(), out)
        job.log({f"loss/{said}": 1.0}, step=0)
        job.table(f"table {said}", ["a", said], [[said, 1]])
        job.say(f"the key is {said}")
        tracker.summary({"eval/text": said})
    assert sys.argv == ["kldistill", f"model.token={SECRET}"]
    assert "the key is <WANDB_API_KEY>" in printed.getvalue() or "the key is <HF_TOKEN>" in printed.getvalue()
    files = [path for folder in (run, out) for path in folder.rglob("*") if path.is_file()]
    assert {METRICS, TABLES} <= {path.name for path in files}
    (found,) = records(run)
    assert any(list(record.environment.args) == ["model.token=<HF_TOKEN>"] for record in found)
    for value in secrets:
        assert value not in printed.getvalue()
        for path in files:
            content = path.read_bytes()
            assert value.encode() not in content, path
            assert json.dumps(value)[1:-1].encode() not in content, path


def test_a_table_is_readable_without_a_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["model", *(f"a rather long column {number}" for number in range(5))]
    with Tracker(run, NONE) as tracker:
        tracker.table("Results [bold]", columns, [["kl", 49664, 1.00512, None, "0.29 ± 0.01", True]])
        tracker.say("saved in [here]")
    printed = capsys.readouterr().out
    assert "Results [bold]" in printed
    assert "saved in [here]" in printed
    (row,) = [line for line in printed.splitlines() if "kl" in line]
    assert row.replace("│", " ").split() == ["kl", "49,664", "1.005", "–", "0.29", "±", "0.01", "True"]
    assert all(column in printed for column in columns)


RESULT = [
    ["original", "49,152", "291.2", "–", "0.912 [0.85,0.97]", "1.034 [0.98,1.09]", "–"],
    ["extended", "49,664", "243.9", "16.3%", "1.182 [1.10,1.26]", "1.034 [0.98,1.09]", "0.210 [0.18,0.25]"],
    ["distilled", "49,664", "243.9", "16.3%", "0.953 [0.88,1.02]", "1.034 [0.98,1.09]", "0.041 [0.03,0.05]"],
]
COLUMNS = ["model", "vocabulary", "tokens/1,000 B", "saved", "bits/B domain", "bits/B general", "KL domain"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_table_that_is_too_wide_is_turned_on_its_side(width: int, run: Path) -> None:
    printed = io.StringIO()
    with Tracker(run, NONE, console=Console(file=printed, width=width)) as tracker:
        tracker.table("result", COLUMNS, RESULT)
    lines = printed.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if "│" in line or "┃" in line]
    if width == 160:
        assert cells == [COLUMNS, *RESULT]
    else:
        assert cells[0] == ["model", "original", "extended", "distilled"]
        assert cells[1:] == [[COLUMNS[at], *(row[at] for row in RESULT)] for at in range(1, len(COLUMNS))]


def test_one_that_is_too_wide_both_ways_comes_in_pieces(run: Path) -> None:
    printed = io.StringIO()
    with Tracker(run, NONE, console=Console(file=printed, width=60)) as tracker:
        tracker.table("result", COLUMNS, RESULT * 3)
    lines = printed.getvalue().splitlines()
    assert all(len(line) <= 60 for line in lines)
    for at in range(1, len(COLUMNS)):
        found = [line for line in lines if line.startswith(f"│ {COLUMNS[at]} ")]
        assert [cell.strip() for line in found for cell in line.split("│")[2:-1]] == [row[at] for row in RESULT * 3]


OBEYED = "a\x1b[2J\x9b31m\r\n\u202eb\tc\x7f é中"
SPELT = r"a\x1b[2J\x9b31m\r\n\u202eb\tc\x7f é中"


def test_nothing_that_a_terminal_obeys_reaches_the_console_the_log_or_the_dashboard(run: Path, out: Path) -> None:
    printed = io.StringIO()
    with Tracker(run, NONE, console=Console(file=printed, width=160)) as tracker:
        job = tracker.job("tokens", RuntimeConfig(), out)
        job.table(OBEYED, ["id", OBEYED], [[1, OBEYED], [2, "plain"]])
        job.say(f"A line {OBEYED}")
        tracker.say(f"Prose {OBEYED}", wrap=True)
    shown, log = printed.getvalue(), (run / "kldistill.log").read_text()
    for text in (shown, log):
        assert text.replace("\n", "").isprintable(), repr(text)
        assert text.count(SPELT) == 4  # title, column, cell, line
        assert r"Prose a\x1b[2J\x9b31m \u202eb c\x7f é中" in text
    (kept,) = lines(out / TABLES)
    assert kept["columns"] == ["id", SPELT] and kept["rows"] == [[1, SPELT], [2, "plain"]]


def test_the_log_holds_all_that_the_console_shows(run: Path, secrets: list[str]) -> None:
    printed = io.StringIO()
    with Tracker(run, NONE, console=Console(file=printed, width=60)) as tracker:
        tracker.say(f"init: building 0123 with {secrets[0]}")
        tracker.say("Prose that goes on\nand on, " * 9, wrap=True)
        tracker.table("result", COLUMNS, RESULT)
    assert max(len(line) for line in printed.getvalue().splitlines()) <= 60
    log = (run / "kldistill.log").read_text()
    assert re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] init: building 0123 with <", log)
    assert secrets[0] not in log and "Prose that goes on" in log
    assert all(cell in log for row in [COLUMNS, *RESULT] for cell in row)
    with Tracker(run, NONE, console=Console(file=io.StringIO())) as tracker:
        tracker.say("again")
    assert (run / "kldistill.log").read_text().startswith(log), "a second run adds to it"


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1]}, "e": {}}) == {"a.b.c": 1, "a.d": [1], "e": {}}
