"""A run's folder: what a second run in it keeps, who may write there, and what a broken disk looks like to the user."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kldistill.pipeline import compose, run_record
from kldistill.pipeline import run as pipeline
from kldistill.pipeline.checks import check
from kldistill.pipeline.run import is_finished
from kldistill.pipeline.run_record import RunRecord
from kldistill.pipeline.step import Step
from kldistill.pipeline.steps import steps_of
from kldistill.pipeline.sweeps import mark_failed
from kldistill.runtime.config import resolved
from kldistill.runtime.errors import ArtifactError, ConfigError, FolderInUseError, ModelError, StorageError
from kldistill.runtime.faults import held
from kldistill.runtime.files import write_summary, write_text
from kldistill.runtime.job import Job
from tests.helpers.disks import ROOT_ON_LINUX, small_disk
from tests.helpers.interpreter import python
from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE
from tests.helpers.runs import SMALL, config, overrides_of, read_run


def building(name: str) -> Callable[..., None]:
    """A stage that takes no time: writes a file and a figure. It fails where ``broken`` says so."""

    def build(cfg: Any, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
        if name in broken:
            raise broken[name]
        (out / "made.txt").write_text(" ".join([name, *sorted(inputs)]))
        write_summary(out, {f"{name}/figure": float(len(inputs))})
        job.log({"figure": 1.0})

    return build


broken: dict[str, BaseException] = {}


def identity(cfg: Any) -> dict[str, str]:
    """What the text's only file holds."""
    return {"text": (Path(cfg.path) / "text.py").read_text()}


def light_steps(cfg: compose.Config) -> dict[str, Step]:
    """Steps that are put together like the real ones, without any work."""

    def of(*names: str) -> dict[str, str]:
        return {name: name for name in names}

    return {
        "model": Step(building("model"), lambda cfg: cfg.model),
        "corpus": Step(building("corpus"), lambda cfg: cfg.corpus, identity=identity),
        "tokens": Step(building("tokens"), lambda cfg: cfg.tokens, of("model", "corpus")),
        "evaluate_original": Step(building("evaluate_original"), _none, of("model", "corpus"), group="evaluate"),
        "distill": Step(building("distill"), lambda cfg: cfg.distill, of("tokens"), resumable=True, together=True),
        "evaluate_distilled": Step(building("evaluate_distilled"), _none, of("distill"), group="evaluate"),
        "export": Step(
            building("export"),
            lambda cfg: cfg.export,
            of("distill"),
            optional=("evaluate_original", "evaluate_distilled"),
            result="The extended model",
        ),
    }


def _none(cfg: compose.Config) -> dict[str, Any]:
    return {}


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pipeline, "steps_of", light_steps)
    monkeypatch.setattr(pipeline, "defaults", dict)  # composing them takes longer than these runs
    yield
    broken.clear()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "text.py").write_text("text")
    return folder


@lru_cache(maxsize=1)
def composed() -> compose.Config:
    return compose.typed(config([*SMALL, "corpus.path=."]))


def typed(corpus: Path, outputs: Path, *more: str) -> compose.Config:
    """The small configuration with other top keys: ``stages=[a,b]``, ``seed=7``."""
    values = {key: yaml.safe_load(value) for key, value in (text.split("=", 1) for text in more)}
    made = composed()
    return replace(made, outputs=str(outputs), corpus=replace(made.corpus, path=str(corpus)), **values)


def run(corpus: Path, outputs: Path, *more: str) -> dict[str, Any]:
    """Run the light pipeline in the folder ``runs/run``, and give its run.json."""
    pipeline.run_pipeline(typed(corpus, outputs, *more), outputs / "runs/run")
    return read_run(outputs / "runs/run")


WHOLE = "stages=[evaluate,export]"


# ---- a narrower run


