"""The exported folder, loaded by a process that has never heard of kldistill."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from kldistill.export import stage as export_stage
from kldistill.export.config import ExportConfig
from kldistill.model import tiny
from kldistill.model.load import load_original
from kldistill.rows.resize import extend
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from kldistill.runtime.errors import ModelError
from kldistill.runtime.job import Job
from tests.helpers.artifacts import FAMILIES, MakeModel, MakeTokens, rows_for
from tests.helpers.interpreter import python

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
sys.modules["kldistill"] = None  # importing it fails
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
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
            inputs = {"model": model, "tokens": tokens, "rows": rows}
            export_stage.build(ExportConfig(), inputs, out, Job())
            folders[family, kind] = base
            jobs.append({"folder": str(out), "texts": TEXTS, "out": str(base / "seen.safetensors")})
    (root / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [python(), "-I", "-c", STRANGER, str(root / "jobs.json")], cwd=root, capture_output=True, text=True
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
    student = Student(load_original(folder), Rows.load(base / "rows"), 512)
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
    source = load_original(tiny_model(family, tied=kind != "untied"))
    assert torch.equal(model.get_input_embeddings().weight[:512], source.get_input_embeddings().weight[:512])
    assert torch.equal(model.get_output_embeddings().weight[:512], source.get_output_embeddings().weight[:512])
    talk = AutoTokenizer.from_pretrained(out).apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert talk.endswith("user: hi\n")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_no_id_beyond_the_tokenizer_is_ever_generated(
    family: str,
    exported: dict[tuple[str, str], tuple[Path, dict[str, torch.Tensor]]],
    tiny_model: MakeModel,
) -> None:
    """At a temperature that makes all ids alike, the padded original soon leaves its tokenizer; the export cannot."""
    ids = torch.full((8, 1), 5)
    longest = {}
    for name, folder in (("original", tiny_model(family)), ("exported", exported[family, "tied"][0] / "out")):
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        torch.manual_seed(0)
        made = model.generate(
            ids, do_sample=True, temperature=1e4, top_k=0, max_new_tokens=40, eos_token_id=None, pad_token_id=0
        )
        assert made.shape == (8, 41)
        longest[name] = made.max().item() - max(tokenizer.get_vocab().values())
    assert longest["original"] > 0
    assert longest["exported"] <= 0


@pytest.mark.parametrize(("names", "wanted"), [(("init",), "init"), (("init", "distill"), "distill")])
def test_the_rows_are_those_of_the_latest_stage(
    names: tuple[str, ...], wanted: str, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model = tiny_model("gpt2")
    inputs = {"model": model, "tokens": fake_tokens(model)}
    for seed, name in enumerate(names):
        inputs[name] = rows_for(model, 24, True, tmp_path / name, seed)
        (inputs[name] / "summary.json").write_text(json.dumps({f"{name}/seconds": 7.5}))
    (tmp_path / "out").mkdir()
    export_stage.build(ExportConfig(license="mit"), inputs, tmp_path / "out", Job())
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight[512:]
    assert torch.equal(made, Rows.load(inputs[wanted]).input)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in text
    assert ("Trained: nothing" in text) == (wanted == "init")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures == {"tokens/saved": 0.125, "tokens/added": 24, **{f"{name}/seconds": 7.5 for name in names}}


def test_gguf_beside_the_folder_or_no_folder_at_all(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    model = tiny_model("llama", tokenizer="gpt2")
    inputs = {"model": model, "tokens": fake_tokens(model), "rows": rows_for(model, 24, True, tmp_path / "rows")}
    out = tmp_path / "out"
    out.mkdir()
    export_stage.build(ExportConfig(gguf=True), inputs, out, Job())
    folder = AutoModelForCausalLM.from_pretrained(out)
    file = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(500, 536).unsqueeze(0)
    assert torch.equal(folder(ids).logits, file(ids).logits)
    assert "`model.gguf`" in (out / "README.md").read_text()
    other = tiny_model("gemma3")
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="gemma3_text models are not written"):
        export_stage.build(ExportConfig(gguf=True), inputs | {"model": other}, tmp_path / "other", Job())
    assert not list((tmp_path / "other").iterdir())


def test_weights_are_written_in_the_type_that_is_asked_for(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    """A model that was saved in bfloat16 is held in float32 by default, and its folder would be twice as large."""
    model, source = tmp_path / "model", tiny_model("llama")
    shutil.copytree(source, model)
    AutoModelForCausalLM.from_pretrained(source).to(torch.bfloat16).save_pretrained(model)
    inputs = {"model": model, "tokens": fake_tokens(source), "rows": rows_for(model, 24, True, tmp_path / "rows")}
    folders, said = {}, dict[str | None, list[str]]()
    for dtype in (None, "bfloat16"):
        folders[dtype], said[dtype] = tmp_path / f"out-{dtype}", []
        folders[dtype].mkdir()
        export_stage.build(ExportConfig(dtype=dtype), inputs, folders[dtype], Job(say=said[dtype].append))
    told = [text for text in said[None] if "export.dtype=bfloat16" in text]
    assert len(told) == 1 and "written in float32" in told[0] and "50% of the size" in told[0]
    assert not any("export.dtype" in text for text in said["bfloat16"])
    wide, narrow = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders.values())
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert json.loads((folders["bfloat16"] / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for name, weight in narrow.state_dict().items():
        assert torch.equal(weight, wide.state_dict()[name].to(torch.bfloat16)), name


def test_nothing_of_this_machine_is_in_the_folder(
    exported: dict[tuple[str, str], tuple[Path, dict[str, torch.Tensor]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = str(tmp_path_factory.getbasetemp())
    files = [file for file in (exported["llama", "untied"][0] / "out").iterdir() if file.suffix != ".safetensors"]
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= {file.name for file in files}
    assert not [file.name for file in files if here in file.read_text()]


@pytest.mark.parametrize("more", [{}, {"suppress_tokens": [513]}], ids=["as it came", "changed by the export"])
def test_sampling_settings_that_contradict_each_other_survive(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path, more: dict[str, list[int]]
) -> None:
    """Published generation configs have a temperature without sampling; transformers is strict about changed ones."""
    source = tiny_model("llama")
    model = tmp_path / "model"
    shutil.copytree(source, model)
    settings = json.loads((model / "generation_config.json").read_text()) | more
    settings |= {"temperature": 0.6, "eos_token_id": [1, 0]}
    (model / "generation_config.json").write_text(json.dumps(settings))
    rows = rows_for(model, 24, True, tmp_path / "rows")
    (tmp_path / "out").mkdir()
    export_stage.export_model(model, fake_tokens(source), rows, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (kept["temperature"], kept["eos_token_id"], kept["max_new_tokens"]) == (0.6, [1, 0], 16)
    assert not kept.get("suppress_tokens"), "a row of padding then, a new token now"
    read = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (read.temperature, read.do_sample or False) == (0.6, False)


def test_a_bias_of_the_head_is_extended(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model("llama", tied=False))
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
    model = load_original(tiny_model("gemma3"))
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
    export_stage.export_model(model, tokens, rows_for(model, 24, True, tmp_path / "rows"), out)
    spec = json.loads((out / "tokenizer.json").read_text())
    spec["pre_tokenizer"]["pretokenizers"][0] = {
        "type": "Split",
        "pattern": {"String": "e"},
        "behavior": "Isolated",
        "invert": False,
    }
    (out / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match=r"Qwen2Tokenizer.*boundary=word"):
        export_stage.check_tokenizer(out, TEXTS)
