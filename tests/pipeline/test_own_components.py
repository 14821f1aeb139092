"""A package of the user's own, with a model, a loss, an initialisation, a source and a suite, in a run of the whole
pipeline.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from kldistill.pipeline import command, compose
from kldistill.runtime.errors import ConfigError
from tests.helpers.interpreter import python
from tests.helpers.launched import environment
from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE
from tests.helpers.runs import SMALL, write_corpus

PACKAGE = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kldistill.corpus.documents import Document, Source
from kldistill.evaluation.suites.task import Task
from kldistill.losses import kl
from kldistill.losses.facts import loss
from kldistill.model import tiny
from kldistill.runtime.components import component


@component("model", lambda width: {"width": width})
def small(out, width: int, say=print):
    return tiny.build(out, hidden_size=width)


@loss(exact_pieces=True)
def half_kl(student_logits, teacher_logits, alignment, factor: float = 0.5):
    return factor * kl(student_logits, teacher_logits, alignment)


@component("init")
def ones(old_rows, pieces, generator, value: float = 1.0):
    return old_rows.new_full((len(pieces), old_rows.shape[1]), value)


@component("source")
def python_files(folder: str):
    files = sorted(Path(folder).glob("*.py"))
    read = lambda: (Document(file.name, file.read_text()) for file in files)
    return Source(read=read, identity=lambda: {"files": [file.name for file in files]})


@component("suite")
@dataclass(frozen=True)
class Echo:
    runs_code: ClassVar[bool] = False
    n: int = 2

    def tasks(self, sources):
        return [Task(f"echo/{i}", "text", f"x{i} = ", budget=8, stop=["\\n"], reference=str(i)) for i in range(self.n)]

    def identity(self):
        return {}
"""
PRESETS = {
    "model/mine.yaml": """
_target_: mypkg.small
name: mine
width: 40
""",
    "loss/half_kl.yaml": """
name: half_kl
terms:
  half_kl:
    function:
      _target_: mypkg.half_kl
      factor: 0.25
""",
    "init/ones.yaml": """
input:
  _target_: mypkg.ones
output:
  _target_: mypkg.ones
  value: 2.0
""",
    "eval/suite/echo.yaml": """
_target_: mypkg.Echo
n: 3
""",
    "corpus/mine.yaml": """
source:
  _target_: mypkg.python_files
  folder: text
general:
  _target_: kldistill.corpus.prose.package_docs
  packages: [rich]
  requirements: false
""",
    "experiment/trusting.yaml": """
# @package _global_
runtime:
  trust: [mypkg]
""",
    "experiment/sweeping.yaml": """
# @package _global_
hydra:
  sweeper:
    params:
      +runtime.trust: "[mypkg]"
""",
    "experiment/calling.yaml": """
# @package _global_
hydra:
  callbacks:
    evil:
      _target_: os.getcwd
""",
}


@pytest.fixture(autouse=True)
def nobodys_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test made known of a folder of presets is forgotten: Hydra's store is of the whole process."""
    monkeypatch.setattr(compose, "_own", [])
    yield
    monkeypatch.undo()
    compose.register()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the path with the package in it, not installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "mypkg.py").write_text(PACKAGE)
    for name, text in PRESETS.items():
        (tmp_path / "my" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return folder


def install(folder: Path) -> None:
    """What pip writes beside a package that has an entry point of ours."""
    info = folder / "mypkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kldistill.components]\nmypkg = mypkg\n")


