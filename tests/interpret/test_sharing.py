"""Several processes that share the stage ``interpret`` find what one does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.job import Job
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.interpreted import SHARED, run, write_corpus, write_rows
from tests.helpers.interpreter import python
from tests.helpers.launched import together
from tests.helpers.paths import HELPERS


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON document, with its place in it."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if items is None:
        yield name, content
    for key, value in items or ():
        yield from leaves(value, f"{name}/{key}")


def written(folder: Path) -> dict[str, Any]:
    """All that the stage wrote into its JSON files."""
    found = {name: json.loads((folder / name).read_text()) for name in ("interpret.json", "summary.json")}
    for name in ("new_tokens.jsonl", "completions.jsonl"):
        found[name] = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return dict(leaves(found))


def test_two_processes_share_the_texts_and_find_what_one_finds(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    """Also where one of them alone meets a model that cannot be measured: then it is left out in both."""
    model = tiny_model()
    rows = {name: write_rows(model, tmp_path / name, 24, seed) for seed, name in enumerate(("init", "rows"))}
    inputs = {"model": model, "tokens": fake_tokens(model), "corpus": write_corpus(tmp_path), **rows}
    run(inputs, tmp_path / "alone", Job(RuntimeConfig(device="cpu", threads=1)), **SHARED)
    named = json.dumps({name: str(folder) for name, folder in inputs.items()})
    driver = [python(), HELPERS / "interpret_driver.py", named, tmp_path]
    ends = together(driver, *([str(rank)] for rank in range(2)))
    assert [code for _, code in ends] == [0, 0], ends
    assert [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2)] == [3, 2]
    alone, whole = written(tmp_path / "alone"), written(tmp_path / "whole")
    assert len(alone) > 1000 and whole.keys() == alone.keys()
    for name, value in alone.items():
        assert whole[name] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), name
    refused = written(tmp_path / "refused")
    assert refused["/interpret.json/left_out/attention"] == "no attention here"
    others = {name for name in alone if "/attention/" not in name}
    assert {name for name in refused if "/attention" not in name} == others
