"""Exported models in other programs, the programs themselves: llama.cpp, vLLM, and the evaluation harness lm-eval.

    KLDISTILL_LLAMA_CPP=... KLDISTILL_VLLM=... KLDISTILL_LM_EVAL=... pytest -m slow tests/export/test_serving.py

Each program runs in a process of its own, from the folder that its variable names (see docs/serving.md for how such a
folder is made), else from this environment.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill.export import stage as export_stage
from kldistill.model import stage as model_stage
from kldistill.model import tiny
from kldistill.model.config import SmolLM2Config
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import embedding_of, head_of
from kldistill.runtime.errors import ModelError
from kldistill.runtime.job import Job
from kldistill.tokens import stage as tokens_stage
from kldistill.tokens.artifact import read_new_tokens
from kldistill.tokens.config import TokensConfig
from tests.helpers.artifacts import MakeModel
from tests.helpers.elsewhere import run

PROMPTS = ["class Encoder(Module):\n    def __init__(self", "import numpy as np\n\n", "x = 12345 + '", "\n    return "]
OTHER = (
    "I'M sure they'Ll  say\tit's 'tween\r\n\r\n  naïve café, Ünïcödé — "
    "日本語のテキスト; ²½٣ 12345 👍🏽\u00a0x\n\n   end  "
)
NEW = 24  # tokens that are generated

LLAMA = """
import json, sys
import llama_cpp, numpy
job = json.load(open(sys.argv[1]))
out = []
for file in job["files"]:
    # What it remembers of earlier tokens is rounded to 16 bits unless asked otherwise.
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    model = llama_cpp.Llama(file, n_ctx=1024, n_threads=1, logits_all=True, verbose=False, **exact)
    ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in job["texts"]]
    found = []
    for prompt in job["prompts"]:
        model.reset()
        row, logits = list(prompt), []
        model.eval(prompt)
        for _ in range(job["new"]):
            logits.append(numpy.array(model.scores[model.n_tokens - 1]))
            row.append(int(logits[-1].argmax()))
            model.eval(row[-1:])
        text = model.detokenize(row, special=True).decode(errors="replace")
        found.append({"ids": row, "text": text, "first": logits[0].tolist()})
    out.append({"ids": ids, "generated": found})
json.dump(out, open(sys.argv[2], "w"))
print(llama_cpp.__version__)
"""

VLLM = """
import json, os, sys
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                  VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
import vllm
folder, texts, prompts, new = json.load(open(sys.argv[1]))
model = vllm.LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4)
tokenizer = model.get_tokenizer()
found = model.generate(
    [{"prompt_token_ids": ids} for ids in prompts], vllm.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
)
json.dump({
    "ids": [tokenizer.encode(text, add_special_tokens=False) for text in texts],
    "generated": [list(one.outputs[0].token_ids) for one in found],
    "texts": [one.outputs[0].text for one in found],
}, open(sys.argv[2], "w"))
"""

HARNESS = """
import json, sys
import torch
torch.set_num_threads(1)
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, tasks, names = json.load(open(sys.argv[1]))
found = simple_evaluate(
    # It puts the first token before a text itself; the tokenizer must not put another.
    model="hf", model_args={"pretrained": folder, "dtype": "float32", "add_bos_token": False}, tasks=names,
    device="cpu", batch_size=1,
    task_manager=TaskManager(include_path=tasks, include_defaults=False), bootstrap_iters=0,
)
json.dump({"results": found["results"], "samples": found["samples"]}, open(sys.argv[2], "w"), default=str)
"""


def write_corpus(out: Path) -> Path:
    """What the tokens stage reads."""
    out.mkdir(parents=True)
    documents = tiny.training_text()
    for split, part in (("train", documents[:3]), ("validation", documents[3:4]), ("test", documents[4:])):
        lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(part)]
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return out


def export(model: Path, base: Path, n: int, gguf: bool = True, boundary: str = "word") -> Path:
    """An exported folder (with ``model.gguf``) of a model with ``n`` more tokens.

    A new row is a little longer than that of its first piece, so that new tokens are generated as well.
    """
    base.mkdir(parents=True, exist_ok=True)
    folders = {"model": model, "corpus": write_corpus(base / "corpus")}
    for name in ("tokens", "rows", "out"):
        folders[name] = base / name
        folders[name].mkdir()
    settings = TokensConfig(n_new=n, boundary=boundary, curve=0)
    tokens_stage.build(settings, folders, folders["tokens"], Job(say=lambda _line: None))
    original = load_original(model)
    weight = embedding_of(original).weight
    pieces = [token.pieces for token in read_new_tokens(folders["tokens"])]
    first = [p[0] for p in pieces]
    head = None if original.config.tie_word_embeddings else 1.05 * head_of(original).weight[first]
    Rows(1.05 * weight[first], head).save(folders["rows"])
    export_stage.export_model(model, folders["tokens"], folders["rows"], folders["out"], gguf=gguf)
    return folders["out"]


@torch.no_grad()
def generated(folder: Path, prompts: list[list[int]]) -> list[tuple[list[int], torch.Tensor]]:
    """Greedy continuations (the prompt included) by the folder in transformers, and the logits after the prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        first = model(ids).logits[0, -1]
        for _ in range(NEW):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        found.append((ids[0].tolist(), first))
    return found


