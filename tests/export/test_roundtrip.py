"""A megabyte of text through an exported model, in a process that cannot import kldistill: same ids, same logits."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from kldistill.export import stage as export_stage
from kldistill.export.config import ExportConfig
from kldistill.model import tiny
from kldistill.rows.rows import Rows
from kldistill.runtime.job import Job
from kldistill.tokens import stage as tokens_stage
from kldistill.tokens.config import TokensConfig
from kldistill.training.load import load_student
from tests.helpers.artifacts import MakeModel
from tests.helpers.interpreter import python

SIZE = 1_000_000  # bytes
# Model family, tokenizer, boundary, tied. Qwen's needs a class of its own in the folder; Llama-2's splits nowhere.
KINDS = [
    ("gpt2", "auto", "dotted", True),
    ("llama", "llama3", "identifier", False),
    ("qwen2", "auto", "line", True),
    ("mistral", "auto", "line", False),
    ("gemma3", "auto", "word", True),
]
UNSEEN = "naïve_中文 = 'Ünïcödé'  # 😀 \u00a0 ﬁne\r\n\t\tx.__init__(1_000, 0xFF)\n\n\n"

# -I leaves PYTHONPATH, the user's packages and the working folder out; an installed kldistill is blocked by name.
STRANGER = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kldistill":
            raise ImportError("kldistill is blocked here")
sys.meta_path.insert(0, Blocker())
try:
    import kldistill
except ImportError:
    blocked = True
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
texts, folders = json.load(open(sys.argv[1]))
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    tensors = {"ids": torch.tensor([index for row in rows for index in row])}
    with torch.no_grad():
        tensors["logits"] = model(torch.tensor([rows[0][:400]])).logits
    save_file(tensors, folder + "/../seen.safetensors")
print("blocked" if blocked and not [name for name in sys.modules if name.startswith("kldistill")] else "not blocked")
"""


def megabyte() -> list[str]:
    """Sources of installed packages in pieces of some lines, and something that no code has."""
    texts, total = [UNSEEN * 20], 0
    for package in ("transformers", "torch"):
        folder = Path((find_spec(package) or pytest.fail(package)).submodule_search_locations[0])
        for file in sorted(folder.rglob("*.py")):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            for start in range(0, len(lines), 100):
                texts.append("".join(lines[start : start + 100]))
                total += len(texts[-1].encode())
                if total >= SIZE:
                    return texts
    return pytest.fail("too little text")


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tokens stage reads, made by hand: what the tiny tokenizers learnt from."""
    out = tmp_path_factory.mktemp("corpus")
    documents = [text[:40_000] for text in tiny.training_text()]
    for split, part in (("train", documents[:3]), ("validation", documents[3:4]), ("test", documents[4:])):
        lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(part)]
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return out


def make(kind: tuple[str, str, str, bool], corpus: Path, base: Path, tiny_model: MakeModel) -> dict[str, Path]:
    """A model with tokens of the tokens stage and random rows, exported."""
    family, tokenizer, boundary, tied = kind
    model = tiny_model(family, tokenizer=tokenizer, tied=tied)
    folders = {"model": model, "corpus": corpus, **{name: base / name for name in ("tokens", "rows", "out")}}
    for name in ("tokens", "rows", "out"):
        folders[name].mkdir(parents=True)
    tokens_stage.build(TokensConfig(n_new=48, boundary=boundary, curve=0), folders, folders["tokens"], Job())
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(48, 32, generator=generator) * 0.3 for _ in range(2)]
    Rows(made[0], None if tied else made[1]).save(folders["rows"])
    export_stage.build(ExportConfig(), {k: v for k, v in folders.items() if k != "out"}, folders["out"], Job())
    return folders


def test_same_ids_on_a_megabyte_and_same_logits(tiny_model: MakeModel, corpus_folder: Path, tmp_path: Path) -> None:
    texts = megabyte()
    made = [make(kind, corpus_folder, tmp_path / "-".join(kind[:3]), tiny_model) for kind in KINDS]
    (tmp_path / "job.json").write_text(json.dumps([texts, [str(folders["out"]) for folders in made]]))
    done = subprocess.run(
        [python(), "-I", "-c", STRANGER, str(tmp_path / "job.json")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "blocked"
    for kind, folders in zip(KINDS, made, strict=True):
        seen = load_file(folders["out"].parent / "seen.safetensors")
        tokenizer = Tokenizer.from_file(str(folders["tokens"] / "tokenizer" / "tokenizer.json"))
        rows = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        ids = torch.tensor([index for row in rows for index in row])
        assert torch.equal(seen["ids"], ids), kind
        assert (ids >= 512).sum() > 5_000, kind  # new tokens are used, or the test shows little
        student = load_student(folders["model"], folders["rows"])
        with torch.no_grad():
            expected = student.logits(student.hidden(torch.tensor([rows[0][:400]])))
        assert seen["logits"].shape[-1] == 512 + 48
        assert torch.allclose(seen["logits"], expected, atol=1e-4), kind
        check_for_servers(folders["out"], tied=kind[3])


def check_for_servers(out: Path, tied: bool) -> None:
    """What docs/serving.md says of every folder: one size everywhere, and no file of the old vocabulary."""
    config = json.loads((out / "config.json").read_text())
    tensors = load_file(out / "model.safetensors")
    heights = [
        tensor.shape[0] for name, tensor in tensors.items() if name.endswith(("embed_tokens.weight", "wte.weight"))
    ]
    heads = [tensor.shape[0] for name, tensor in tensors.items() if "lm_head" in name]
    size = 1 + max(Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab().values())
    assert [config["vocab_size"], size] == [560, 560] and heights == [560]
    assert heads == ([] if tied else [560])
    assert config["tie_word_embeddings"] is tied
    old = {"vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "added_tokens.json"}
    assert not old & {file.name for file in out.iterdir()}
    assert "auto_map" not in config
