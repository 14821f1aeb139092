"""The built wheel works outside the checkout, presets included."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import interpreter
from tests.helpers.paths import ROOT
from tests.helpers.patience import PATIENCE

PROGRAM = """
import json, sys
from hydra import compose as hydra_compose, initialize_config_dir
from kldistill.pipeline import compose
from kldistill.pipeline.checks import check
compose.register()
with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
    cfg = compose.typed(hydra_compose("config", overrides=sys.argv[1:]))
check(cfg)
print(json.dumps([str(compose.conf_folder()), compose.__file__, cfg.distill.steps, cfg.corpus.max_bytes]))
"""


def python(*arguments: str | Path, folder: Path, path: Path | None = None) -> str:
    """Output of an interpreter in ``folder``, without the checkout on its path; its errors fail the test.

    It is one that has loaded the packages that kldistill needs, where it runs what was installed at ``path``.
    """
    executable = sys.executable if path is None else interpreter.python()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [executable, *map(str, arguments)], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into."""
    folder = tmp_path_factory.mktemp("site")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel, folder=folder)
    return folder


def test_the_wheel_holds_the_package_and_every_preset(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"kldistill/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    for path in (ROOT / "kldistill").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "kldistill").rglob("templates/*"):
        assert path.relative_to(ROOT).as_posix() in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"kldistill"}, "and nothing else"
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "kldistill = kldistill.pipeline.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()


def test_an_installed_package_composes_and_checks_its_own_presets(installed: Path, tmp_path: Path) -> None:
    shown = python("-c", PROGRAM, "experiment=quickstart", "distill.steps=7", folder=tmp_path, path=installed)
    conf, module, steps, size = json.loads(shown.strip().splitlines()[-1])
    assert Path(conf) == installed / "kldistill/conf"
    assert Path(module) == installed / "kldistill/pipeline/compose.py"
    assert (steps, size) == (7, 5_000_000)


def test_the_command_of_an_installed_package_works(installed: Path, tmp_path: Path) -> None:
    shown = python("-m", "kldistill", "experiment=smoke", "--cfg", "job", folder=tmp_path, path=installed)
    assert "n_new: 32" in shown
    assert not list(tmp_path.iterdir())
