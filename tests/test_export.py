"""The exported folder, loaded by a process that has never heard of kldistill."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, MakeModel, MakeTokens
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill import export, models, tiny
from kldistill.config import ExportConfig
from kldistill.errors import ModelError
from kldistill.extension import extend
from kldistill.job import Job
from kldistill.rows import Rows, Student

# The fake tokens are the pairs most frequent in the text that the tiny tokenizers learnt from; they occur there.
TEXTS = [
    tiny.training_text()[0][4_000:5_200],
    "def check_size(self, value):\n    return self.value + 12",
    "if not isinstance(text, str):\n\traise é日",
]
KINDS = ["tied", "untied", "untied on request"]

# Run from an empty folder with an isolated interpreter: neither the checkout nor PYTHONPATH is on the path.
STRANGER = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
sys.modules["kldistill"] = None  # from here on, importing it fails
torch.set_num_threads(1)
for job in json.load(open(sys.argv[1])):
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"]).eval()
    found = {}
    for number, text in enumerate(job["texts"]):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        found[f"ids{number}"] = ids
        with torch.no_grad():
            found[f"logits{number}"] = model(ids).logits
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    found["tied"] = torch.tensor(tied)
    save_file(found, job["out"])
"""


def rows_for(model_folder: Path, n: int, tied: bool, out: Path) -> Path:
    """Random rows of the size of the old ones, unlike any of them."""
    weight = models.load(model_folder).get_input_embeddings().weight
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randn(n, weight.shape[1], generator=generator) * weight[:512].std() for _ in range(2)]
    out.mkdir()
    Rows(rows[0], None if tied else rows[1], {"input": "last_piece", "output": "random"}).save(out)
    return out


