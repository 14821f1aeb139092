import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kldistill.runtime import artifacts
from kldistill.runtime.artifacts import MANIFEST, Store, fingerprint, manifest, verify
from kldistill.runtime.errors import ArtifactError
from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE

META = {"version": 1, "config": {"n": 3}, "inputs": {"corpus": "c0"}}
FP = "0123456789abcdef"

# Run in a process of its own: builds one artifact, telling the test by files what it is doing.
CHILD = """
import os, sys, time
from pathlib import Path
from kldistill.runtime.artifacts import Store

root, name, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def wait_for(path):
    while not path.exists():
        time.sleep(0.01)

def builder(out):
    with open(root / "built.txt", "a") as file:
        file.write(name + "\\n")
    (out / f"{name}.bin").write_bytes(b"x" * 1000)
    if mode == "fork" and os.fork() == 0:
        (root / "orphan.txt").write_text(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    (root / "half.txt").write_text("")
    if mode in ("hang", "fork"):
        time.sleep(60)
    if mode == "gate":
        wait_for(root / "go.txt")
    (out / "whole.txt").write_text(name)

Store(root, say=lambda text: print(text, flush=True)).build(
    "stage", "0123456789abcdef", builder, meta={}, resumable=sys.argv[4] == "resumable")
print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def forget() -> None:
    artifacts._verified.clear()


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def start(
    children: list[subprocess.Popen[str]], root: Path, name: str, mode: str, resumable: bool = False
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(root), name, mode, "resumable" if resumable else "anew"]
    package = str(ROOT)
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": package})
    children.append(child)
    return child


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the other process did not get there"
        time.sleep(0.01)


def two_files(out: Path) -> None:
    (out / "rows.bin").write_bytes(bytes(range(256)) * 20)
    (out / "tokenizer").mkdir(exist_ok=True)
    (out / "tokenizer" / "vocab.json").write_text('{"a": 1}')


def never(out: Path) -> None:
    raise AssertionError("must not be built again")


# Fingerprints


def test_the_disk_has_all_bytes_before_the_seal_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    rename = os.rename

    def renamed(source: Path, target: Path) -> None:
        events.append("renamed")
        rename(source, target)

    def builder(out: Path) -> None:
        (out / "sub").mkdir()
        (out / "sub" / "deep.bin").write_bytes(b"x")
        (out / "flat.bin").write_bytes(b"y")

    monkeypatch.setattr(os, "fsync", lambda file: events.append(os.fstat(file).st_ino))
    monkeypatch.setattr(os, "rename", renamed)
    made = Store(tmp_path).build("stage", FP, builder, meta=META)
    sealed = events.index("renamed")
    everything = [made, *made.rglob("*")]
    assert len(everything) == 5
    assert {path.stat().st_ino for path in everything} <= set(events[:sealed])
    assert made.stat().st_ino in events[sealed + 1 :], "and the seal's own name"


def test_fingerprint_is_short_stable_and_blind_to_key_order() -> None:
    one = fingerprint("tokens", 1, {"a": 1, "b": [1, None, "ü"]}, {"corpus": "c", "model": "m"})
    assert one == fingerprint("tokens", 1, {"b": [1, None, "ü"], "a": 1}, {"model": "m", "corpus": "c"})
    assert len(one) == 16
    assert int(one, 16) >= 0


def test_fingerprint_changes_with_everything_that_goes_in() -> None:
    base = ("tokens", 1, {"a": {"b": 1}}, {"corpus": "c"})
    others = [
        ("init", 1, {"a": {"b": 1}}, {"corpus": "c"}),
        ("tokens", 2, {"a": {"b": 1}}, {"corpus": "c"}),
        ("tokens", 1, {"a": {"b": 2}}, {"corpus": "c"}),
        ("tokens", 1, {"a": {"b": "1"}}, {"corpus": "c"}),
        ("tokens", 1, {"a": {"b": 1}, "c": None}, {"corpus": "c"}),
        ("tokens", 1, {"a": {"b": 1}}, {"corpus": "d"}),
        ("tokens", 1, {"a": {"b": 1}}, {"model": "c"}),
    ]
    assert len({fingerprint(*arguments) for arguments in [base, *others]}) == len(others) + 1


@pytest.mark.parametrize("value", [math.nan, math.inf, Path("x"), {1, 2}, object()])
def test_fingerprint_refuses_what_has_no_exact_form(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        fingerprint("tokens", 1, {"a": value}, {})


# Building and reusing


def test_build_then_reuse(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has("tokens", FP)
    folder = store.build("tokens", FP, two_files, meta=META)
    assert folder == store.path("tokens", FP) == tmp_path / "tokens" / FP
    assert store.has("tokens", FP)
    assert store.build("tokens", FP, never, meta=META) == folder
    content = manifest(folder)
    assert {key: content[key] for key in META} == META
    assert (content["stage"], content["fingerprint"]) == ("tokens", FP)
    assert {name: file["bytes"] for name, file in content["files"].items()} == {
        "rows.bin": 5120,
        "tokenizer/vocab.json": 8,
    }
    assert not (tmp_path / "tokens" / f"{FP}.partial").exists()


def test_files_are_read_once_when_built_and_once_per_process_when_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = artifacts.hashlib.file_digest
    monkeypatch.setattr(artifacts.hashlib, "file_digest", lambda file, kind: (read.append(kind), digest(file, kind))[1])
    store = Store(tmp_path)
    folder = store.build("tokens", FP, two_files, meta=META)
    store.build("tokens", FP, never, meta=META)
    assert len(read) == 2
    artifacts._verified.clear()  # as in another process
    store.build("tokens", FP, never, meta=META)
    verify(folder)
    assert len(read) == 4


@pytest.mark.parametrize("resumable", [False, True])
def test_builder_that_raises_leaves_no_artifact_and_a_free_lock(tmp_path: Path, resumable: bool) -> None:
    def broken(out: Path) -> None:
        (out / "half.bin").write_bytes(b"half")
        raise RuntimeError("boom")

    store = Store(tmp_path, say=lambda text: pytest.fail("must not wait"))
    with pytest.raises(RuntimeError, match="boom"):
        store.build("tokens", FP, broken, meta=META, resumable=resumable)
    assert not store.has("tokens", FP)
    assert (tmp_path / "tokens" / f"{FP}.partial").exists() == resumable
    store.build("tokens", FP, two_files, meta=META)
    assert "half.bin" not in manifest(store.path("tokens", FP))["files"]


def test_meta_that_cannot_be_recorded_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Store(tmp_path).build("tokens", FP, never, meta={"config": Path("x")})


def test_force_builds_anew_and_keeps_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.build("tokens", FP, two_files, meta=META)

    def broken(out: Path) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.build("tokens", FP, broken, meta=META, force=True)
    verify(folder)

    def other(out: Path) -> None:
        assert (folder / "rows.bin").exists()
        (out / "other.txt").write_text("other")

    store.build("tokens", FP, other, meta=META, force=True)
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "other.txt"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [FP, f"{FP}.lock"]


def test_partial_is_kept_for_a_resumable_build_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    partial = tmp_path / "distill" / f"{FP}.partial"

    def interrupted(out: Path) -> None:
        (out / "checkpoint").write_text("step 20")
        raise KeyboardInterrupt

    def resume(out: Path) -> None:
        assert (out / "checkpoint").read_text() == "step 20"
        (out / "checkpoint").rename(out / "rows")

    def anew(out: Path) -> None:
        assert list(out.iterdir()) == []
        (out / "rows").write_text("anew")

    with pytest.raises(KeyboardInterrupt):
        store.build("distill", FP, interrupted, meta=META, resumable=True)
    assert (partial / "checkpoint").exists()
    folder = store.build("distill", FP, resume, meta=META, resumable=True)
    assert (folder / "rows").read_text() == "step 20"
    with pytest.raises(KeyboardInterrupt):
        store.build("distill", FP, interrupted, meta=META, resumable=True, force=True)
    store.build("distill", FP, anew, meta=META, resumable=True, force=True)
    assert (folder / "rows").read_text() == "anew"


def test_killed_between_sealing_and_renaming_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.build("tokens", FP, two_files, meta=META)
    folder.rename(folder.with_name(f"{FP}.partial"))
    artifacts._verified.clear()
    assert store.build("tokens", FP, never, meta=META) == folder
    verify(folder)


def test_killed_while_sealing_a_resumable_build(tmp_path: Path) -> None:
    partial = tmp_path / "distill" / f"{FP}.partial"
    partial.mkdir(parents=True)
    two_files(partial)
    (partial / f".{MANIFEST}").write_text('{"half')
    folder = Store(tmp_path).build("distill", FP, lambda out: None, meta=META, resumable=True)
    artifacts._verified.clear()
    verify(folder)
    assert f".{MANIFEST}" not in manifest(folder)["files"], "what was half written is no part of it"


# Damage


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damage_grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def damage_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_linked(path: Path) -> None:
    path.rename(path.parent.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent.parent / "elsewhere")


@pytest.mark.parametrize("another_process", [False, True])
@pytest.mark.parametrize("name", ["rows.bin", "tokenizer/vocab.json", MANIFEST])
@pytest.mark.parametrize(
    "damage", [damage_missing, damage_truncated, damage_grown, damage_flipped, damage_linked], ids=lambda f: f.__name__
)
def test_damage_is_found_and_named_and_force_mends_it(
    tmp_path: Path, damage: Callable[[Path], None], name: str, another_process: bool
) -> None:
    store = Store(tmp_path)
    folder = store.build("tokens", FP, two_files, meta=META)
    damage(folder / name)
    if name == MANIFEST and damage is damage_truncated:
        damage(folder / name)  # the first byte cut was the newline at the end
    if another_process:
        artifacts._verified.clear()
    for _ in range(2):
        with pytest.raises(ArtifactError) as caught:
            store.build("tokens", FP, never, meta=META)
        assert str(folder / name) in str(caught.value)
        assert "force=[tokens]" in str(caught.value)
    store.build("tokens", FP, two_files, meta=META, force=True)
    artifacts._verified.clear()
    verify(folder)


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = Store(tmp_path).build("tokens", FP, two_files, meta=META)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    rng = random.Random(0)
    for _ in range(300):
        path = rng.choice(paths)
        whole = path.read_bytes()
        torn = bytearray(whole)
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
        path.write_bytes(torn)
        artifacts._verified.clear()
        with pytest.raises(ArtifactError, match=path.name):
            verify(folder)
        path.write_bytes(whole)
    verify(folder)


def test_a_file_that_the_build_did_not_write_is_named(tmp_path: Path) -> None:
    folder = Store(tmp_path).build("tokens", FP, two_files, meta=META)
    (folder / ".nfs0001").write_text("left by the file system")
    verify(folder)
    (folder / "tokenizer" / "chat_template.jinja").write_text("would be loaded")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja was not written by the build"):
        verify(folder)


def test_a_renamed_artifact_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.build("tokens", FP, two_files, meta=META).rename(store.path("tokens", "f" * 16))
    with pytest.raises(ArtifactError, match="renamed"):
        store.build("tokens", "f" * 16, never, meta=META)


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")

    def links(out: Path) -> None:
        (out / "folder").symlink_to(outside)

    store = Store(tmp_path / "root")
    with pytest.raises(ArtifactError, match="folder: an artifact holds plain files only"):
        store.build("tokens", FP, links, meta=META)
    partial = tmp_path / "root" / "tokens" / f"{FP}.partial"
    partial.symlink_to(outside)
    folder = store.build("tokens", FP, two_files, meta=META, resumable=True)
    assert (outside / "precious.txt").read_text() == "precious"
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="symbolic link"):
        store.build("tokens", FP, never, meta=META)
    store.build("tokens", FP, two_files, meta=META, force=True)
    assert (tmp_path / "moved" / "rows.bin").exists()


# Other processes


@pytest.mark.parametrize("resumable", [False, True])
def test_killed_in_the_middle_then_built_again(
    tmp_path: Path, children: list[subprocess.Popen[str]], resumable: bool
) -> None:
    child = start(children, tmp_path, "first", "hang", resumable)
    until((tmp_path / "half.txt").exists)
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = Store(tmp_path, say=lambda text: pytest.fail("the dead process must hold no lock"))
    assert not store.has("stage", FP)
    assert (tmp_path / "stage" / f"{FP}.partial" / "first.bin").exists()
    folder = store.build("stage", FP, two_files, meta=META, resumable=resumable)
    assert ("first.bin" in manifest(folder)["files"]) == resumable
    artifacts._verified.clear()
    verify(folder)


def test_a_forked_worker_that_outlives_its_killed_parent_holds_no_lock(
    tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    child = start(children, tmp_path, "first", "fork")
    until(lambda: (tmp_path / "half.txt").exists() and (tmp_path / "orphan.txt").exists())
    until(lambda: (tmp_path / "orphan.txt").read_text() != "")
    child.send_signal(signal.SIGKILL)
    child.wait()
    orphan = int((tmp_path / "orphan.txt").read_text())
    try:
        os.kill(orphan, 0)  # it lives
        store = Store(tmp_path, say=lambda text: pytest.fail("the dead process must hold no lock"))
        assert store.build("stage", FP, two_files, meta=META) == store.path("stage", FP)
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_second_process_waits_and_the_builder_runs_once(tmp_path: Path, children: list[subprocess.Popen[str]]) -> None:
    first = start(children, tmp_path, "first", "gate")
    until((tmp_path / "half.txt").exists)
    second = start(children, tmp_path, "second", "gate")
    assert second.stdout is not None
    said = second.stdout.readline()
    assert said.startswith("Waiting for another process that is building stage")
    time.sleep(0.2)
    assert second.poll() is None
    (tmp_path / "go.txt").write_text("")
    assert first.communicate(timeout=PATIENCE)[0] == "done\n"
    assert second.communicate(timeout=PATIENCE)[0] == "done\n"
    assert (tmp_path / "built.txt").read_text() == "first\n"
    folder = Store(tmp_path).path("stage", FP)
    verify(folder)
    assert (folder / "whole.txt").read_text() == "first"


def test_waiting_process_takes_over_from_a_killed_one(tmp_path: Path, children: list[subprocess.Popen[str]]) -> None:
    first = start(children, tmp_path, "first", "hang")
    until((tmp_path / "half.txt").exists)
    second = start(children, tmp_path, "second", "whole")
    assert second.stdout is not None
    second.stdout.readline()
    first.send_signal(signal.SIGKILL)
    assert second.communicate(timeout=PATIENCE)[0] == "done\n"
    assert json.loads((Store(tmp_path).path("stage", FP) / MANIFEST).read_text())["files"].keys() == {
        "second.bin",
        "whole.txt",
    }