def check_llama_cpp(folders: list[Path], texts: list[str], tmp_path: Path) -> None:
    """llama.cpp gives the ids and the greedy text that transformers gives, for each folder."""
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompts = [tokenizer.encode(text, add_special_tokens=False) for text in PROMPTS]
        job = {"files": [str(folder / "model.gguf")], "texts": texts, "prompts": prompts, "new": NEW}
        (seen,) = run(LLAMA, "llama_cpp", "KLDISTILL_LLAMA_CPP", job, tmp_path)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        assert seen["ids"] == ids, folder
        new = max(tokenizer.get_vocab().values()) + 1 - len(read_new_tokens(folder.parent / "tokens"))
        assert sum(index >= new for row in ids for index in row) > 20
        for (wanted, first), got in zip(generated(folder, prompts), seen["generated"], strict=True):
            torch.testing.assert_close(torch.tensor(got["first"]), first, rtol=1e-3, atol=1e-3)
            assert got["ids"] == wanted, folder
            assert got["text"] == tokenizer.decode(wanted), folder


@pytest.mark.slow
def test_llama_cpp_gives_the_same_ids_and_the_same_text(tiny_model: MakeModel, tmp_path: Path) -> None:
    kinds = [("llama", "gpt2", True), ("llama", "smollm", False), ("llama", "llama3", True), ("qwen2", "qwen2", True)]
    folders = []
    for family, tokenizer, tied in kinds:
        model = tiny_model(family, tokenizer=tokenizer, tied=tied, hidden_size=64)
        folders.append(export(model, tmp_path / f"{family}-{tokenizer}", 48))
    check_llama_cpp(folders, [*tiny.training_text()[3:4], OTHER], tmp_path)


@pytest.mark.slow
def test_llama_cpp_runs_the_extended_embedded_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    try:
        model_stage.build(SmolLM2Config(file=os.environ.get("KLDISTILL_SMOLLM2")), {}, tmp_path / "model", Job())
    except ModelError as error:
        pytest.skip(str(error))
    folder = export(tmp_path / "model", tmp_path, 256)
    check_llama_cpp([folder], [*tiny.training_text()[3:5], OTHER], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [generated(folder, [tokenizer.encode(text)])[0][0] for text in PROMPTS[:2]]
    assert any(index >= len(tokenizer) - 256 for row in ids for index in row)  # it writes new tokens


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tokenizer", "tied"), [("llama", "llama3", True), ("qwen2", "qwen2", False)])
def test_vllm_gives_the_same_ids_and_the_same_text(
    family: str, tokenizer: str, tied: bool, tiny_model: MakeModel, tmp_path: Path
) -> None:
    model = tiny_model(family, tokenizer=tokenizer, tied=tied, hidden_size=256)  # heads of 64, which its kernels know
    folder = export(model, tmp_path / "made", 48, gguf=False, boundary="auto")
    cut = AutoTokenizer.from_pretrained(folder)
    texts = [*tiny.training_text()[3:4], OTHER]
    prompts = [cut.encode(text, add_special_tokens=False) for text in PROMPTS]
    seen = run(VLLM, "vllm", "KLDISTILL_VLLM", [str(folder), texts, prompts, NEW], tmp_path)
    assert seen["ids"] == [cut.encode(text, add_special_tokens=False) for text in texts]
    wanted = [ids[len(start) :] for (ids, _), start in zip(generated(folder, prompts), prompts, strict=True)]
    assert seen["generated"] == wanted
    # It holds an unfinished character back.
    texts = [cut.decode(ids, skip_special_tokens=True) for ids in wanted]
    assert [text.rstrip("\ufffd") for text in seen["texts"]] == [text.rstrip("\ufffd") for text in texts]
    assert any(index >= len(cut) - 48 for ids in wanted for index in ids)


@pytest.mark.slow
def test_lm_eval_reads_the_folder(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Two tasks from data on disk: bits per byte of texts, and what is written greedily after a prompt."""
    folder = export(tiny_model("llama", tokenizer="llama3"), tmp_path / "made", 48, gguf=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [text[:600] for text in tiny.training_text()[3:6]]
    prompts = [text[:200] for text in tiny.training_text()[3:6]]
    starts = [tokenizer.encode(text, add_special_tokens=False) for text in prompts]
    answers = []
    for (ids, _), start in zip(generated(folder, starts), starts, strict=True):
        new = ids[len(start) : len(start) + 16]
        ends = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else None  # it stops writing there
        answers.append(tokenizer.decode(new[:ends], skip_special_tokens=True))
    (tmp_path / "tasks").mkdir()
    with (tmp_path / "texts.jsonl").open("w") as file:
        for text, prompt, answer in zip(texts, prompts, answers, strict=True):
            file.write(json.dumps({"text": text, "prompt": prompt, "answer": answer}) + "\n")
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "texts.jsonl")}},
        "test_split": "test",
    }
    rolling = {
        **data,
        "task": "own_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    written = {
        **data,
        "task": "own_lines",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<no such text>"], "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (rolling, written):
        (tmp_path / "tasks" / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML
    job = [str(folder), str(tmp_path / "tasks"), ["own_text", "own_lines"]]
    seen = run(HARNESS, "lm_eval", "KLDISTILL_LM_EVAL", job, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
    bits = nats / sum(len(text.encode()) for text in texts) / torch.log(torch.tensor(2.0)).item()
    assert seen["results"]["own_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    assert [sample["resps"][0][0] for sample in seen["samples"]["own_lines"]] == answers
    assert seen["results"]["own_lines"]["exact_match,none"] == 1.0
    size = len(tokenizer) - 48
    assert any(index >= size for text in texts for index in tokenizer.encode(text))