@pytest.fixture(scope="module")
def exported(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[Path, dict[str, torch.Tensor]]]:
    """Folder and what a stranger saw in it, for every family and kind; one process for all of them."""
    root = tmp_path_factory.mktemp("exported")
    jobs, folders = [], {}
    for family in FAMILIES:
        for kind in KINDS:
            model = tiny_model(family, tied=kind != "untied")
            tokens = fake_tokens(model)
            base = root / f"{family} {kind}"
            base.mkdir()
            rows = rows_for(model, 24, kind == "tied", base / "rows")
            out = base / "out"
            out.mkdir()
            inputs = {"model": model, "tokens": tokens, "distill": rows}
            export.build(ExportConfig(), inputs, out, Job())
            folders[family, kind] = base
            jobs.append({"folder": str(out), "texts": TEXTS, "out": str(base / "seen.safetensors")})
    (root / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(root / "jobs.json")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {key: (base, load_file(base / "seen.safetensors")) for key, base in folders.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_sees_the_students_ids_and_logits(
    family: str,
    kind: str,
    exported: dict[tuple[str, str], tuple[Path, dict[str, torch.Tensor]]],
    tiny_model: MakeModel,
    fake_tokens: MakeTokens,
) -> None:
    base, seen = exported[family, kind]
    folder = tiny_model(family, tied=kind != "untied")
    student = Student(models.load(folder), Rows.load(base / "rows"), 512)
    tokenizer = AutoTokenizer.from_pretrained(fake_tokens(folder) / "tokenizer")
    used: set[int] = set()
    for number, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        used |= set(ids[ids >= 512].tolist())
        assert torch.equal(seen[f"ids{number}"], ids)
        with torch.no_grad():
            expected = student.logits(student.hidden(ids))
        assert seen[f"logits{number}"].shape[-1] == 512 + 24  # exactly W: the model's padding is gone
        assert torch.allclose(seen[f"logits{number}"], expected, atol=1e-4)
    assert len(used) >= 3, "the texts must show new tokens, or the test shows nothing"
    assert bool(seen["tied"]) is (kind == "tied")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_holds_what_it_should(
    family: str,
    kind: str,
    exported: dict[tuple[str, str], tuple[Path, dict[str, torch.Tensor]]],
    tiny_model: MakeModel,
) -> None:
    out = exported[family, kind][0] / "out"
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == 536
    assert config["tie_word_embeddings"] is (kind == "tied")
    assert json.loads((out / "generation_config.json").read_text())["max_new_tokens"] == 16
    with safe_open(out / "model.safetensors", "pt") as file:
        matrices = {key for key in file.keys() if 536 in file.get_slice(key).get_shape()}  # noqa: SIM118
        assert not any(576 in file.get_slice(key).get_shape() for key in file.keys())  # noqa: SIM118
    assert len(matrices) == (1 if kind == "tied" else 2)
    model = AutoModelForCausalLM.from_pretrained(out)
    source = models.load(tiny_model(family, tied=kind != "untied"))
    assert torch.equal(model.get_input_embeddings().weight[:512], source.get_input_embeddings().weight[:512])
    assert torch.equal(model.get_output_embeddings().weight[:512], source.get_output_embeddings().weight[:512])
    talk = AutoTokenizer.from_pretrained(out).apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert talk.endswith("user: hi\n")


def test_the_model_card(exported: dict[tuple[str, str], tuple[Path, dict[str, torch.Tensor]]]) -> None:
    card = ModelCard.load(exported["llama", "tied"][0] / "out" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0"
    assert "vocabulary-extension" in (card.data.tags or [])
    for text in ("tiny", "24 new tokens", "512 to 536", "12.5%", "last_piece", "were trained alone", "tokens/saved"):
        assert text in card.text


def test_card_of_a_hub_model_without_figures() -> None:
    facts = {"name": "M", "base_model": "org/M", "license": None}
    rows = Rows(torch.zeros(2, 4), torch.zeros(2, 4), {"input": "mean", "output": "mean"})
    text = export.model_card(facts, rows, {"old_size": 10, "new_size": 12}, {}, None, "init")
    card = ModelCard(text)
    assert card.data.base_model == "org/M"
    assert card.data.license is None
    assert "not known" in text and "were not trained" in text and "Figures" not in text


def test_rows_of_init_are_exported_when_nothing_was_distilled(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model = tiny_model("gpt2")
    rows = rows_for(model, 24, True, tmp_path / "rows")
    (tmp_path / "out").mkdir()
    inputs = {"model": model, "tokens": fake_tokens(model), "init": rows}
    export.build(ExportConfig(license="mit"), inputs, tmp_path / "out", Job())
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in text and "were not trained" in text


def test_a_bias_of_the_head_is_extended(tiny_model: MakeModel) -> None:
    model = models.load(tiny_model("llama", tied=False))
    model.lm_head.bias = torch.nn.Parameter(torch.arange(576.0), requires_grad=False)
    rows = Rows(torch.randn(3, 32), torch.randn(3, 32))
    student = Student(model, rows, 512)
    ids = torch.tensor([[1, 512, 514, 7]])
    with torch.no_grad():
        expected = student.logits(student.hidden(ids))
        extended = extend(model, rows, 512)
        assert torch.allclose(extended(ids).logits, expected, atol=1e-4)
    assert extended.lm_head.bias.shape == (515,)


def test_a_vocabulary_larger_than_the_padding_grows_the_matrix(tiny_model: MakeModel) -> None:
    model = models.load(tiny_model("gemma3"))
    rows = Rows(torch.randn(200, 32))
    student = Student(model, rows, 512)
    ids = torch.tensor([[1, 512, 711, 7]])
    with torch.no_grad():
        expected = student.logits(student.hidden(ids))
        extended = extend(model, rows, 512)
        assert torch.allclose(extended(ids).logits, expected, atol=1e-4)
    assert extended.get_input_embeddings().weight.shape == (712, 32)


def test_a_tokenizer_that_transformers_rebuilds_is_refused(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    """transformers gives any qwen2 folder its own splitting rule, whatever tokenizer.json says."""
    model = tiny_model("qwen2")
    tokens = fake_tokens(model)
    out = tmp_path / "out"
    out.mkdir()
    export.export_model(model, tokens, rows_for(model, 24, True, tmp_path / "rows"), out)
    spec = json.loads((out / "tokenizer.json").read_text())
    spec["pre_tokenizer"]["pretokenizers"][0] = {
        "type": "Split",
        "pattern": {"String": "e"},
        "behavior": "Isolated",
        "invert": False,
    }
    (out / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match=r"Qwen2Tokenizer.*boundary=word"):
        export.check_tokenizer(out, TEXTS)
