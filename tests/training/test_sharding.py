"""Several processes that share a model's layers compute what one process does."""

import json
from pathlib import Path

import pytest

from kldistill.rows.rows import Rows
from kldistill.runtime.config import RuntimeConfig
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.interpreter import python
from tests.helpers.launched import together
from tests.helpers.paths import HELPERS
from tests.helpers.setting import make_inputs
from tests.helpers.sharding_driver import CASES, work


def test_two_processes_with_half_of_the_layers_each_give_what_one_gives(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    source = tiny_model(tied=False)
    folders = make_inputs(source, fake_tokens(source), tmp_path / "inputs", tied=False)
    alone = work(folders, tmp_path / "one", RuntimeConfig(device="cpu", threads=1))
    named = json.dumps({name: str(folder) for name, folder in folders.items()})
    driver = [python(), HELPERS / "sharding_driver.py", named, tmp_path / "two"]
    ends = together(driver, *([str(rank)] for rank in range(2)))
    assert [code for _, code in ends] == [0, 0], ends
    told = [json.loads((tmp_path / "two" / f"told{rank}.json").read_text()) for rank in range(2)]
    for rank in range(2):
        assert told[rank]["held"] == pytest.approx([0.5] * len(CASES), abs=0.02), "half of the layers, in every case"
    found = told[0]["found"]
    assert found.keys() == alone.keys()
    for case in CASES:
        assert len(alone[f"{case}/loss"]) == 4 and len(alone[f"{case}/validation_kl_to_teacher"]) == 3
    for name, values in alone.items():
        assert found[name] == pytest.approx(values, rel=2e-5, abs=1e-6), name
    rows = [Rows.load(tmp_path / of / "lora").input for of in ("one", "two")]
    assert (rows[0] - rows[1]).abs().max() < 1e-4