def test_a_narrower_run_takes_nothing_away(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/run"
    before = run(corpus, tmp_path, "stages=[evaluate,export,report]")
    assert list(before["artifacts"]) == list(light_steps(typed(corpus, tmp_path)))
    assert before["metrics"]["evaluate_distilled/figure"] == 1.0
    lines = (folder / "metrics.jsonl").read_text()
    for stages in ("[tokens]", "[export]", "[evaluate_original]"):
        found = run(corpus, tmp_path, f"stages={stages}")
        assert found["status"] == "finished"
        assert (found["artifacts"], found["metrics"]) == (before["artifacts"], before["metrics"])
        assert found["about"]["seconds"] == before["about"]["seconds"]
        assert {"evaluate", "export", "report"} <= set(found["config"]["stages"])
        assert (folder / "report.html").is_file() and (folder / "metrics.jsonl").read_text() == lines
        assert is_finished(typed(corpus, tmp_path, f"stages={stages}"), folder)
    assert is_finished(typed(corpus, tmp_path, "stages=[evaluate,export,report]"), folder)


def test_a_run_that_builds_nothing_writes_its_record_at_both_ends(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = run_record.write_run_record
    monkeypatch.setattr(
        run_record,
        "write_run_record",
        lambda folder, content: written.append(content["status"]) or write(folder, content),
    )
    before = run(corpus, tmp_path, WHOLE)
    assert written == ["running"] * (1 + len(before["artifacts"])) + ["finished"]
    written.clear()
    after = run(corpus, tmp_path, WHOLE)
    assert written == ["running", "finished"]
    assert (after["artifacts"], after["metrics"]) == (before["artifacts"], before["metrics"])


def test_a_wider_run_adds_to_it(corpus: Path, tmp_path: Path) -> None:
    before = run(corpus, tmp_path, "stages=[tokens]")
    assert not is_finished(typed(corpus, tmp_path, WHOLE), tmp_path / "runs/run")
    after = run(corpus, tmp_path, WHOLE)
    assert before["artifacts"].items() <= after["artifacts"].items() and "export" in after["artifacts"]
    assert before["metrics"].items() <= after["metrics"].items()


def test_a_run_of_another_text_keeps_only_what_is_still_true(corpus: Path, tmp_path: Path) -> None:
    before = run(corpus, tmp_path, WHOLE)
    (corpus / "text.py").write_text("another text")
    found = run(corpus, tmp_path, "stages=[model]")
    assert list(found["artifacts"]) == ["model"] and list(found["metrics"]) == ["model/figure"]
    assert found["config"]["stages"] == ["model"]
    found = run(corpus, tmp_path, "stages=[tokens]")
    assert list(found["artifacts"]) == ["model", "corpus", "tokens"]
    assert found["artifacts"]["model"] == before["artifacts"]["model"]
    assert found["artifacts"]["tokens"] != before["artifacts"]["tokens"]


def test_a_run_that_fails_keeps_the_figures_that_stood_there(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs/run"
    before = run(corpus, tmp_path, "stages=[tokens]")
    broken["distill"] = RuntimeError("no luck")
    with pytest.raises(RuntimeError):
        run(corpus, tmp_path, WHOLE)
    found = read_run(folder)
    assert (found["status"], found["error"]) == ("failed", "RuntimeError: no luck")
    assert before["metrics"].items() <= found["metrics"].items()
    assert list(found["artifacts"]) == ["model", "corpus", "tokens", "evaluate_original"]
    del broken["distill"]
    assert run(corpus, tmp_path, WHOLE)["status"] == "finished"


def test_what_a_run_was_run_with(corpus: Path, tmp_path: Path) -> None:
    about = run(corpus, tmp_path, "seed=7", WHOLE)["about"]
    assert (about["seed"], about["model"], about["processes"]) == (7, "tiny", 1)
    assert about["kldistill"]["version"] and about["packages"]["torch"] and about["device"]["kind"] == "cpu"
    assert about["host"]["cores"] >= 1 and about["host"]["memory_bytes"] > 1e8 and about["threads"] >= 1
    assert about["started"] <= about["ended"]
    assert list(about["seconds"]) == list(light_steps(typed(corpus, tmp_path)))
    assert all(0 <= seconds < 60 for seconds in about["seconds"].values())


# ---- one run at a time


def hold(folder: Path, ready: Any) -> None:
    with held(folder):
        ready.set()
        time.sleep(600)  # until it is killed


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Any]:
    """Another process that holds the folder ``runs/run``."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "runs/run", ready))
    process.start()
    assert ready.wait(PATIENCE)
    yield process
    process.kill()
    process.join(PATIENCE)


def test_a_second_run_in_a_folder_says_who_holds_it_and_stops(corpus: Path, tmp_path: Path, holder: Any) -> None:
    folder = tmp_path / "runs/run"
    (folder / "metrics.jsonl").write_text('{"half of a line that is being wri')
    (folder / "run.json").write_text('{"status": "running"}')
    with pytest.raises(FolderInUseError) as caught:
        run(corpus, tmp_path, "stages=[model]")
    said = str(caught.value)
    assert f"{folder} is in use by process {holder.pid} on " in said and "hydra.run.dir=FOLDER" in said
    assert read_run(folder) == {"status": "running"}, "the other's"
    assert (folder / "metrics.jsonl").read_text() == '{"half of a line that is being wri', "not truncated"
    assert not (tmp_path / "artifacts").exists()


def test_a_dead_holder_holds_nothing(corpus: Path, tmp_path: Path, holder: Any) -> None:
    holder.kill()
    holder.join(PATIENCE)
    folder = tmp_path / "runs/run"
    assert (folder / ".lock").exists() and (folder / ".holder.json").exists(), "left by the dead"
    assert run(corpus, tmp_path, "stages=[model]")["status"] == "finished"
    assert not [path for path in folder.iterdir() if path.name in (".holder.json", ".spare")]


def write_often(path: Path, text: str) -> None:
    for _ in range(100):
        write_text(path, text * 1000)


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = tmp_path / "run.json"
    (tmp_path / ".run.json.4194305-1.tmp").write_text("of a writer that was killed")  # no such process
    writers = [context.Process(target=write_often, args=(path, letter)) for letter in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert path.read_text() in {letter * 1000 for letter in "abc"}
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays"


def test_a_refused_narrower_run_of_a_sweep_takes_nothing_away(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    asked_now = config(overrides_of(corpus, tmp_path, "stages=[tokens]"))
    asked = {**resolved(compose.typed(asked_now)), "stages": ["tokens", "distill", "report"]}
    before = {"status": "finished", "config": asked, "artifacts": {"a": "b"}, "metrics": {"x": 1}}
    (folder / "run.json").write_text(json.dumps(before))
    mark_failed(folder, asked_now, ValueError("refused"))
    after = read_run(folder)
    assert (after["status"], after["error"]) == ("finished", "ValueError: refused")
    assert (after["artifacts"], after["metrics"]) == ({"a": "b"}, {"x": 1})


# ---- what messages advise


def test_single_steps_can_be_named_as_run_json_names_them(corpus: Path, tmp_path: Path) -> None:
    cfg = compose.typed(config(overrides_of(corpus, tmp_path, "eval.suites=[completion]", "finetune=rows")))
    for name in steps_of(cfg):
        check(replace(cfg, force=[name]))
        check(replace(cfg, stages=[name]))
    with pytest.raises(ConfigError, match=r"force=\['generate_original_mbpp'\]: stages are model, .*tasks_completion"):
        check(replace(cfg, force=["generate_original_mbpp"]))


def test_what_the_message_about_a_damaged_artifact_advises_works(corpus: Path, tmp_path: Path) -> None:
    found = run(corpus, tmp_path, WHOLE)
    for name in ("evaluate_original", "distill"):
        artifact = tmp_path / "runs/run" / found["artifacts"][name]
        (artifact / "made.txt").write_text("damaged")
        with pytest.raises(ArtifactError, match=rf"force=\[{name}\] rebuilds it"):
            run(corpus, tmp_path, WHOLE)
        assert run(corpus, tmp_path, WHOLE, f"force=[{name}]")["status"] == "finished"
        assert (artifact / "made.txt").read_text() != "damaged"


FAULTS = {
    errno.ENOSPC: "no space is left there: free some, or name another place with outputs=FOLDER",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied: change its permissions",
    errno.EDQUOT: "the quota is used up",
}


@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_of_the_disk_names_stage_file_and_way_out(number: int, corpus: Path, tmp_path: Path) -> None:
    broken["model"] = OSError(number, os.strerror(number), "/data/model.bin")
    with pytest.raises(StorageError) as caught:
        run(corpus, tmp_path, "stages=[model]")
    assert str(caught.value).startswith(f"model: /data/model.bin: {FAULTS[number]}")
    found = read_run(tmp_path / "runs/run")
    assert found["status"] == "failed" and found["error"] == f"StorageError: {caught.value}"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        OSError("125000 requested and 4096 written"),  # numpy
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),  # of copying a folder
    ],
    ids=["Rust", "numpy", "shutil"],
)
def test_a_full_disk_is_known_by_what_libraries_say_too(error: Exception, corpus: Path, tmp_path: Path) -> None:
    broken["model"] = error
    with pytest.raises(StorageError, match="model: no space is left there"):
        run(corpus, tmp_path, "stages=[model]")


def test_an_error_that_is_clear_already_stays_as_it_is(corpus: Path, tmp_path: Path) -> None:
    broken["model"] = ModelError("the model cannot be read")
    broken["model"].__cause__ = PermissionError(errno.EACCES, "Permission denied", "/data/model.bin")
    with pytest.raises(ModelError, match="the model cannot be read"):
        run(corpus, tmp_path, "stages=[model]")


def test_a_folder_where_the_lock_should_be_is_named(corpus: Path, tmp_path: Path) -> None:
    name = Path(run(corpus, tmp_path / "first", "stages=[model]")["artifacts"]["model"]).name
    (tmp_path / f"artifacts/model/{name}.lock").mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"model: .*{name}\.lock: a folder is where a file should be: move it away"):
        run(corpus, tmp_path, "stages=[model]")


def test_a_file_where_a_partial_folder_should_be_is_replaced(tmp_path: Path) -> None:
    from kldistill.runtime.artifacts import Store

    (tmp_path / "distill").mkdir()
    (tmp_path / "distill/0123456789abcdef.partial").write_text("a file")

    def build(out: Path) -> None:
        (out / "rows").write_text("rows")

    made = Store(tmp_path).build("distill", "0123456789abcdef", build, meta={}, resumable=True)
    assert (made / "rows").read_text() == "rows"


FULL = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from kldistill.runtime.faults import held
from kldistill.pipeline.run_record import RunRecord, run_record
folder = Path(sys.argv[1])
with held(folder):
    record = RunRecord(folder, {{}}, {{"stages": [], "text": "x" * 3900}}, {{}}, {{}})
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            full = error
    record.failed(full)
    assert run_record(folder)["status"] == "failed", run_record(folder)
"""


@ROOT_ON_LINUX
def test_run_json_says_failed_on_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=512) as disk:
        program = FULL.format(root=str(ROOT))
        command = [python(), "-c", program, disk.folder / "run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert json.loads((disk.folder / "run/run.json").read_text())["error"].startswith("OSError: [Errno 28]")


@pytest.mark.parametrize("where", ["run.json", "the pictures of its end"])
def test_a_fault_in_the_runs_own_folder_is_told_there_as_it_is_to_the_user(
    where: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that is of no stage: after the first one, and after the last."""

    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "run.json":
        monkeypatch.setattr(RunRecord, "done", full)
    else:
        monkeypatch.setattr(pipeline, "_show", full)
    with pytest.raises(StorageError, match="the run's folder: no space is left there"):
        run(corpus, tmp_path, "stages=[model]")
    found = read_run(tmp_path / "runs/run")
    assert found["status"] == "failed"
    assert found["error"].startswith("StorageError: the run's folder: no space is left there")
