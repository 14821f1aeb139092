"""The programs of scripts/ as modules."""

import importlib.util
from types import ModuleType

from tests.helpers.paths import ROOT


def script(name: str) -> ModuleType:
    """scripts/NAME.py, imported under a name of its own (``site.py`` has that of a module of Python)."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
