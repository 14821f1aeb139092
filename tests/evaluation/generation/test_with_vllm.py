"""Answers by vLLM: those of the other decoder. vLLM itself is imitated here, but in the slow test, which runs it:

KLDISTILL_VLLM=... pytest -m slow tests/evaluation/generation/test_with_vllm.py
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kldistill.evaluation.config import EvalConfig, VllmConfig
from kldistill.evaluation.generation import batching, with_vllm
from kldistill.evaluation.generation.batching import Completion, Request, rows_of
from kldistill.evaluation.generation.cuts import Merging
from kldistill.evaluation.generation.decoding import GREEDY, Decoding, Row
from kldistill.evaluation.generation.sampling import draw
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.model import tiny
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ConfigError, EvaluationError
from kldistill.tokens.encoding import encode, special_ids
from kldistill.tokens.pieces import PieceTable
from kldistill.training.load import load_model, load_tokenizer
from tests.helpers import fake_vllm
from tests.helpers.artifacts import MakeModel, MakeTokens, rows_for
from tests.helpers.elsewhere import run

TEXT = tiny.training_text()[0]
PROMPTS = [TEXT[at : at + size] for at, size in ((100, 40), (700, 90), (1500, 25), (2100, 160), (3000, 60), (3900, 75))]
REQUESTS = [Request(prompt, 30, ("\n\n", "def "), key=str(at)) for at, prompt in enumerate(PROMPTS)]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[fake_vllm.LLMEngine]]:
    """The imitation, and a place for temporary folders, which is empty in the end."""
    made = fake_vllm.install(monkeypatch)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield made
    assert not any(engine.open for engine in made.made), "the device is given back"
    assert not list((tmp_path / "temporary").iterdir()), "what was written for vLLM is removed"


def answers(
    model: PreTrainedModel, spelling: Spelling, requests: list[Request], how: Decoding = GREEDY, batch_size: int = 4
) -> list[list[Completion]]:
    """By vLLM, in the order of the requests."""
    found = dict(with_vllm.generate(model, spelling, requests, how, batch_size=batch_size))
    assert sorted(found) == list(range(len(requests))), "each request once"
    return [found[index] for index in range(len(requests))]


def timeless(found: list[list[Completion]]) -> list[list[dict[str, Any]]]:
    return [[{**vars(one), "seconds": 0} for one in samples] for samples in found]


def compare(
    folder: Path,
    requests: list[Request],
    how: Decoding = GREEDY,
    tokens: Path | None = None,
    rows: Path | None = None,
) -> list[Completion]:
    """Both backends' greedy completions, which are the same; each is one of a model of its own."""
    spelling = Spelling(load_tokenizer(folder, tokens))
    theirs = dict(batching.generate(load_model(folder, rows), spelling, requests, how, batch_size=4))
    ours = answers(load_model(folder, rows), spelling, requests, how)
    assert timeless(ours) == timeless([theirs[index] for index in range(len(requests))])
    assert all(one.seconds > 0 for samples in ours for one in samples)
    return [samples[0] for samples in ours]


# ---- the same answers


