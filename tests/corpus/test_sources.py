"""Sources: packages, files, datasets, and prose of documentation. No network."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kldistill.corpus.documents import Document, Skipped, Source
from kldistill.corpus.prose import is_prose, package_docs, prose
from kldistill.corpus.sources import hf_dataset, local_files, python_package
from kldistill.runtime.errors import CorpusError

PROSE = (
    "This is a small library that reads the files of a project and says which of them are not used by any other. "
    "It can be called from the command line, and it does not need any configuration to be of use."
)


def documents(source: Source) -> dict[str, str]:
    return {found.id: found.text for found in source.read() if isinstance(found, Document)}


def skipped(source: Source) -> dict[str, str]:
    return {found.id: found.reason for found in source.read() if isinstance(found, Skipped)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path with an installed distribution ``Demo-Tools`` of the import package ``demokit``."""
    package = tmp_path / "site" / "demokit"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "parts" / "tools.py").write_text("def tool():\n    return 1\n")
    (package / "parts" / "table.csv").write_text("1,2\n")
    (package / "GUIDE.md").write_text(f"# Guide\n\n{PROSE}\n\n```python\nimport demokit as it_is_code\n```\n")
    (package / "NOTICE.txt").write_text(PROSE)
    info = tmp_path / "site" / "demo_tools-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: Demo-Tools\nVersion: 1.5\nRequires-Dist: demo-need>=1\n"
        f"Requires-Dist: demo-extra; extra == 'more'\n\n{PROSE} It is of the first kind.\n"
    )
    names = [str(path.relative_to(tmp_path / "site")) for path in sorted(package.rglob("*")) if path.is_file()]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in [*names, f"{info.name}/METADATA"]))
    for name in ("need", "extra"):
        other = tmp_path / "site" / f"demo_{name}-1.0.dist-info"
        other.mkdir()
        (other / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: demo-{name}\nVersion: 1.0\n\n{PROSE} It is an {name} of the other.\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


class TestPythonPackage:
    def test_files_are_found_by_import_name_without_importing(self, site: Path):
        found = documents(python_package(["demokit"]))
        assert found == {
            "demokit/__init__.py": "raise RuntimeError('imported')\n",
            "demokit/parts/tools.py": "def tool():\n    return 1\n",
        }
        assert "demokit" not in sys.modules

    def test_distribution_name_part_of_a_package_and_other_suffixes(self, site: Path):
        assert documents(python_package(["Demo-Tools"])) == documents(python_package(["demokit"]))
        assert list(documents(python_package(["demokit.parts"]))) == ["demokit/parts/tools.py"]
        assert list(documents(python_package(["demokit.parts.tools"]))) == ["demokit/parts/tools.py"]
        assert list(documents(python_package(["demokit"], [".csv"]))) == ["demokit/parts/table.csv"]

    def test_standard_library(self):
        found = documents(python_package(["json", "colorsys"]))
        assert {"json/decoder.py", "colorsys.py"} <= found.keys()
        assert "JSONDecoder" in found["json/decoder.py"]
        assert python_package(["json"]).identity()["packages"]["json"].startswith("python 3.")

    @pytest.mark.parametrize("name", ["no_such_package_here", "no-such-package-here", "", "json.no_such_part"])
    def test_missing_package(self, name: str):
        with pytest.raises(CorpusError, match=r"corpus\.packages.*" + name):
            list(python_package([name]).read())
        with pytest.raises(CorpusError, match=r"corpus\.packages"):
            python_package([name]).identity()

    def test_identity_follows_version_and_content(self, site: Path):
        before = python_package(["Demo-Tools"]).identity()
        assert before["packages"] == {"Demo-Tools": "1.5"}
        assert python_package(["Demo-Tools"]).identity() == before
        json.dumps(before)
        tools = site / "demokit" / "parts" / "tools.py"
        stamp = tools.stat()
        tools.write_text("def tool():\n    return 2\n")
        os.utime(tools, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert python_package(["Demo-Tools"]).identity() != before


class TestLocalFiles:
    def test_names_hidden_folders_and_what_is_no_text(self, tmp_path: Path):
        (tmp_path / "sub").mkdir()
        (tmp_path / ".venv").mkdir()
        (tmp_path / "sub" / "b.py").write_bytes("\ufeffä = 1\r\nb = 2\rc\n".encode())
        (tmp_path / "a.py").write_text("a\n")
        (tmp_path / "c.txt").write_text("no\n")
        (tmp_path / ".venv" / "d.py").write_text("no\n")
        (tmp_path / "latin.py").write_bytes("ä".encode("latin-1"))
        (tmp_path / "zero.py").write_bytes(b"a\0b")
        source = local_files(str(tmp_path), "**/*.py")
        assert documents(source) == {"a.py": "a\n", "sub/b.py": "ä = 1\nb = 2\nc\n"}
        assert skipped(source) == {"latin.py": "not_utf8", "zero.py": "binary"}
        assert list(source.read()) == list(source.read())

    def test_what_programs_wrote_is_left_out_and_counted(self, tmp_path: Path):
        written = {
            "outputs/artifacts/export/1/tokenization.py": "outputs",
            "results/artifacts/corpus/2/a.py": "outputs",
            "results/artifacts/export/3.partial/a.py": "outputs",
            "results/runs/default/corpus=x/a.py": "outputs",
            "results/runs/sweep/a.py": "outputs",
            "mine/run/a.py": "outputs",
            "web/node_modules/x/index.py": "dependencies",
            "web/third_party/x/index.py": "dependencies",
            "vendor/x.py": "dependencies",
            "conda/lib/site-packages/x.py": "dependencies",
            "rust/target/debug/x.py": "build",
            "build/lib/mine.py": "build",
            "sub/dist/mine.py": "build",
            "env/lib/pip/__init__.py": "virtual_environment",
        }
        own = ["mine.py", "sub/other.py", "sub/building/plan.py", "sub/outputs.py", "sub/target/x.py", "sub/runs/x.py"]
        for name in [
            *written,
            *own,
            "env/pyvenv.cfg",
            "results/artifacts/corpus/2/artifact.json",
            "results/runs/default/corpus=x/.hydra/config.yaml",
            "mine/run/.hydra/config.yaml",
            "mine/run/run.json",
            "rust/target/CACHEDIR.TAG",
        ]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("a = 1\n")
        source = local_files(str(tmp_path), "**/*.py")
        assert documents(source).keys() == set(own)
        assert skipped(source) == written
        before = source.identity()
        (tmp_path / "outputs" / "artifacts" / "new.py").write_text("b = 2\n")
        assert source.identity() == before, "a run's results must not change its own corpus"

    def test_a_pattern_without_a_match_names_the_files_there_are(self, tmp_path: Path):
        for name in ("a.rs", "src/b.rs", "src/c.toml", ".hidden/d.go", "vendor/e.php"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("a\n")
        with pytest.raises(CorpusError, match=r"Most files end in \.rs \(2\), \.toml \(1\)\. .*\"\*\*/\*\.rs\""):
            local_files(str(tmp_path), "**/*.py").identity()
        with pytest.raises(CorpusError, match=r"1 match, all in folders that programs write: dependencies"):
            local_files(str(tmp_path), "**/*.php").identity()
        (tmp_path / "none").mkdir()
        with pytest.raises(CorpusError, match="there are no files at all"):
            local_files(str(tmp_path / "none"), "**/*.py").identity()

    @pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
    def test_what_git_ignores_is_left_out(self, tmp_path: Path):
        for name in ("keep.py", "made/a.py", "sub/secret.py", "sub/kept.py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("a = 1\n")
        (tmp_path / ".gitignore").write_text("made/\nsecret.py\n")
        assert len(documents(local_files(str(tmp_path), "**/*.py"))) == 4, "no repository, nothing is ignored"
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        hook = tmp_path / "ran"
        subprocess.run(["git", "-C", str(tmp_path), "config", "core.fsmonitor", f"touch {hook}; false"], check=True)
        source = local_files(str(tmp_path), "**/*.py")
        assert documents(source).keys() == {"keep.py", "sub/kept.py"}
        assert skipped(source) == {"made/a.py": "git_ignored", "sub/secret.py": "git_ignored"}
        assert documents(local_files(str(tmp_path / "sub"), "*.py")).keys() == {"kept.py"}
        assert not hook.exists(), "a repository's configuration must not run programs"

    @pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
    def test_what_each_of_several_repositories_ignores_is_left_out(self, tmp_path: Path):
        """A folder of repositories, one inside another, and a link into one."""
        for top in ("code/one", "code/two", "code/two/inner"):
            for name in ("keep.py", "src/keep.py", "src/secret.py"):
                (tmp_path / top / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / top / name).write_text("a = 1\n")
            (tmp_path / top / ".gitignore").write_text("secret.py\n")
            subprocess.run(["git", "init", "-q", str(tmp_path / top)], check=True)
        source = local_files(str(tmp_path / "code"), "**/*.py")
        tops = ("one", "two", "two/inner")
        assert documents(source).keys() == {f"{top}/{name}" for top in tops for name in ("keep.py", "src/keep.py")}
        assert skipped(source) == {f"{top}/src/secret.py": "git_ignored" for top in tops}
        (tmp_path / "link").symlink_to(tmp_path / "code" / "one" / "src")
        assert documents(local_files(str(tmp_path / "link"), "**/*.py")).keys() == {"keep.py"}

    def test_braces_name_alternatives(self, tmp_path: Path):
        for name in ("a.py", "b.md", "c.txt", "sub/d.md"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("a\n")
        assert documents(local_files(str(tmp_path), "**/*.{py,md}")).keys() == {"a.py", "b.md", "sub/d.md"}
        assert documents(local_files(str(tmp_path), "{a,c}.{py,txt}")).keys() == {"a.py", "c.txt"}

    def test_names_that_are_not_utf8_are_spelt_out(self, tmp_path: Path):
        try:
            (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text("a\n")
        except (OSError, UnicodeError):
            pytest.skip("this file system takes UTF-8 only")
        source = local_files(str(tmp_path), "*.py")
        assert documents(source) == {r"caf\xe9.py": "a\n"}
        json.dumps(source.identity(), ensure_ascii=False).encode()

    def test_other_encodings_by_their_marks(self, tmp_path: Path):
        for name, encoding in (("a.py", "utf-16"), ("b.py", "utf-32"), ("c.py", "utf-8-sig")):
            (tmp_path / name).write_bytes("ä = 1\r\n".encode(encoding))
        assert set(documents(local_files(str(tmp_path), "*.py")).values()) == {"ä = 1\n"}
        (tmp_path / "odd.py").write_bytes(b"\xff\xfea")
        assert skipped(local_files(str(tmp_path), "*.py")) == {"odd.py": "not_utf8"}

    def test_of_a_notebook_the_cells(self, tmp_path: Path):
        cells = [
            {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", "text"]},
            {"cell_type": "code", "metadata": {}, "outputs": [{"text": "no"}], "source": "x = 1\ny = 2"},
            {"cell_type": "raw", "metadata": {}, "source": "no"},
            {"cell_type": "code", "metadata": {}, "outputs": [], "source": []},
        ]
        (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
        (tmp_path / "b.ipynb").write_text("{}")
        (tmp_path / "c.ipynb").write_text("nothing")
        source = local_files(str(tmp_path), "*.ipynb")
        assert documents(source) == {"a.ipynb": "# Title\ntext\n\nx = 1\ny = 2\n\n"}
        assert skipped(source) == {"b.ipynb": "no_notebook", "c.ipynb": "no_notebook"}

    def test_a_user_that_does_not_exist(self):
        with pytest.raises(CorpusError, match=r"corpus\.path='~nobody-here/x'"):
            list(local_files("~nobody-here/x", "*.py").read())

    def test_identity_is_names_and_content(self, tmp_path: Path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.py").write_text("a\n")
        one, two = local_files(str(tmp_path / "one"), "*.py"), local_files(str(tmp_path / "two"), "*.py")
        assert one.identity() == two.identity()
        (tmp_path / "two" / "a.py").write_text("b\n")
        assert one.identity() != two.identity()
        (tmp_path / "two" / "a.py").rename(tmp_path / "two" / "b.py")
        (tmp_path / "two" / "b.py").write_text("a\n")
        assert one.identity() != two.identity()

    def test_one_file_is_a_corpus(self, tmp_path: Path):
        (tmp_path / "book.md").write_text("one\n")
        (tmp_path / "other.py").write_text("two\n")
        source = local_files(str(tmp_path / "book.md"), "**/*.py")
        assert documents(source) == {"book.md": "one\n"} and source.identity()["files"] == 1

    def test_files_of_rows_are_told_how_to_be_read_by_a_column(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        row = {"content": "def f():\n    return 1\n"}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        assert "\\n" in documents(local_files(str(tmp_path), "*.jsonl"))["rows.jsonl"], "as it stands"
        [warning] = caplog.messages
        command = warning.partition("If a column is meant: ")[2]
        with pytest.raises(CorpusError, match="is a file") as raised:
            hf_dataset(str(tmp_path / "rows.jsonl")).identity()
        assert str(raised.value).endswith(command), "the same advice"
        # What it says works as typed.
        words = dict(word.split("=", 1) for word in shlex.split(command))
        assert words.pop("corpus") == "hf_dataset" and words.pop("corpus.text_field") == "COLUMN"
        assert words.pop("corpus.path") == "json"
        files = json.loads(words.pop("corpus.data_files"))
        found = documents(hf_dataset("json", text_field="content", data_files=files))
        assert list(found.values()) == [row["content"]] and not words

    def test_errors_name_the_key(self, tmp_path: Path):
        with pytest.raises(CorpusError, match=r"corpus\.path=.*no such folder"):
            local_files(str(tmp_path / "none"), "*.py").identity()
        with pytest.raises(CorpusError, match=r"corpus\.glob='\*\.py'.*no file"):
            list(local_files(str(tmp_path), "*.py").read())
        with pytest.raises(CorpusError, match=r"corpus\.glob='/etc/\*'"):
            list(local_files(str(tmp_path), "/etc/*").read())


class TestHfDataset:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        import datasets.config

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def rows(self, tmp_path: Path) -> Path:
        path = tmp_path / "rows.jsonl"
        texts = ["first\r\ntext", "second text", None, "third\0text", "fourth text"]
        path.write_text("".join(json.dumps({"body": text, "n": n}) + "\n" for n, text in enumerate(texts)))
        return path

    @pytest.mark.parametrize("streaming", [False, True])
    def test_json(self, rows: Path, streaming: bool):
        source = hf_dataset("json", data_files=[str(rows)], text_field="body", streaming=streaming)
        assert list(documents(source).values()) == ["first\ntext", "second text", "fourth text"]
        assert skipped(source) == {"train/2": "no_text", "train/3": "binary"}
        assert len(documents(hf_dataset("json", data_files=[str(rows)], text_field="body", limit=2))) == 2

    def test_names_do_not_depend_on_the_order(self, rows: Path):
        before = documents(hf_dataset("json", data_files=[str(rows)], text_field="body", streaming=True))
        rows.write_text("".join(reversed(rows.read_text().splitlines(keepends=True))))
        assert documents(hf_dataset("json", data_files=[str(rows)], text_field="body", streaming=True)) == before

    def test_a_malformed_row_is_named(self, tmp_path: Path):
        path = tmp_path / "rows.jsonl"
        good = json.dumps({"text": "a text"}) + "\n"
        for broken, said in (
            (b'{"text": "half', "is no JSON"),
            ('{"text": "ä"}'.encode("latin-1"), "is not UTF-8"),
            (rb'{"text": "\ud83d"}', "spells half a surrogate pair"),
        ):
            path.write_bytes(good.encode() * 2 + broken + b"\n" + good.encode())
            with pytest.raises(CorpusError, match=rf"rows\.jsonl, row 3: {said}"):
                list(hf_dataset("json", data_files=[str(path)]).read())

    def test_a_text_file_is_a_document(self, tmp_path: Path):
        path = tmp_path / "all.txt"
        path.write_text("line\n" * 50)
        assert list(documents(hf_dataset("text", data_files=[str(path)])).values()) == ["line\n" * 50]

    def test_a_text_file_of_a_folder_is_a_document(self, tmp_path: Path):
        (tmp_path / "folder").mkdir()
        for name in ("a", "b"):
            (tmp_path / "folder" / f"{name}.txt").write_text(f"{name}\n\nline\n")
        source = hf_dataset(str(tmp_path / "folder"))
        before = source.identity()
        assert sorted(documents(source).values()) == ["a\n\nline\n", "b\n\nline\n"]
        assert before == source.identity()

    def test_parquet_in_a_folder(self, tmp_path: Path):
        from datasets import Dataset

        (tmp_path / "folder").mkdir()
        Dataset.from_dict({"text": ["a b c", "d e f"]}).to_parquet(tmp_path / "folder" / "train.parquet")
        source = hf_dataset(str(tmp_path / "folder"), split="train[:1]")
        assert list(documents(source).values()) == ["a b c"]

    def test_a_dataset_holds_nothing_that_kldistill_wrote(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Its own texts would be read as the data: ``datasets`` looks below the folder for files of every split."""
        home = tmp_path / "mine"
        home.mkdir()
        monkeypatch.chdir(home)
        (home / "code.jsonl").write_text(json.dumps({"text": "my text"}) + "\n")
        sources = [hf_dataset("."), hf_dataset(str(home)), hf_dataset("json", data_files=["**/*.jsonl"])]
        assert [list(documents(source).values()) for source in sources] == [["my text"]] * 3
        [before, *_] = [source.identity() for source in sources]
        partial = home / "results" / "artifacts" / "corpus" / "1.partial"
        partial.mkdir(parents=True)
        spool = partial / "spool.jsonl"
        spool.write_text(json.dumps({"text": "its text"}) + "\n")
        for source in sources:
            for look in (source.identity, lambda source=source: list(source.read())):
                with pytest.raises(CorpusError, match=r"written by kldistill itself, such as .*spool\.jsonl.*outputs="):
                    look()
        named = hf_dataset("json", data_files=["results/artifacts/corpus/1.partial/spool.jsonl"])
        assert list(documents(named).values()) == ["its text"], "as it was asked for"
        shutil.rmtree(home / "results")
        assert sources[0].identity() == before

    def test_identity(self, rows: Path):
        source = hf_dataset("json", data_files=[str(rows)], text_field="body")
        before = source.identity()
        assert source.identity() == before
        rows.write_text(rows.read_text().replace("second", "zweite"))
        assert source.identity() != before
        commit = "0123456789abcdef0123456789abcdef01234567"
        assert hf_dataset("some/dataset", revision=commit).identity() == {"commit": commit}

    @pytest.mark.parametrize("streaming", [False, True])
    def test_errors(self, rows: Path, tmp_path: Path, streaming: bool):
        files = [str(rows)]
        with pytest.raises(CorpusError, match=r"corpus\.text_field='text'.*body, n"):
            list(hf_dataset("json", data_files=files, streaming=streaming).read())
        with pytest.raises(CorpusError, match=r"split 'nope'"):
            list(hf_dataset("json", data_files=files, split="nope", streaming=streaming).read())
        with pytest.raises(CorpusError, match=r"corpus\.path='json'"):
            list(hf_dataset("json", data_files=[str(tmp_path / "none.json")], streaming=streaming).read())
        with pytest.raises(CorpusError, match=r"corpus\.path="):
            hf_dataset(str(tmp_path / "nowhere")).identity()


class TestPackageDocs:
    def test_description_and_documents_without_licences_and_code(self, site: Path):
        found = documents(package_docs(["demo-tools"]))
        assert found == {
            "demo-tools/METADATA": f"{PROSE} It is of the first kind.",
            "demo-tools/demokit/GUIDE.md": PROSE,
        }

    def test_requirements_without_extras(self, site: Path):
        names = {name.split("/")[0] for name in documents(package_docs(["demo-tools"], requirements=True))}
        assert names == {"demo-tools", "demo-need"}

    @pytest.mark.parametrize("name", ["demokit", "demo_tools", "Demo-Tools"])
    def test_exclude_by_either_name(self, site: Path, name: str):
        names = {name.split("/")[0] for name in documents(package_docs(["demo-tools"], True, exclude=[name]))}
        assert names == {"demo-need"}

    def test_every_installed_distribution(self, site: Path, monkeypatch: pytest.MonkeyPatch):
        source = package_docs([])
        names = {name.split("/")[0] for name in documents(source)}
        assert {"demo-tools", "demo-need", "demo-extra"} < names
        monkeypatch.setattr(sys, "path", [str(site)])  # few enough to be read again and again
        assert {name.split("/")[0] for name in documents(source)} == {"demo-tools", "demo-need", "demo-extra"}
        before = source.identity()
        (site / "demokit" / "GUIDE.md").write_text("changed")
        assert source.identity() != before

    def test_long_documents_are_cut_between_paragraphs(self, site: Path):
        (site / "demokit" / "GUIDE.md").write_text("\n\n".join([PROSE] * 10))
        text = documents(package_docs(["demo-tools"], max_document_bytes=3 * len(PROSE)))["demo-tools/demokit/GUIDE.md"]
        assert text == f"{PROSE}\n\n{PROSE}"

    def test_missing_distribution(self):
        with pytest.raises(CorpusError, match=r"corpus\.general\.packages.*no-such-thing"):
            list(package_docs(["no-such-thing"]).read())


class TestProse:
    @pytest.mark.parametrize(
        "text",
        [
            "def read(path):\n    with open(path) as file:\n        lines = [line for line in file if line.strip()]\n"
            "        for number, line in enumerate(lines):\n            print(number, line)\n    return lines\n",
            "4f2a9c 88ab12 deadbeef 0f0f0f\n" * 20,
            "Dies ist ein kleines Programm, das die Dateien eines Ordners liest und die nennt, die keiner braucht.",
            "numpy scipy pandas torch jax flax optax datasets tokenizers accelerate wandb rich click typer hydra attrs",
            "Too short to be judged.",
            "",
        ],
    )
    def test_what_is_no_prose(self, text: str):
        assert not is_prose(text)
        assert prose(text, 10_000) == ""

    def test_what_is_left_out_of_a_readme(self):
        readme = (
            "[![badge](https://img.example/of/the/build/and/it/is/not/a/test.svg)](https://example.org)\n\n"
            f"<p align='center'>{PROSE}</p>\n\n"
            "~~~\nthe code is in a fence and it has as many words of the kind as a text would have, or more\n\n~~~\n\n"
            "| the | table | of | all | that | is | in | it | and | of | what | is | not | there |\n\n"
            "    the indented block is code in both of the markups that we have to read and not a text\n\n"
            "Permission is hereby granted, free of charge, to any person who has a copy of this and of all of it.\n\n"
            ">>> the_doctest.is_for(all) and not for(the) if it is so or that be with you and me as well\n"
        )
        assert prose(readme, 10_000) == PROSE

    def test_links_in_angle_brackets_and_continued_list_items_stay(self):
        text = (
            "- See the `pages <https://example.org>`_ of this project for all that it can do, and\n    for more of it."
        )
        assert prose(text, 10_000) == text