def command_line(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    # A corpus of one's own need not have the second general text that the package's presets bring.
    small = [word for word in SMALL if not word.startswith("corpus/general_code=")]
    return subprocess.run(
        [python(), "-m", "kldistill", "--config-dir", "my", *small, *more],
        env=environment(PYTHONPATH=f"{folder}{os.pathsep}{ROOT}"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_components_of_an_installed_package_run_through_the_pipeline(package: Path, tmp_path: Path) -> None:
    install(package)
    write_corpus(tmp_path / "text")
    own = ["model=mine", "corpus=mine", "loss=half_kl", "init=ones", "eval.suites=[echo]"]
    done = command_line(package, *own, "stages=[evaluate]")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "outputs/runs").glob("*/*/run.json"))
    assert record["status"] == "finished"
    assert record["metrics"]["tasks/echo"] == 3
    assert record["metrics"]["model/hidden_size"] == 40
    assert record["config"]["init"]["input"] == {"_target_": "mypkg.ones"}
    assert any(name.startswith("eval/distilled/") for name in record["metrics"])


@pytest.mark.parametrize(
    "kind, at, words",
    [
        ("RuntimeError", "files = sorted(", []),  # before anything runs
        ("RuntimeError", "read = lambda: (", []),
        ("RuntimeError", "read = lambda: (", ["-m"]),
        ("CorpusError", "files = sorted(", []),
        ("CorpusError", "read = lambda: (", []),
    ],
)
def test_what_an_error_quotes_does_not_reach_the_terminal_raw(
    kind: str, at: str, words: list[str], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a fault that nobody foresaw, and of one that the user can mend."""
    monkeypatch.setenv("MY_SECRET", "s3cret-of-mine")
    fault = f"def fail():\n    raise {kind}('clear \\x1b[2J, for s3cret-of-mine')\n"
    text = PACKAGE.replace(at, at.replace("= ", "= fail() or ") if "lambda" not in at else f"{at}fail() or ")
    (package / "mypkg.py").write_text(f"from kldistill.runtime.errors import CorpusError\n{fault}{text}")
    install(package)
    write_corpus(tmp_path / "text")
    done = command_line(package, "model=mine", "corpus=mine", "stages=[corpus]", *words)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and r"clear \x1b[2J, for <MY_SECRET>" in said, said
    assert "s3cret" not in said and "\x1b" not in said
    for log in (tmp_path / "outputs").glob("runs/**/kldistill.log"):
        assert r"clear \x1b[2J" in log.read_text() and "\x1b" not in log.read_text()


def test_a_plan_knows_the_packages_own_models_alone(package: Path, tmp_path: Path) -> None:
    install(package)
    write_corpus(tmp_path / "text")
    done = command_line(package, "model=mine", "corpus=mine", "--plan")
    assert done.returncode == 1
    assert "--plan with model._target_='mypkg.small': only the package's own models are known." in done.stderr


def test_a_package_that_nobody_trusts_is_not_imported(package: Path, tmp_path: Path) -> None:
    (package / "mypkg.py").write_text("open('imported', 'w').close()\n" + PACKAGE)
    write_corpus(tmp_path / "text")
    done = command_line(package, "corpus.path=text", "loss=half_kl")
    assert done.returncode == 1
    assert (
        "loss.terms.half_kl.function._target_='mypkg.half_kl': only functions of kldistill may be named" in done.stderr
    )
    assert "runtime.trust=[mypkg]" in done.stderr
    assert not (tmp_path / "imported").exists() and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["experiment=trusting"], "runtime.trust: comes from a file"),
        (["-m", "experiment=sweeping"], "runtime.trust: comes from a file"),
        (["experiment=calling"], "hydra.callbacks.evil._target_='os.getcwd': a configuration may not name this here"),
        (["runtime.trust=[os.path]"], "runtime.trust='os.path': name packages as they are imported"),
        (["runtime.trust=${stages}"], "runtime.trust: comes from a file"),
    ],
)
def test_trust_is_the_users_own_word(package: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        command.inspect(["--config-dir", "my", *words])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["+distil.steps=3"], "distil.steps: there is no such key. Did you mean distill.steps?"),
        (["+distill.stepz=3"], "distill.stepz: there is no such key. Did you mean distill.steps?"),
        (["distill.stepz=3"], "distill.stepz: there is no such key. Did you mean distill.steps?"),
        (["++distill.stepz=3"], "distill.stepz: there is no such key. Did you mean distill.steps?"),
        (["-m", "distill.stepz=3,4"], "distill.stepz: there is no such key. Did you mean distill.steps?"),
        (["+foo=1"], "foo: there is no such key."),
        (["model.path=x"], "model.path: is a key of model=gguf and of model=hf, which the command does not choose."),
        (
            ["model=tiny", "model.revision=x"],
            "model.revision: is a key of model=hf, which the command does not choose.",
        ),
        (["~tokens.curve"], "~tokens.curve: a key of the schema always has a value, so it cannot be deleted. Set tok"),
        (["~tokens.terms"], "Set tokens.terms=null, or choose another preset of tokens (kldistill --help tokens)."),
        (["~seed=0"], "~seed=0: a key of the schema always has a value, so it cannot be deleted. Set seed=VALUE."),
        (["-m", "~eval.suites"], "~eval.suites: a key of the schema"),
        (["~tokens.curv"], "~tokens.curv: there is no such key. Did you mean tokens.curve?"),
        (["~loss.terms.kl=5"], "~loss.terms.kl=5: this is not its value. ~loss.terms.kl deletes it"),
        (["~eval/suite@eval.mbpp"], "Could not delete 'eval/suite@eval.mbpp'. No match in the defaults list of the"),
        (["corpus.path=x"], "corpus.path: is a key of corpus=hf_dataset and of corpus=local_files, which"),
        (["corpus=local_files", "corpus.pat=x"], "corpus.pat: there is no such key. Did you mean corpus.path?"),
        (
            ["+experiment=quickstart"],
            "experiment is in the configuration already, so leave the + out: experiment=quick",
        ),
        (["+loss=ce"], "+loss=ce: loss is in the configuration already, so leave the + out: loss=ce"),
        (["loss.terms.kl.teacher=false"], "loss.terms.kl.teacher: there is no such key."),
        (["corpus.glob=**/*.{ts,tsx}"], "inside those of the shell: 'corpus.glob=\"**/*.{ts,tsx}\"'"),
        (["stages=[tokens"], "stages=[tokens: Hydra cannot read this (no viable alternative at input '[tokens')."),
        (["model=hf", "model.path=https://huggingface.co/Qwen/Qwen3-0.6B/tree/main"], ": model.path=Qwen/Qwen3-0.6B"),
        (["stages=tokens"], "stages=tokens: is a list, also where it has one item: 'stages=[tokens]'"),
        (["stages=tokens", "--plan"], "stages=tokens: is a list, also where it has one item: 'stages=[tokens]'"),
        (["corpus.packages=requests"], "is a list, also where it has one item: 'corpus.packages=[requests]'"),
        (["corpus=hf_dataset", "corpus.path=json", "corpus.data_files=a.jsonl"], "'corpus.data_files=[a.jsonl]'"),
        (["quickstart"], "'quickstart': is no KEY=VALUE. Did you mean experiment=quickstart?"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder."),
        (["--config-path", "."], "--config-path takes the place of all presets"),
        (["runtime.device=tpu"], "runtime.device='tpu': is no device"),
        (["runtime.device=cuda:99"], "runtime.device='cuda:99': this machine has no accelerator"),
        (["corpus=local_files", "corpus.path=/no/where"], "corpus.path='/no/where': there is no such folder"),
        (["corpus=local_files", "corpus.path=.", "corpus.glob='*.nothing'"], "corpus.glob='*.nothing': no file below"),
        (["corpus.packages=[nosuchpackage]"], "corpus.packages: there is no installed package 'nosuchpackage'"),
        (["model=hf", "model.path=/no/where"], "model.path='/no/where': there is no such folder"),
        (["model.file=/no/where.gguf"], "model.file='/no/where.gguf': there is no such file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "cuda:99" in str(words):
        monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        command.inspect(words)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a=1", "-m", "b=2"], ["a=1", "b=2", "-m"]),
        (["a=1", "--plan", "b=2"], ["a=1", "b=2", "--plan"]),
        (["--config-dir", "my=dir", "a=1"], ["a=1", "--config-dir", "my=dir"]),
        (["--cfg", "job", "a=1", "--package", "distill"], ["a=1", "--cfg", "job", "--package", "distill"]),
        (["--info", "defaults", "a=1"], ["a=1", "--info", "defaults"]),
        (["--info", "a=1"], ["a=1", "--info"]),
        (["--help", "tokens"], ["tokens", "--help"]),
        (["~logger", "-cn", "config", "a=-1"], ["~logger", "a=-1", "-cn", "config"]),
    ],
)
def test_overrides_may_stand_on_both_sides_of_a_flag(words: list[str], expected: list[str]) -> None:
    """Of ``a=1 -m b=2`` Hydra's parser says that ``b=2`` is unknown."""
    assert command.ordered(words) == expected
    get_args_parser().parse_args([word for word in expected if word != "--plan"])
