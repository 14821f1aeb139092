"""The corpus stage on small folders of files."""

import dataclasses
import importlib.metadata
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kldistill.corpus.config import CorpusConfig, HfDatasetCorpus, LocalFilesCorpus, PythonPackageCorpus
from kldistill.corpus.documents import DOMAIN_SPLITS, SPLITS, Document, read_documents
from kldistill.corpus.generated import is_generated
from kldistill.corpus.near_duplicates import jaccard, shingles
from kldistill.corpus.stage import build, identity, split_of
from kldistill.pipeline.compose import register
from kldistill.runtime.errors import ConfigError, CorpusError
from kldistill.runtime.job import Job
from tests.helpers.paths import ROOT

PRESETS = ROOT / "conf"
PROSE = "This is the text of a general kind number {}, and it is here to be read by all of those who are in need of it."


def code(rng: random.Random, lines: int = 40) -> str:
    return "".join(f"value_{rng.randrange(9_999)} = call_{rng.randrange(9_999)}(other)\n" for _ in range(lines))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """120 files of code, each unlike the others, beside 10 files of general text."""
    folder = tmp_path / "files"
    rng = random.Random(0)
    for number in range(120):
        path = folder / "code" / f"part{number % 7}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code(rng))
    (folder / "general").mkdir()
    for number in range(10):
        (folder / "general" / f"{number}.txt").write_text(PROSE.format(number) + " " + " ".join(code(rng, 3).split()))
    return folder


def config(files: Path, **changes: Any) -> CorpusConfig:
    target = "kldistill.corpus.sources.local_files"
    cfg = CorpusConfig(
        source={"_target_": target, "path": str(files / "code"), "glob": "**/*.py"},
        general={"_target_": target, "path": str(files / "general"), "glob": "**/*.txt"},
        validation=0.1,
        test=0.2,
        general_train=0.0,
    )
    return dataclasses.replace(cfg, **changes)


def built(cfg: CorpusConfig, out: Path, job: Job | None = None) -> dict[str, dict[str, str]]:
    out.mkdir()
    build(cfg, {}, out, job or Job())
    found = {split: read_documents(out, split) for split in SPLITS if (out / f"{split}.jsonl").is_file()}
    return {split: {document.id: document.text for document in documents} for split, documents in found.items()}


def names(splits: dict[str, dict[str, str]]) -> dict[str, str]:
    """Split of each domain document."""
    return {name: split for split in DOMAIN_SPLITS for name in splits[split]}


def test_every_file_is_in_one_split_with_its_text(files: Path, tmp_path: Path):
    splits = built(config(files), tmp_path / "out")
    assert sum(len(splits[split]) for split in DOMAIN_SPLITS) == len(names(splits)) == 120
    for split in DOMAIN_SPLITS:
        assert all((files / "code" / name).read_text() == text for name, text in splits[split].items())
    assert set(splits["general"]) == {f"{number}.txt" for number in range(10)}
    assert 70 <= len(splits["train"]) <= 98
    assert len(splits["validation"]) >= 3
    assert len(splits["test"]) >= 10


