"""A LoRA adapter that belongs to the original model, merged into it whenever it is read."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import peft
import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file

from kldistill.model import adapter as adapters
from kldistill.model import hub
from kldistill.model import stage as model_stage
from kldistill.model.config import HfModelConfig
from kldistill.model.load import load_original, read_facts
from kldistill.runtime.errors import ModelError
from kldistill.runtime.job import Job
from tests.helpers.artifacts import MakeModel

IDS = torch.tensor([[1, 7, 30, 7, 5]])


def an_adapter(model: Path, folder: Path, whole: str | bool = False, **settings: Any) -> torch.Tensor:
    """Save an adapter of the model that changes it; the logits of the two together.

    ``whole`` says whether the embedding and head that it changes are saved too; peft's own default is ``auto``.
    """
    torch.manual_seed(0)
    asked = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    view: Any = peft.get_peft_model(load_original(model), peft.LoraConfig(**asked))
    for name, weight in view.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.3)
    view.save_pretrained(str(folder), save_embedding_layers=whole)
    with torch.no_grad():
        return view.eval()(IDS).logits


def built(out: Path, said: list[str] | None = None, **keys: Any) -> Path:
    out.mkdir(parents=True)
    model_stage.build(HfModelConfig(**keys), {}, out, Job(say=(said if said is not None else []).append))
    return out


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "use_dora": True}, {"target_modules": ["q_proj"]}])
def test_the_original_is_the_model_with_its_adapter(
    settings: dict[str, Any], tiny_model: MakeModel, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    logits = an_adapter(model, tmp_path / "mine", **settings)
    said: list[str] = []
    together = built(tmp_path / "artifact", said, path=str(model), adapter=str(tmp_path / "mine"))
    with torch.no_grad():
        torch.testing.assert_close(load_original(together)(IDS).logits, logits)
        assert not torch.allclose(load_original(model)(IDS).logits, logits)
    assert read_facts(together)["name"] == f"{model.name} + mine"
    assert not any(weight.requires_grad for weight in load_original(together).parameters())
    assert [line for line in said if "trained on" in line] == []  # as its settings name that folder


def test_another_base_than_the_adapter_names_is_said(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    an_adapter(model, tmp_path / "mine")
    settings = tmp_path / "mine" / adapters.SETTINGS
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "me/Other-7B"}))
    said: list[str] = []
    built(tmp_path / "artifact", said, path=str(model), adapter=str(tmp_path / "mine"))
    assert any("trained on me/Other-7B" in line for line in said)


def test_a_changed_adapter_is_another_model(tiny_model: MakeModel, tmp_path: Path) -> None:
    model, mine = tiny_model("llama"), tmp_path / "mine"
    an_adapter(model, mine)
    keys: dict[str, Any] = {"path": str(model), "adapter": str(mine)}
    before = hub.identity(**keys)
    assert before == hub.identity(**keys) != hub.identity(path=str(model))
    save_file(
        {name: 2 * weight for name, weight in load_file(mine / adapters.WEIGHTS).items()}, mine / adapters.WEIGHTS
    )
    assert hub.identity(**keys) != before


def test_an_adapter_alone_is_no_model(tiny_model: MakeModel, tmp_path: Path) -> None:
    model, mine = tiny_model("llama"), tmp_path / "mine"
    an_adapter(model, mine)
    with pytest.raises(ModelError, match="holds an adapter alone") as told:
        hub.local_folder(str(mine))
    assert str(told.value).endswith(f"model.path={model} model.adapter={mine}")


def test_an_adapter_in_the_models_own_folder_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    """transformers adds it to the model unmerged, and what it saves then is the adapter alone."""
    both = shutil.copytree(tiny_model("llama"), tmp_path / "both")
    out = built(tmp_path / "artifact", path=str(both))
    an_adapter(both, both)
    with pytest.raises(ModelError, match=r"an adapter \(adapter_config\.json\) lies in .* give that as model\.adapter"):
        hub.local_folder(str(both))
    with pytest.raises(ModelError, match="lies in the model's own folder"):
        load_original(out)


def without(weights: Path, names: Sequence[str]) -> None:
    save_file({key: value for key, value in load_file(weights).items() if key not in names}, weights)


def test_an_adapter_that_does_not_fit_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    model, mine = tiny_model("llama"), tmp_path / "mine"
    an_adapter(model, mine)
    whole = tmp_path / "whole"
    shutil.copytree(mine, whole)

    def refused(told: str, base: Path = model) -> None:
        with pytest.raises(ModelError, match=told):
            built(tmp_path / told / "out", path=str(base), adapter=str(mine))
        shutil.rmtree(mine)
        shutil.copytree(whole, mine)

    without(mine / adapters.WEIGHTS, [next(iter(load_file(mine / adapters.WEIGHTS)))])
    refused("lacks 1 weights")
    refused("weights without a place", tiny_model("llama", layers=1))
    refused("does not fit LlamaForCausalLM", tiny_model("llama", hidden_size=64))
    refused("does not fit GPT2LMHeadModel", tiny_model("gpt2"))
    (mine / adapters.WEIGHTS).rename(mine / "adapter_model.bin")
    refused("has no adapter_model.safetensors")
    (mine / adapters.SETTINGS).write_text("{}")
    refused("cannot be read as the settings")
    (mine / adapters.SETTINGS).write_text('{"peft_type": "PROMPT_TUNING"}')
    refused("only LORA can be merged")
    with pytest.raises(ModelError, match="there is no such folder"):
        built(tmp_path / "nowhere", path=str(model), adapter=str(tmp_path / "gone"))


def test_an_adapter_with_an_embedding_of_its_own_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    an_adapter(model, tmp_path / "mine", modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match="tied"):
        built(tmp_path / "out", path=str(model), adapter=str(tmp_path / "mine"))


EMBEDDED: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
]


@pytest.mark.parametrize("whole", ["auto", False])
@pytest.mark.parametrize("settings", EMBEDDED)
def test_a_lora_of_embedding_or_head_goes_into_an_untied_model_alone(
    settings: dict[str, Any], whole: str | bool, tiny_model: MakeModel, tmp_path: Path
) -> None:
    """In a tied one the other side would change too."""
    model = tiny_model("llama", tied=False)
    logits = an_adapter(model, tmp_path / "mine", whole, **settings)
    together = built(tmp_path / "artifact", path=str(model), adapter=str(tmp_path / "mine"))
    with torch.no_grad():
        torch.testing.assert_close(load_original(together)(IDS).logits, logits)
    tied = tiny_model("llama")
    an_adapter(tied, tmp_path / "tied", whole, **settings)
    with pytest.raises(ModelError, match=r"one matrix for both \(tied\).*Untie the model first"):
        built(tmp_path / "refused", path=str(tied), adapter=str(tmp_path / "tied"))


def test_what_the_message_says_gives_the_model_that_the_adapter_makes(tiny_model: MakeModel, tmp_path: Path) -> None:
    tied = tiny_model("llama")
    logits = an_adapter(tied, tmp_path / "mine", "auto", target_modules=["q_proj", "lm_head"])
    model: Any = load_original(tied)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    model.config.tie_word_embeddings = False
    peft.PeftModel.from_pretrained(model, str(tmp_path / "mine")).merge_and_unload().save_pretrained(tmp_path / "whole")
    for file in tied.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "whole")
    with torch.no_grad():
        found = load_original(built(tmp_path / "artifact", path=str(tmp_path / "whole")))(IDS).logits
    torch.testing.assert_close(found, logits)


@pytest.mark.parametrize("modules", [["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_an_adapter_that_keeps_the_model_tied_is_merged(
    modules: list[str], tiny_model: MakeModel, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    logits = an_adapter(model, tmp_path / "mine", "auto", modules_to_save=modules, ensure_weight_tying=True)
    together = built(tmp_path / "artifact", path=str(model), adapter=str(tmp_path / "mine"))
    with torch.no_grad():
        torch.testing.assert_close(load_original(together)(IDS).logits, logits)


def test_an_adapter_of_the_hub_is_pinned(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    logits = an_adapter(model, tmp_path / "cache")
    asked: list[tuple[str, str | None]] = []

    def fetched(name: str, file: str, *, revision: str | None, **others: Any) -> str:
        asked.append((name, revision))
        return str(tmp_path / "cache" / file)

    monkeypatch.setattr(adapters, "hf_hub_download", fetched)
    monkeypatch.setattr(hub, "commit_of", lambda *arguments: "c0ffee")
    together = built(tmp_path / "out", path=str(model), adapter="me/mine")
    with torch.no_grad():
        torch.testing.assert_close(load_original(together)(IDS).logits, logits)
    assert set(asked) == {("me/mine", "c0ffee")}
    assert hub.identity(path=str(model), adapter="me/mine")["adapter"] == "c0ffee"


def test_an_adapter_of_the_hub_without_safe_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(name: str, file: str, **others: Any) -> str:
        if file == adapters.WEIGHTS:
            response = Mock(status_code=404, headers={}, request=Mock())
            raise RemoteEntryNotFoundError(f"404: {name}/resolve/main/{file}", response=response)
        return str(tmp_path / file)

    monkeypatch.setattr(adapters, "hf_hub_download", fetched)
    with pytest.raises(ModelError, match=r"model\.adapter='me/old': has no adapter_model\.safetensors"):
        adapters.local_adapter("me/old", "c0ffee")


def test_an_adapter_that_the_hub_does_not_have(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"model\.adapter='me/gone': cannot be had"):
        built(tmp_path / "out", path=str(tiny_model("llama")), adapter="me/gone")
