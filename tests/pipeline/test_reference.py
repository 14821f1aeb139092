"""The reference of every key: docs/config.md is what the schemas say, and nothing is missing."""

import pytest

from kldistill.pipeline import keys, reference
from kldistill.runtime.errors import ConfigError
from tests.helpers.paths import ROOT
from tests.helpers.runs import config
from tests.helpers.scripts import script


def test_the_document_is_current() -> None:
    current = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert current == script("config_reference").text(), "run: python scripts/config_reference.py"


def test_every_key_of_every_choice_is_there_and_says_what_it_means() -> None:
    found = {entry.key: entry for group in reference.groups() for entry in reference.entries(group)}
    composed = set()
    for overrides in (
        ["corpus=python_package", "model=smollm2_135m", "finetune=lora"],
        ["corpus=local_files", "corpus.path=x", "model=hf", "model.path=x"],
        ["corpus=hf_dataset", "corpus.path=x", "model=tiny"],
    ):
        composed |= set(keys.known_keys(config(overrides)))
    # What a component is given follows from other keys; a loss stands under the name of its term.
    inner = (
        *("corpus.source.", "corpus.general.", "corpus.general_code.", "init.input.", "init.output."),
        *("loss.terms.", "finetune.loss.", "model._target_"),
    )
    wanted = {key for key in composed if not key.startswith(inner) and not key.endswith("._target_")}
    assert wanted - set(found) == set()
    assert {"loss.terms.NAME.function", "loss.terms.NAME.weight", "init.input", "corpus.source"} <= set(found)
    assert [key for key, entry in found.items() if not entry.meaning] == []
    assert found["tokens.boundary"].choices == ("auto", "word", "identifier", "dotted", "qualified", "line")
    assert "attention_mask" in found["tokens.boundary"].meaning
    assert (found["distill.lr"].default, found["distill.lr"].type) == ("0.015", "number")
    assert found["eval.limits.memory_bytes"].unit == "bytes"
    assert found["model.path"].default == "(needed)"


def test_every_preset_says_what_it_is() -> None:
    for group in [*reference.groups(), "experiment", "hydra/launcher"]:
        for name, text in reference.presets(group).items():
            assert text, f"conf/{group}/{name}.yaml has no comment on its first line"


def test_help_names_every_group_and_choice_and_one_groups_keys() -> None:
    text = reference.overview()
    for group in [*(name for name in reference.groups() if reference.presets(name)), "experiment", "hydra/launcher"]:
        assert f"{group}=" in text
        assert all(name in text for name in reference.presets(group))
    assert "kl_ce_light*" in text and "docs/config.md" in text
    assert len(text.splitlines()) < 60
    told = reference.told("distill")
    assert "distill.lr=0.015" in told and "cosine | linear | constant_with_warmup" in told
    with pytest.raises(ConfigError, match=r"'distil': there is no such group\. Groups are general, runtime, model"):
        reference.told("distil")