def test_artifact_is_the_same_bytes_when_built_again(files: Path, tmp_path: Path):
    built(config(files), tmp_path / "one")
    built(config(files), tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_seed_changes_the_split_and_other_documents_do_not(files: Path, tmp_path: Path):
    before = names(built(config(files), tmp_path / "before"))
    assert names(built(config(files, seed=1), tmp_path / "seed")) != before
    for number in range(0, 120, 2):
        (files / "code" / f"part{number % 7}" / f"module{number}.py").unlink()
    (files / "code" / "aaa.py").write_text(code(random.Random(99)))
    after = names(built(config(files), tmp_path / "after"))
    assert len(after) == 61
    assert all(before[name] == split for name, split in after.items() if name != "aaa.py")
    assert after["aaa.py"] == split_of("aaa.py", config(files))


def test_shares_of_the_split_are_those_asked_for(files: Path):
    cfg = config(files, validation=0.05, test=0.1)
    found = [split_of(f"file{number}", cfg) for number in range(20_000)]
    assert found.count("test") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert found.count("validation") / 20_000 == pytest.approx(0.05, abs=0.01)


def test_max_bytes_keeps_a_sample_of_all_splits_that_grows_with_it(files: Path, tmp_path: Path):
    every = names(built(config(files), tmp_path / "all"))
    previous: set[tuple[str, str]] = set()
    for cap in (50_000, 80_000):
        splits = built(config(files, max_bytes=cap), tmp_path / str(cap))
        found = names(splits)
        size = sum(len(text.encode()) for split in DOMAIN_SPLITS for text in splits[split].values())
        assert cap - 2_000 < size <= cap
        assert previous < set(found.items()) < set(every.items())
        assert len({Path(name).parts[0] for name in found}) == 7, "a cap must not favour the first folders"
        previous = set(found.items())
    summary = json.loads((tmp_path / "80000" / "summary.json").read_text())
    assert summary["corpus/skipped/over_max_bytes"] == 120 - len(previous)


def test_splits_never_share_near_duplicates(files: Path, tmp_path: Path):
    rng = random.Random(5)
    for number in range(40):
        original = (files / "code" / f"part{number % 7}" / f"module{number}.py").read_text().split("\n")
        original[rng.randrange(40)] = "changed = this_line(once)"
        (files / "code" / f"copy{number}.py").write_text("\n".join(original))
    splits = built(config(files), tmp_path / "out")
    assert len(names(splits)) == 120
    held_out = [*splits["validation"].values(), *splits["test"].values()]
    worst = max(jaccard(shingles(one), shingles(two)) for one in held_out for two in splits["train"].values())
    assert worst < 0.8
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["corpus/skipped/near_duplicate"] == 40
    loose = built(config(files, near_duplicate=1.0, max_copied=1.0), tmp_path / "loose")
    assert len(names(loose)) == 160


def test_documents_of_a_folder_share_a_split(files: Path, tmp_path: Path):
    rng = random.Random(9)
    for number in range(120):
        path = files / "many" / f"folder{number // 3}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code(rng))
    source = {"_target_": "kldistill.corpus.sources.local_files", "path": str(files / "many"), "glob": "**/*.py"}
    found = names(built(config(files, source=source), tmp_path / "out"))
    by_folder: dict[str, set[str]] = {}
    for name, split in found.items():
        by_folder.setdefault(Path(name).parent.name, set()).add(split)
    assert len(by_folder) == 40 and all(len(splits) == 1 for splits in by_folder.values())
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["corpus/groups"] == 40
    single = names(built(config(files, source=source, split_by="document"), tmp_path / "single"))
    assert any(single[f"folder{n}/file{3 * n}.py"] != single[f"folder{n}/file{3 * n + 1}.py"] for n in range(40))


def test_held_out_documents_copied_from_train_are_left_out(files: Path, tmp_path: Path):
    cfg = config(files)
    before = built(cfg, tmp_path / "before")
    rng = random.Random(10)
    copied = rng.sample(sorted(before["test"]), 4) + rng.sample(sorted(before["validation"]), 2)
    for name, whole in zip(copied, sorted(before["train"]), strict=False):
        # A small file inside a large one: far from a near-duplicate, and yet all of it stands in train.
        text = (files / "code" / name).read_text()
        large = files / "code" / whole
        large.write_text(large.read_text() + code(rng) + text)
        assert jaccard(shingles(text), shingles(large.read_text())) < 0.6
    said: list[str] = []
    after = built(cfg, tmp_path / "after", Job(say=said.append))
    assert set(names(before)) - set(names(after)) == set(copied)
    told = "4 of the test split as copies of train, 2 of the validation split as copies of train"
    assert any(line.startswith("Left out of the domain text: ") and told in line for line in said)
    summary = json.loads((tmp_path / "after" / "summary.json").read_text())
    assert summary["corpus/skipped/copied_test"] == 4 and summary["corpus/skipped/copied_validation"] == 2
    assert summary["corpus/test/copied"] == summary["corpus/test/lines_copied"] == 0
    assert summary["corpus/test/copied_before"] == pytest.approx(4 / len(before["test"]), abs=0.02)
    assert names(built(dataclasses.replace(cfg, max_copied=1.0), tmp_path / "all")).keys() == names(before).keys()


def test_what_is_left_out_is_counted_by_reason_and_told(files: Path, tmp_path: Path):
    rng = random.Random(6)
    folder = files / "code"
    (folder / "binary.py").write_bytes(b"a = '\0'\n" * 20)
    (folder / "latin.py").write_bytes(("ä = 1\n" * 40).encode("latin-1"))
    cell = {"cell_type": "code", "source": ["print('\ud83d')\n"] * 9}  # half a surrogate pair
    (folder / "half.ipynb").write_text(json.dumps({"cells": [cell]}))
    (folder / "small.py").write_text("a = 1\n")
    (folder / "blank.py").write_text("\n" * 500)
    (folder / "large.py").write_text(code(rng, 2_000))
    (folder / "minified.py").write_text(code(rng, 40).replace("\n", ";") + "\n")
    (folder / "generated.py").write_text("#  This file was automatically generated from x.py.\n" + code(rng))
    (folder / "crlf.py").write_bytes(code(rng).replace("\n", "\r\n").encode())
    logged: dict[str, float] = {}
    tables: list[Any] = []
    told: list[str] = []
    job = Job(log=logged.update, table=lambda *table: tables.append(table), say=told.append)
    source = config(files).source | {"glob": "**/*.{py,ipynb}"}
    splits = built(config(files, source=source, max_document_bytes=20_000), tmp_path / "out", job)
    others = set(names(splits)) - {path.relative_to(folder).as_posix() for path in folder.glob("part*/*")}
    large = {name for name in others if name.startswith("large.py#")}
    assert others - large == {"crlf.py"}
    assert (
        "".join(splits[names(splits)[name]][name] for name in sorted(large, key=lambda name: int(name[9:])))
        == (folder / "large.py").read_text()
    )
    assert "\r" not in splits[names(splits)["crlf.py"]]["crlf.py"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    counts = {"binary": 1, "not_utf8": 2, "too_small": 2, "minified": 1, "generated": 1}
    assert {key: value for key, value in summary.items() if "skipped" in key} == {
        f"corpus/skipped/{reason}": number for reason, number in counts.items()
    }
    for split in splits:
        assert summary[f"corpus/{split}/documents"] == len(splits[split])
        assert summary[f"corpus/{split}/bytes"] == sum(len(text.encode()) for text in splits[split].values())
    assert summary["corpus/usable/documents"] == 122
    assert logged == summary
    assert [row[0] for row in tables[0][2]] == list(splits) == [*DOMAIN_SPLITS, "general"]
    assert any("2 not utf8" in line for line in told)


@pytest.mark.parametrize(
    ("line", "generated"),
    [
        ("# Generated by the protocol buffer compiler.  DO NOT EDIT!", True),
        ("// Code generated by protoc-gen-go. DO NOT EDIT.", True),
        ("#                🚨🚨 This file was automatically generated from src/x.py. Do NOT edit 🚨🚨", True),
        ("# File generated from our OpenAPI spec by a tool.", True),
        ("# THIS FILE HAS BEEN AUTOGENERATED. To update:", True),
        (" * @generated SignedSource<<1234>>", True),
        ("# This is an auto-generated file. Please do not modify it by hand.", True),
        ("/*===- TableGen'erated file -*- C++ -*-===*\\\n|* Automatically generated file, do not edit! *|\n*/", True),
        ("/*\n   Auto-generated by a tool.\n*/", True),
        ("//------\n// <auto-generated>\n//     This code was generated by a tool.", True),
        ("<!--\n  This page is generated\n  Generated by a tool\n-->", True),
        ("(*\n  Automatically generated from x.ml.\n*)", True),
        ("! This file was generated by f2py", True),
        ("/* A Bison parser, made by GNU Bison 3.8.2.  */", True),
        ("a = b /* c */\ntext = 'do not edit'", False),
        ("/* one */\nx = 'this file is generated'\n/* two */", False),
        ("def f(*args):\n    return 'do not edit'", False),
        ("// Looks at code generated by the front end", False),
        ("# This table was generated by a call to the solver", False),
        ("# Tokens are generated from the prompt", False),
        ("text = 'this file was automatically generated'", False),
        ("generated = model.generate(do_not_edit)", False),
    ],
)
def test_generated_files_say_so_in_a_comment(files: Path, tmp_path: Path, line: str, generated: bool):
    (files / "code" / "file.py").write_text('"""Doc."""\n' + line + "\n" + code(random.Random(7)))
    assert ("file.py" in names(built(config(files), tmp_path / "out"))) is not generated


@pytest.mark.parametrize(
    ("name", "line", "generated"),
    [
        ("a.md", "* Please do not edit CHANGELOG.md by hand.", False),
        ("a.md", "## Do not modify the schema", False),
        ("a.md", "<!-- This file was generated by a tool. -->", True),
        ("a.rst", ".. This file is automatically generated by a tool", True),
        ("a.py", "# Do not modify the schema", True),
    ],
)
def test_a_heading_or_an_item_of_prose_is_no_comment(name: str, line: str, generated: bool):
    assert is_generated(Document(name, f"Words.\n\n{line}\n\nMore words.\n")) is generated
    told = {"role": "system", "content": line}
    assert not is_generated(Document("train/0", line, messages=(told,)))


def test_lock_files_and_what_a_minifier_made_are_generated(files: Path, tmp_path: Path):
    made = {
        "package-lock.json",
        "web/pnpm-lock.yaml",
        "Cargo.lock",
        "go.sum",
        "app.min.js",
        "app.js.map",
        "app.min.css",
    }
    own = {"package.json", "lock.json", "summary.js", "block.css"}
    folder = tmp_path / "project"
    for number, name in enumerate([*sorted(made), *sorted(own), *(f"src/{n}.js" for n in range(60))]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code(random.Random(number)))
    source = {"_target_": "kldistill.corpus.sources.local_files", "path": str(folder), "glob": "**/*"}
    found = set(names(built(config(files, source=source, split_by="document"), tmp_path / "out")))
    assert not found & made and own <= found
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["corpus/skipped/generated"] == len(made)


def test_general_text_is_capped_and_may_have_long_lines(files: Path, tmp_path: Path):
    for number in range(3):
        (files / "general" / f"long{number}.txt").write_text(
            " ".join(code(random.Random(f"long {number}"), 60).split())
        )
    splits = built(config(files), tmp_path / "all")
    assert len(splits["general"]) == 13
    splits = built(config(files, general_max_bytes=2_000, max_document_bytes=1_900), tmp_path / "capped")
    assert 0 < sum(len(text.encode()) for text in splits["general"].values()) <= 2_000


@pytest.mark.parametrize("size", [900_000, 3_000_000])
def test_one_big_file_is_a_corpus(files: Path, tmp_path: Path, size: int):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "all.txt").write_text(text := code(random.Random(3), size // 35))
    source = {"_target_": "kldistill.corpus.sources.local_files", "path": str(folder), "glob": "*.txt"}
    splits = built(config(files, source=source, validation=0.05, test=0.1), tmp_path / "out")
    found = {name: text for split in DOMAIN_SPLITS for name, text in splits[split].items()}
    assert all(splits[split] for split in DOMAIN_SPLITS)
    ordered = sorted(found, key=lambda name: int(name.removeprefix("all.txt#")))
    assert "".join(found[name] for name in ordered) == text
    assert max(len(part) for part in found.values()) <= 0.05 * len(text) / 2


def test_prose_with_a_paragraph_a_line_is_not_minified(files: Path, tmp_path: Path):
    prose = ("long.md", "long.tex", "long.log", "long.adoc")
    for number, name in enumerate((*prose, "long.py")):
        line = " ".join(code(random.Random(f"long {number}"), 60).split()) + "\n"
        (files / "code" / name).write_text(line * 2)
    glob = "**/*.{py,md,tex,log,adoc}"
    source = {"_target_": "kldistill.corpus.sources.local_files", "path": str(files / "code"), "glob": glob}
    found = names(built(config(files, source=source), tmp_path / "out"))
    assert {name for name in found if name.startswith("long")} == set(prose)


def test_text_survives_the_artifact(files: Path, tmp_path: Path):
    text = 'odd = "\u2028 \u0085 \x0b \\ \' 😀 ﬁ"\n' * 5
    (files / "code" / "odd.py").write_text(text, newline="")
    splits = built(config(files), tmp_path / "out")
    assert splits[names(splits)["odd.py"]]["odd.py"] == text


def test_empty_splits_are_refused(files: Path, tmp_path: Path):
    def refusal(**changes: Any) -> str:
        with pytest.raises(CorpusError) as error:
            built(config(files, **changes), tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        return str(error.value)

    assert "corpus.max_bytes" in refusal(max_bytes=100)
    assert "120 too small" in refusal(min_document_bytes=50_000)
    message = refusal(validation=0.0001)
    assert "validation split is empty: 120 documents" in message
    assert "raise corpus.validation" in message and "raise corpus.max_bytes" not in message, "there is none to raise"
    assert "corpus.general_max_bytes" in refusal(general_max_bytes=10)
    code_only = {"_target_": "kldistill.corpus.sources.python_package", "packages": ["json"], "exclude": ["json"]}
    assert "corpus.general_code gave no text" in refusal(general_code=code_only)


def test_a_licence_at_the_top_of_every_file_leaves_the_splits_alone(files: Path, tmp_path: Path):
    """As in most code bases in Java, C#, Kotlin or Go: held-out files were left out for it, the small ones first."""
    before = names(built(config(files), tmp_path / "before"))
    licence = "".join(f"# word{n} of the licence that every file carries, line {n}\n" for n in range(15))
    for path in (files / "code").glob("**/*.py"):
        path.write_text(licence + path.read_text())
    assert names(built(config(files), tmp_path / "after")) == before


def test_a_split_that_is_empty_as_all_of_it_is_copied_says_so(files: Path, tmp_path: Path):
    splits = built(config(files), tmp_path / "before")
    train = sorted(splits["train"])
    for name in splits["test"]:
        path = files / "code" / name
        other = files / "code" / train.pop()
        other.write_text(other.read_text() + path.read_text() + code(random.Random(name), 10))
    with pytest.raises(
        CorpusError, match=r"The test split is empty: of each of the \d+ documents drawn.*max_copied=0.1"
    ):
        built(config(files), tmp_path / "copied")
    kept = built(config(files, max_copied=1.0), tmp_path / "kept")  # what it says to do
    assert set(kept["test"]) == set(splits["test"])


def test_only_functions_of_the_package_are_called(files: Path, tmp_path: Path):
    for target in ("os.system", "builtins.eval", None):
        with pytest.raises(ConfigError, match=r"corpus\.source\._target_.*only functions of kldistill"):
            identity(config(files, source={"_target_": target}))
    with pytest.raises(ConfigError, match=r"corpus\.source\._target_.*Source"):
        identity(config(files, source={"_target_": "kldistill.runtime.progress.count", "number": 3}))
    with pytest.raises(
        ConfigError, match=r"corpus\.source\.folder: local_files has no such setting; it has path, glob"
    ):
        identity(config(files, source={"_target_": "kldistill.corpus.sources.local_files", "folder": "x"}))


def test_identity_follows_the_content_of_both_sources(files: Path):
    seen = [identity(config(files))]
    assert identity(config(files)) == seen[0]
    assert identity(config(files, near_duplicate=1)) != seen[0], "what earlier versions made of it has fewer documents"
    json.dumps(seen[0])
    (files / "code" / "part0" / "module0.py").write_text(code(random.Random(8)))
    seen.append(identity(config(files)))
    (files / "general" / "0.txt").write_text("other")
    seen.append(identity(config(files)))
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_read_refuses_unknown_splits(tmp_path: Path):
    with pytest.raises(AssertionError, match="no split 'dev'"):
        read_documents(tmp_path, "dev")


class TestPresets:
    def compose(self, preset: str, *overrides: str) -> Any:
        register()
        with initialize_config_dir(str(PRESETS), version_base="1.3"):
            return OmegaConf.to_object(compose(f"corpus/{preset}", [*overrides]).corpus)

    def test_python_package(self, tmp_path: Path):
        cfg = self.compose("python_package", "corpus.packages=[json,email]", "corpus.max_bytes=200000")
        assert isinstance(cfg, PythonPackageCorpus)
        assert cfg.source["packages"] == cfg.general["exclude"] == ["json", "email"]
        assert cfg.source["suffixes"] == [".py"]
        assert identity(cfg)["source"]["packages"].keys() == {"json", "email"}
        splits = built(dataclasses.replace(cfg, validation=0.3, test=0.3), tmp_path / "out")
        assert all(name.startswith(("json/", "email/")) for name in names(splits))
        assert sum(map(len, splits["general"].values())) > 50_000
        assert sum(map(len, splits["general_code"].values())) > 500_000
        assert not any(name.startswith(("json/", "email/")) for name in splits["general_code"])
        versions = identity(cfg)["general"]["packages"]
        assert versions["numpy"] == importlib.metadata.version("numpy") and len(versions) == len(
            cfg.general["packages"]
        )
        assert identity(cfg)["general_code"]["packages"]["argparse"] == f"python {sys.version.split()[0]}"

    def test_another_installed_package_changes_no_preset(self):
        for preset in ("python_package", "local_files", "hf_dataset"):
            given = {"python_package": "corpus.packages=[rich]", "local_files": "corpus.path=x"}.get(
                preset, "corpus.path=x"
            )
            cfg = self.compose(preset, given)
            assert cfg.general["packages"] and not cfg.general.get("requirements")

    def test_the_second_general_text_can_be_left_out(self, files: Path, tmp_path: Path):
        cfg = self.compose("python_package", "corpus.packages=[json]", "corpus/general_code=none")
        assert identity(cfg).keys() == {"source", "general"}
        fewer = "corpus.general_max_bytes=100_000"
        cfg = self.compose("local_files", f"corpus.path={files}/code", "corpus/general_code=none", fewer)
        assert "general_code" not in built(cfg, tmp_path / "out")
        assert identity(cfg).keys() == {"source", "general"}

    def test_transformers_models(self):
        cfg = self.compose("transformers_models")
        assert (
            cfg.source["packages"] == cfg.general["exclude"] == cfg.general_code["exclude"] == ["transformers.models"]
        )
        assert cfg.max_bytes == 5_000_000

    def test_local_files(self, files: Path):
        cfg = self.compose("local_files", f"corpus.path={files}/code", 'corpus.glob="part0/*.py"')
        assert isinstance(cfg, LocalFilesCorpus)
        assert identity(cfg)["source"]["files"] == len(list(files.glob("code/part0/*.py")))

    def test_hf_dataset(self, tmp_path: Path):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            "".join(json.dumps({"body": PROSE.format(n) + code(random.Random(n))}) + "\n" for n in range(60))
        )
        cfg = self.compose(
            "hf_dataset",
            "corpus.path=json",
            f"corpus.data_files=[{rows}]",
            "corpus.text_field=body",
            "corpus.streaming=true",
            "corpus.limit=50",
            "corpus.validation=0.2",
        )
        assert isinstance(cfg, HfDatasetCorpus)
        assert cfg.max_line_length == 100_000
        splits = built(cfg, tmp_path / "out")
        assert len(names(splits)) == 50

    @pytest.mark.parametrize(
        ("preset", "overrides", "message"),
        [
            ("python_package", ["corpus.packages=[]"], r"corpus\.packages=\[\]: name installed packages"),
            ("local_files", [], r"corpus\.path=None: name the folder"),
            ("hf_dataset", [], r"corpus\.path=None: name a dataset"),
            (
                "hf_dataset",
                ["corpus.path=x", "corpus.streaming=true", "corpus.split='train[:5]'"],
                r"corpus\.split.*limit",
            ),
            ("python_package", ["corpus.test=0.7"], r"corpus\.test=0\.7"),
        ],
    )
    def test_missing_and_impossible_values(self, preset: str, overrides: list[str], message: str):
        with pytest.raises(ConfigError, match=message):
            self.compose(preset, *overrides)

    def test_misspelt_key(self):
        with pytest.raises(Exception, match="pakages"):
            self.compose("python_package", "corpus.pakages=[json]")


@pytest.mark.slow
def test_fifty_thousand_small_files_of_every_encoding(tmp_path: Path) -> None:
    """Names and contents that nobody would choose; each is a document, or is counted by why it is none."""
    folder = tmp_path / "many"
    rng = random.Random(0)
    kinds: list[tuple[str, Callable[[str], bytes], str | None]] = [
        ("utf8", lambda text: text.encode(), None),
        ("bom", lambda text: text.encode("utf-8-sig"), None),
        ("utf16", lambda text: text.encode("utf-16"), None),
        ("crlf", lambda text: text.replace("\n", "\r\n").encode(), None),
        ("latin", lambda text: (text + "# \xe9\n").encode("latin-1"), "not_utf8"),
        ("shift_jis", lambda text: (text + "# \u6a5f\u68b0\n").encode("shift_jis"), "not_utf8"),
        ("no_bom", lambda text: text.encode("utf-16-le"), "binary"),
        ("torn", lambda text: text.encode() + b"\xf0\x9f", "not_utf8"),
        ("lone", lambda text: text.encode() + b"\xed\xa0\x80", "not_utf8"),
        ("empty", lambda text: b"", "too_small"),
    ]
    odd = ["a b", "a\nb", "'q\"", "\u202edlo", "\U0001f917", "-rf", "%s", "*[x]", "{a,b}", "caf\udce9"]
    n = 50_000
    for number in range(n):
        name, encoded, _ = kinds[number % len(kinds)]
        place = folder / f"p{number % 97}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{odd[number // len(kinds) % len(odd)]}_{name}{number}.py"
        path.write_bytes(encoded(f"value_{number} = {rng.random()}\n" * 4))
    (folder / "p0" / "loop").symlink_to(folder)
    (folder / "p0" / "gone.py").symlink_to(folder / "nowhere.py")
    os.mkfifo(folder / "p0" / "pipe.py")
    (folder / "p0" / "folder.py").mkdir()
    source = {"_target_": "kldistill.corpus.sources.local_files", "path": str(folder), "glob": "**/*.py"}
    general = {"_target_": "kldistill.corpus.prose.package_docs", "packages": ["rich"], "requirements": False}
    cfg = CorpusConfig(source=source, general=general, near_duplicate=1.0, max_copied=1.0, min_document_bytes=8)
    before = identity(cfg)
    splits = built(cfg, tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    wanted = Counter(reason for _, _, reason in kinds if reason)
    for reason, number in wanted.items():
        assert summary[f"corpus/skipped/{reason}"] == number * n // len(kinds), reason
    found = [name for split in DOMAIN_SPLITS for name in splits[split]]
    assert len(found) == len(set(found)) == 4 * n // len(kinds)
    assert any("caf\\xe9" in name for name in found)
    assert identity(cfg) == before
