"""An exported folder means the same to transformers 4 as to transformers 5."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kldistill.export import older_names
from kldistill.export import stage as export_stage
from kldistill.model import tiny
from kldistill.runtime.errors import ModelError
from tests.helpers.artifacts import MakeModel, MakeTokens, rows_for

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Rotary positions unlike any default, for every family that has them.
ROPES = {
    "llama": LLAMA3,
    "mistral": {"rope_type": "default", "rope_theta": 77_000.0},
    "qwen2": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 4.0},
    "qwen3": {"rope_type": "default", "rope_theta": 5_000_000.0},
    "gemma2": {"rope_type": "default", "rope_theta": 33_000.0},
    "gemma3": {
        "full_attention": {"rope_type": "linear", "rope_theta": 900_000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 23_000.0},
    },
    "gpt2": None,
    "gpt_neox": {"rope_type": "default", "rope_theta": 44_000.0, "partial_rotary_factor": 0.5},
}
# The fake tokens are the pairs most frequent in the text that the tiny tokenizers learnt from; they occur there.
TEXT = tiny.training_text()[0][4_000:5_000] + "\n# naïve 中文 = 12\n"

READ = """
import json, sys
import torch, transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
text, folders = json.load(open(sys.argv[1]))
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Version 4 would choose sdpa for Gemma 2, which leaves its soft cap of the attention out.
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(ids).logits
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    save_file({"ids": ids, "logits": logits, "tied": torch.tensor(tied), "special": special}, folder + ".safetensors")
print(transformers.__version__)
"""


def turned(source: Path, out: Path, rope: dict[str, object] | None) -> Path:
    """A copy of a model artifact with other rotary positions, two chat templates and a further special token."""
    shutil.copytree(source, out)
    settings = json.loads((out / "config.json").read_text())
    if rope is not None:
        settings["rope_parameters"] = rope
    (out / "config.json").write_text(json.dumps(settings))
    (out / "additional_chat_templates").mkdir()
    (out / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages[0]['content'] }}")
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.extra_special_tokens = [tokenizer.convert_ids_to_tokens(300)]
    tokenizer.save_pretrained(out)
    return out


def export(tiny_model: MakeModel, family: str, root: Path, fake_tokens: MakeTokens, tied: bool = True) -> Path:
    """An exported folder of ``family`` below ``root``."""
    out = root / f"{family} {'tied' if tied else 'untied'}"
    out.mkdir(parents=True)
    model = turned(tiny_model(family), root / f"{out.name} model", ROPES[family])
    rows = rows_for(model, 24, tied, root / f"{out.name} rows")
    export_stage.export_model(model, fake_tokens(model), rows, out)
    return out


@pytest.mark.parametrize("family", [name for name, rope in ROPES.items() if rope])
def test_the_older_names_say_the_same(
    family: str, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    out = export(tiny_model, family, tmp_path, fake_tokens)
    settings = json.loads((out / "config.json").read_text())
    assert settings["torch_dtype"] == settings["dtype"] == "float32"
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] != "TokenizersBackend"  # version 4 has no such class
    assert "extra_special_tokens" not in tokenizer
    rope = ROPES[family]
    assert rope is not None
    everywhere = rope.get("full_attention", rope)
    assert isinstance(everywhere, dict)
    assert settings["rotary_emb_base" if family == "gpt_neox" else "rope_theta"] == everywhere["rope_theta"]
    if everywhere["rope_type"] == "default":
        assert settings["rope_scaling"] is None
    else:
        assert settings["rope_scaling"] == {name: v for name, v in everywhere.items() if name != "rope_theta"}
    if family == "gemma3":
        assert settings["rope_local_base_freq"] == 23_000.0
    if family == "gpt_neox":
        assert settings["rotary_pct"] == 0.5
    read = AutoConfig.from_pretrained(out).rope_parameters
    for part, wanted in (rope if family == "gemma3" else {"": rope}).items():
        got = read[part] if part else read
        assert {name: got[name] for name in wanted} == wanted


def test_names_that_would_mean_something_else_are_refused(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    monkeypatch.setattr(older_names, "older_names", lambda settings: {"rope_scaling": LLAMA3})
    with pytest.raises(ModelError, match=r"transformers 5 no longer reads.*'llama'"):
        older_names.add(tmp_path / "model")


def test_both_chat_templates_reach_the_folder(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    out = export(tiny_model, "llama", tmp_path, fake_tokens)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert isinstance(tokenizer.chat_template, dict)
    assert set(tokenizer.chat_template) == {"default", "tool_use"}
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).strip() == "user: hi"
    assert 300 in tokenizer.all_special_ids


def test_a_renamed_head_has_its_older_name(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    """Version 4 looks for GPT-NeoX's head under another name, and would draw it at random."""
    out = export(tiny_model, "gpt_neox", tmp_path, fake_tokens, tied=False)
    tensors = load_file(out / "model.safetensors")
    assert "embed_out.weight" in tensors and "lm_head.weight" not in tensors
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(model.get_output_embeddings().weight, tensors["embed_out.weight"])


@pytest.mark.slow
def test_transformers_4_reads_the_same_model(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """transformers 4.57 in a process of its own, with ids and logits to compare with those of the version here."""
    root = tmp_path_factory.mktemp("older")
    library = root / "library"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(library), "transformers==4.57.*"]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    folders = [export(tiny_model, family, root, fake_tokens, tied) for family in ROPES for tied in (True, False)]
    (root / "jobs.json").write_text(json.dumps([TEXT, [str(folder) for folder in folders]]))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(root / "jobs.json")],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("4.57.")
    for folder in folders:
        seen = load_file(f"{folder}.safetensors")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(TEXT, return_tensors="pt", add_special_tokens=False).input_ids
        assert torch.equal(seen["ids"], ids)
        assert (ids >= 512).sum() > 1, "the text must show new tokens"
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert torch.allclose(seen["logits"], expected, atol=1e-4), folder.name
        assert bool(seen["tied"]) is folder.name.endswith(" tied")
        assert 300 in seen["special"].tolist()