@pytest.mark.parametrize(("family", "most"), [("llama", 1024), ("llama", 0), ("gpt2", 1024)])
def test_greedy_answers_are_those_of_the_other_decoder(
    family: str, most: int, tiny_model: MakeModel, vllm: type[fake_vllm.LLMEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In full: text, ids, bytes that were spelt again, cost and how it ended. The model has padding rows."""
    monkeypatch.setattr(with_vllm, "ALLOWED", most)
    found = compare(tiny_model(family, pad_to=64), REQUESTS)
    assert sum(one.healed > 0 for one in found) >= 3
    (engine,) = vllm.made
    ways = Counter(key for params in engine.asked for key in ("allowed_token_ids", "logprobs") if key in vars(params))
    assert set(ways) == ({"allowed_token_ids"} if most else {"logprobs"}), "both ways to spell the end again"
    size = len(load_tokenizer(tiny_model(family, pad_to=64), None))
    assert engine.model.get_input_embeddings().weight.shape[0] == size, "no padding row can be chosen"


@pytest.mark.usefixtures("vllm")
def test_an_extended_model_writes_its_new_tokens(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    folder = tiny_model()
    tokens, rows = fake_tokens(folder), rows_for(folder, 24, True, tmp_path / "rows")
    found = compare(folder, REQUESTS, GREEDY, tokens, rows)
    size = len(load_tokenizer(folder, None))
    assert any(index >= size for one in found for index in one.token_ids)


def test_a_token_takes_the_place_of_those_that_spell_it(tiny_model: MakeModel, vllm: type[fake_vllm.LLMEngine]) -> None:
    """What follows is asked for anew, after the new ids; what vLLM wrote meanwhile is dropped."""
    folder = tiny_model()
    free = [one.token_ids for one in compare(folder, REQUESTS)]
    pairs = Counter(pair for ids in free for pair in pairwise(ids) if pair[0] != pair[1])
    (first, _), (second, _) = pairs.most_common(2)
    spelling = Spelling(load_tokenizer(folder, None))
    merging = Merging(PieceTable(len(spelling.table), []))
    # Any token will do as what they become; that it is an old one needs no other model.
    merging.spelt, merging.longest = {first: second[1], second: first[0]}, 2
    n = len(vllm.made[-1].asked)
    found = [one.token_ids for one in compare(folder, REQUESTS, Decoding(cut=merging))]
    assert found != free and len(vllm.made[-1].asked) > n


@pytest.mark.usefixtures("vllm")
def test_an_end_of_text_ends_an_answer(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model()
    spelling = Spelling(load_tokenizer(folder, None))
    first = answers(load_model(folder, None), spelling, [Request(PROMPTS[0], 50)])[0][0]
    ends = first.token_ids[3] if first.token_ids[3] not in first.token_ids[:3] else first.token_ids[0]
    for module in (batching, with_vllm):
        monkeypatch.setattr(module, "eos_of", lambda *_: {ends} | special_ids(spelling.tokenizer))
    (found,) = compare(folder, [Request(PROMPTS[0], 50)])
    assert found.ended == "eos" and ends not in found.token_ids


@pytest.mark.usefixtures("vllm")
def test_where_the_context_is_full_there_is_a_token_less(tiny_model: MakeModel) -> None:
    folder = tiny_model()
    spelling = Spelling(load_tokenizer(folder, None))
    model = load_model(folder, None)
    model.config.max_position_embeddings = 40
    request = Request(PROMPTS[0], 400)
    ((_, (theirs,)),) = batching.generate(model, spelling, [request], batch_size=1)
    model = load_model(folder, None)
    model.config.max_position_embeddings = 40
    ((ours,),) = answers(model, spelling, [request])
    assert ours.ended == theirs.ended == "budget"
    assert ours.token_ids == theirs.token_ids[:-1]
    with pytest.raises(EvaluationError, match="the model's context 40"):
        answers(model, spelling, [Request(TEXT[:2000], 50)])


# ---- sampling


@pytest.mark.usefixtures("vllm")
def test_samples_depend_on_nothing_but_their_key(tiny_model: MakeModel) -> None:
    folder = tiny_model()
    spelling = Spelling(load_tokenizer(folder, None))
    how = Decoding(temperature=0.9, top_p=0.95, seed=3)
    many = [Request(prompt, 30, key=str(at), n=3) for at, prompt in enumerate(PROMPTS[:3])]
    found = answers(load_model(folder, None), spelling, many, how)
    assert timeless(answers(load_model(folder, None), spelling, many[1:2], how, batch_size=1)) == timeless(found[1:2])
    assert len({one.text for one in found[1]}) == 3
    other = answers(load_model(folder, None), spelling, many[1:2], Decoding(0.9, 0.95, seed=4))
    assert timeless(other) != timeless(found[1:2])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_of_many_ids_one_is_chosen_here(temperature: float, tiny_model: MakeModel) -> None:
    """As the other decoder chooses: the mask first, then temperature and the share of the probability."""
    spelling = Spelling(load_tokenizer(tiny_model(), None))
    size = len(spelling.table)
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(1)) * 3
    logprobs = {at: SimpleNamespace(logprob=float(nats)) for at, nats in enumerate(logits.log_softmax(-1)[0])}
    how = Decoding(temperature, top_p=0.8)
    for number in range(20):
        rows = rows_of(Request("x", 9, key=str(number), n=2), batching.Prompt(0, [1], b" "), 0)
        masked = logits.masked_fill(~spelling.allowed(b" "), -torch.inf)
        wanted = draw(masked / temperature, 0.8, rows[1].uniform(1)) if temperature else masked.argmax(-1)
        rows = rows_of(Request("x", 9, key=str(number), n=2), batching.Prompt(0, [1], b" "), 0)
        assert with_vllm.choose(logprobs, rows[1], spelling, how) == int(wanted)


# ---- what is asked of vLLM


def test_only_what_spells_the_end_again_may_come_first(tiny_model: MakeModel) -> None:
    spelling = Spelling(load_tokenizer(tiny_model(), None))

    def asked(row: Row, how: Decoding = GREEDY) -> dict[str, Any]:
        return with_vllm.settings(row, spelling, how)

    (row,) = rows_of(Request("x = self.", 20), batching.Prompt(0, [1], b"self."), 0)
    first = asked(row)
    assert first["max_tokens"] == 1 and first["temperature"] == 0 and "seed" not in first
    spelt = {spelling.table[index] for index in first["allowed_token_ids"]}
    assert {b"s"} <= spelt
    assert all(b"self.".startswith(own) or own.startswith(b"self.") for own in spelt)
    assert not set(first["allowed_token_ids"]) & special_ids(spelling.tokenizer)
    row.take(next(at for at in first["allowed_token_ids"] if spelling.table[at] == b"s"), b"s", False)
    rest = {spelling.table[index] for index in asked(row)["allowed_token_ids"]}
    assert all(b"elf.".startswith(own) or own.startswith(b"elf.") for own in rest)
    row.take(0, b"elf.x", False)
    assert asked(row) == {"temperature": 0.0, "max_tokens": 2 * 20 + 65 - 2}
    drawn = asked(row, Decoding(temperature=0.5, top_p=0.9))
    assert (drawn["temperature"], drawn["top_p"]) == (0.5, 0.9) and 0 <= drawn["seed"] < 2**31


def test_vllm_that_does_not_start_is_told_with_its_reason(
    tiny_model: MakeModel, vllm: type[fake_vllm.LLMEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_args: object) -> None:
        raise RuntimeError("No room for the cache.\nand much more")

    monkeypatch.setattr(vllm, "from_engine_args", fails)
    folder = tiny_model()
    with pytest.raises(EvaluationError, match=r"eval.backend=vllm: .*: No room for the cache\. .*backend=transformers"):
        answers(load_model(folder, None), Spelling(load_tokenizer(folder, None)), REQUESTS)


def test_vllm_that_ends_while_it_writes_leaves_what_is_finished(
    tiny_model: MakeModel, vllm: type[fake_vllm.LLMEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, step, found = tiny_model(), vllm.step, []

    def until_one_is_finished(engine: fake_vllm.LLMEngine) -> list[SimpleNamespace]:
        if found:
            raise RuntimeError("EngineDeadError: a process has ended\nmore")
        return step(engine)

    monkeypatch.setattr(vllm, "step", until_one_is_finished)
    spelling = Spelling(load_tokenizer(folder, None))
    with pytest.raises(
        EvaluationError, match=r"ended while it wrote: EngineDeadError: a process has ended \(.*is kept"
    ):
        for index, _ in with_vllm.generate(load_model(folder, None), spelling, REQUESTS, batch_size=1):
            found.append(index)
    assert len(found) == 1


# ---- refused beforehand


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, platforms: str) -> None:
    """A package ``vllm`` for other processes."""
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass EngineArgs:\n    model: str\n"
        "    tensor_parallel_size: int = 1\n    gpu_memory_utilization: float = 0.9\n"
    )
    (folder / "vllm" / "platforms.py").write_text(platforms)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_without_vllm_its_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "import a_library_that_is_missing")
    with pytest.raises(ConfigError, match=r"a_library_that_is_missing.*pip install 'kldistill\[vllm\]'"):
        with_vllm.check(RuntimeConfig(), VllmConfig())


def test_vllm_must_be_for_this_device_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "class current_platform: device_type = 'cuda'")
    with_vllm.check(RuntimeConfig(), VllmConfig())
    with_vllm.check(RuntimeConfig(device="cuda"), VllmConfig())
    with pytest.raises(ConfigError, match=r"runtime.device=cpu: the vLLM that is installed runs on cuda"):
        with_vllm.check(RuntimeConfig(device="cpu"), VllmConfig())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes"):
        with_vllm.check(RuntimeConfig(), VllmConfig())


def test_gpus_and_settings_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "class current_platform: device_type = 'cuda'")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with_vllm.check(RuntimeConfig(), VllmConfig(tensor_parallel_size=4, gpu_memory_utilization=0.5))
    with pytest.raises(ConfigError, match=r"parallel_size=2 times .*parallel_size=3 are 6 GPUs, and 4 are visible"):
        with_vllm.check(RuntimeConfig(), VllmConfig(tensor_parallel_size=2, pipeline_parallel_size=3))
    with pytest.raises(ConfigError, match=r"eval\.vllm\.kv_cache_dtype: the vLLM that is installed has no such"):
        with_vllm.check(RuntimeConfig(), VllmConfig(kv_cache_dtype="fp8"))
    for wrong in ({"tensor_parallel_size": 0}, {"gpu_memory_utilization": 1.5}, {"cpu_offload_gb": -1.0}):
        with pytest.raises(ConfigError, match=rf"eval\.vllm\.{next(iter(wrong))}"):
            VllmConfig(**wrong)  # type: ignore[arg-type]


def test_what_vllm_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.cut='masked'.*eval.backend=transformers"):
        EvalConfig(backend="vllm", cut="masked")
    with pytest.raises(ConfigError, match=r"eval.temperature=0.005"):
        EvalConfig(backend="vllm", temperature=0.005)
    with pytest.raises(ConfigError, match=r"eval.backend='other': must be transformers or vllm"):
        EvalConfig(backend="other")
    EvalConfig(backend="vllm", cut="merged", temperature=0.8)


# ---- vLLM itself

PROGRAM = """
import json, os, sys
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0")
import torch
torch.set_num_threads(1)
from functools import partial
from pathlib import Path
from kldistill.evaluation.generation import batching, with_vllm
from kldistill.evaluation.generation.cuts import Merging
from kldistill.evaluation.generation.decoding import Decoding
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.tokens.pieces import PieceTable
from kldistill.training.load import load_model, load_tokenizer
job = json.load(open(sys.argv[1]))
model, tokens, rows = map(Path, job["folders"])
spelling = Spelling(load_tokenizer(model, tokens))
requests = [batching.Request(prompt, 50, ("\\n\\n", "def "), key=prompt) for prompt in job["prompts"]]

def written(generate, requests, how):
    found = sorted(generate(load_model(model, rows), spelling, requests, how, batch_size=4))
    return [[vars(one) for one in samples] for _, samples in found]

cut = Merging(PieceTable.load(tokens))
cut.spelt, cut.longest = {tuple(pair): new for pair, new in job["merges"]} | cut.spelt, max(2, cut.longest)
out = {}
for name, most, how in (("free", 1024, Decoding()), ("all", 0, Decoding()), ("merged", 1024, Decoding(cut=cut))):
    with_vllm.ALLOWED = most
    out[name] = [written(module.generate, requests, how) for module in (batching, with_vllm)]
with_vllm.ALLOWED = 1024
drawn = [batching.Request(prompt, 1, n=300, key=prompt) for prompt in job["drawn"]]
own = partial(with_vllm.generate, engine_args={"enforce_eager": True, "max_num_batched_tokens": 512})
out["drawn"] = written(own, drawn, Decoding(temperature=0.8, top_p=0.9))
json.dump(out, open(sys.argv[2], "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_vllm_itself_writes_the_same(
    family: str, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    """Greedy texts, ids and costs, with the end of the prompt spelt again in both ways, and with merged pieces; and
    tokens drawn from the same distribution.
    """
    folder = tiny_model(family, hidden_size=256)  # heads of 64, which its kernels know
    tokens, rows = fake_tokens(folder), rows_for(folder, 24, True, tmp_path / "rows")
    spelling = Spelling(load_tokenizer(folder, tokens))
    model = load_model(folder, rows)
    free = [samples[0] for _, samples in sorted(batching.generate(model, spelling, REQUESTS, batch_size=4))]
    pairs = Counter(pair for one in free for pair in pairwise(one.token_ids))
    frequent = [pair for pair, _ in pairs.most_common() if pair[0] != pair[1]][:2]
    merges = list(zip(frequent, (frequent[1][1], frequent[0][0]), strict=True))
    folders = list(map(str, (folder, tokens, rows)))
    whole = next(TEXT[:end] for end in range(60, 400) if not rest_of(spelling, TEXT[:end]))
    job = {"folders": folders, "prompts": PROMPTS, "merges": merges, "drawn": [PROMPTS[2], whole]}
    seen = run(PROGRAM, "vllm", "KLDISTILL_VLLM", job, tmp_path)
    for name in ("free", "all", "merged"):
        theirs, ours = seen[name]
        for one in (one for found in (theirs, ours) for samples in found for one in samples):
            assert one.pop("seconds") > 0
        assert ours == theirs, name
    assert seen["merged"] != seen["free"]
    assert sum(samples[0]["healed"] > 0 for samples in seen["free"][0]) >= 3
    size = len(load_tokenizer(folder, None))
    assert any(index >= size for samples in seen["free"][0] for index in samples[0]["token_ids"])
    for index, samples in enumerate(seen["drawn"]):
        likely = shares(model, spelling, job["drawn"][index], temperature=0.8, top_p=0.9)
        drawn = Counter(one["token_ids"][0] for one in samples)
        assert set(drawn) <= set(likely) and len(likely) > 5, "nothing else may come first, or has a share"
        apart = sum(abs(drawn[at] / len(samples) - share) for at, share in likely.items()) / 2
        assert apart < 0.15, (drawn, likely)


def rest_of(spelling: Spelling, prompt: str) -> bytes:
    """What is to be spelt again."""
    return spelling.healed(encode(spelling.tokenizer, [prompt])[0])[1]


@torch.no_grad()
def shares(
    model: PreTrainedModel, spelling: Spelling, prompt: str, temperature: float, top_p: float
) -> dict[int, float]:
    """The ids that may come first, and how often each should be drawn."""
    ids, rest = spelling.healed(encode(spelling.tokenizer, [prompt])[0])
    logits = model(torch.tensor([ids])).logits[0, -1].double()
    if rest:
        logits = logits.masked_fill(~spelling.allowed(rest), -torch.inf)
    p, index = (logits / temperature).softmax(-1).sort(descending=True)
    p[p.cumsum(0) - p >= top_p] = 0
    return {int(at): float(share) for at, share in zip(index, p / p.sum(), strict=True) if share > 0}
