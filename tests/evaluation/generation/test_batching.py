"""Generation: the same ids as plain generation, whatever the company; bytes, stop strings, sampling."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kldistill.evaluation.generation import attention, batching, decoding, lookup, packed, sampling
from kldistill.evaluation.generation.batching import Completion, Request, alike, common_prefix, generate
from kldistill.evaluation.generation.decoding import Decoding, Row
from kldistill.evaluation.generation.layout import by_columns
from kldistill.evaluation.generation.sampling import draw
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.model import smollm2, tiny
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.runtime.devices import ON_ACCELERATOR, ON_CPU, Sizes
from kldistill.runtime.errors import EvaluationError
from kldistill.tokens.encoding import encode, special_ids
from kldistill.training.load import load_model, load_tokenizer
from tests.helpers.artifacts import MakeModel, MakeTokens

TEXT = tiny.training_text()[0]
PROMPTS = [TEXT[at : at + size] for at, size in ((100, 40), (700, 90), (1500, 25), (2100, 160), (3000, 60), (3900, 75))]


def load(folder: Path) -> tuple[PreTrainedModel, Spelling]:
    return load_model(folder, None), Spelling(load_tokenizer(folder, None))


def answers(
    model: PreTrainedModel, spelling: Spelling, requests: list[Request], batch_size: int = 4, **how: float
) -> list[list[Completion]]:
    """Completions in the order of the requests."""
    found = dict(generate(model, spelling, requests, Decoding(**how), batch_size=batch_size))  # type: ignore[arg-type]
    assert sorted(found) == list(range(len(requests))), "each request once"
    return [found[index] for index in range(len(requests))]


def sized(monkeypatch: pytest.MonkeyPatch, of: Sizes = ON_CPU, **sizes: int) -> None:
    """Do so much at a time, whatever the device."""
    for module in (batching, decoding, packed):
        monkeypatch.setattr(module, "suited", lambda _: of._replace(**sizes))


@pytest.fixture
def unhealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts stay as they are."""
    monkeypatch.setattr(Spelling, "healed", lambda self, ids: (list(ids), b""))


# ---- against plain generation


@pytest.mark.usefixtures("unhealed")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3", "qwen2", "gpt_neox"])
def test_the_ids_are_those_of_plain_generation(family: str, tiny_model: MakeModel) -> None:
    model, spelling = load(tiny_model(family, pad_to=1))  # plain generation may choose a padding row
    requests = [Request(prompt, budget=30) for prompt in PROMPTS]
    laid_out = by_columns(load(tiny_model(family, pad_to=1))[0])
    for (name, theirs), (_, ours) in zip(model.named_parameters(), laid_out.named_parameters(), strict=True):
        assert torch.equal(theirs, ours), name
    head, embedding = (laid_out.get_output_embeddings().weight, laid_out.get_input_embeddings().weight)
    assert head.stride() == (1, head.shape[0]), "by columns"
    assert (head is embedding) == laid_out.config.get_text_config().tie_word_embeddings
    for request, (completion,) in zip(requests, answers(laid_out, spelling, requests), strict=True):
        ids = torch.tensor(encode(spelling.tokenizer, [request.prompt]))
        n = len(completion.token_ids) + (completion.ended == "eos")
        plain = model.generate(ids, max_new_tokens=n, do_sample=False)[0, ids.shape[1] :].tolist()  # type: ignore[operator]
        assert plain[: len(completion.token_ids)] == completion.token_ids
        if completion.ended == "eos":
            assert plain[-1] in special_ids(spelling.tokenizer), "any of them ends an answer"
        else:
            assert len(spelling.spell(completion.token_ids)) >= 30


def greedy_after(model: PreTrainedModel, ids: torch.Tensor, found: list[int]) -> list[int]:
    """The likeliest token after each beginning of ``found``: where these are ``found``, plain generation writes it."""
    with torch.no_grad():
        logits_TV = model(torch.cat([ids, torch.tensor([found], dtype=ids.dtype)], 1), use_cache=False).logits[0]
    return logits_TV[ids.shape[1] - 1 : -1].argmax(-1).tolist()


# Models of other shapes: attention sinks, keys of another width than values, attention of a model's own (two, whose
# prompts run alone), states that no token can be taken back from (alone), no cache that is known here (alone).
OTHERS: dict[str, tuple[bool, dict[str, object]]] = {
    "gpt_oss": (True, {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8}),
    "deepseek_v3": (
        True,
        {
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 8},
            **{"moe_intermediate_size": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
            **{"head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1},
        },
    ),
    "gptj": (False, {"rotary_dim": 4}),
    "bloom": (False, {}),
    "lfm2": (False, {"layer_types": ["conv", "full_attention"]}),
    "mamba": (False, {}),
}


@pytest.mark.usefixtures("unhealed")
@pytest.mark.parametrize("name", OTHERS)
def test_any_causal_model_writes(name: str, tiny_model: MakeModel) -> None:
    spelling = load(tiny_model("llama", pad_to=1))[1]
    fits, own = OTHERS[name]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"vocab_size": len(spelling.table), "intermediate_size": 48, "head_dim": 8}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(shape | own))).eval()
    for weight in model.parameters():
        weight.data *= 3 if weight.dim() > 1 else 1  # so that not every token is the one before
    assert attention.fits(model) == fits
    requests = [Request(prompt, budget=30, n=2) for prompt in PROMPTS]
    for request, found in zip(requests, answers(model, spelling, requests), strict=True):
        ids = torch.tensor(encode(spelling.tokenizer, [request.prompt]))
        for written in {tuple(completion.token_ids) for completion in found}:
            assert greedy_after(model, ids, list(written)) == list(written)


# ---- guesses


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guesses_save_passes_and_change_nothing(
    temperature: float, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spelling = load(tiny_model("llama"))
    passes: list[int] = []
    run = packed.Places.run

    def noted(self: packed.Places, tokens: Sequence[Sequence[int]], wanted: Sequence[int]) -> torch.Tensor:
        passes.append(sum(map(len, tokens)))
        return run(self, tokens, wanted)

    monkeypatch.setattr(packed.Places, "run", noted)
    requests = [Request(prompt * 3, budget=90, key=str(at), n=2) for at, prompt in enumerate(PROMPTS)]
    found, n_passes = {}, {}
    for name, length in (("none", 0), ("some", None), ("many", lookup.MOST)):
        passes.clear()
        if length is not None:
            monkeypatch.setattr(lookup.Trust, "length", lambda *_, length=length: length)
        found[name] = answers(model, spelling, requests, batch_size=5, temperature=temperature, top_p=0.9)
        n_passes[name] = len(passes)
        monkeypatch.undo()
        monkeypatch.setattr(packed.Places, "run", noted)
    ids = {name: [[c.token_ids for c in own] for own in each] for name, each in found.items()}
    assert ids["none"] == ids["some"] == ids["many"]
    if temperature == 0:
        assert n_passes["many"] < n_passes["none"]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_company_changes_nothing(family: str, tiny_model: MakeModel) -> None:
    model, spelling = load(tiny_model(family))
    # Budgets of all sizes: rows leave and others join all the time.
    requests = [Request(prompt, budget=5 + at * at) for at, prompt in enumerate(PROMPTS * 2)]
    together = answers(model, spelling, requests, batch_size=5)
    for request, (completion,) in zip(requests, together, strict=True):
        ((alone,),) = answers(model, spelling, [request], batch_size=1)
        assert (alone.text, alone.token_ids, alone.ended) == (completion.text, completion.token_ids, completion.ended)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_shared_beginning_changes_nothing(family: str, tiny_model: MakeModel) -> None:
    model, spelling = load(tiny_model(family))
    beginning = TEXT[:200]
    requests = [Request(beginning + TEXT[at : at + 20 + at % 37], budget=30) for at in range(1000, 1900, 100)]
    ids = encode(spelling.tokenizer, [request.prompt for request in requests])
    assert common_prefix(ids) > 40 and len(requests) >= 8, "run once"
    together = answers(model, spelling, requests, batch_size=4)
    for request, (completion,) in zip(requests, together, strict=True):
        ((alone,),) = answers(model, spelling, [request], batch_size=1)
        assert alone.token_ids == completion.token_ids


@pytest.mark.usefixtures("unhealed")
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_sliding_windows_slide_over_tokens_not_over_padding(
    family: str, tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(family, pad_to=1), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 12}))
    model, spelling = load(folder)
    sized(monkeypatch, prompt_tokens=7)
    shared = [TEXT[:200] + TEXT[at : at + 20 + at % 37] for at in range(1000, 1900, 100)]
    requests = [Request(prompt, budget=40) for prompt in [*PROMPTS, *shared]]
    for request, (completion,) in zip(requests, answers(model, spelling, requests), strict=True):
        ids = torch.tensor(encode(spelling.tokenizer, [request.prompt]))
        assert greedy_after(model, ids, completion.token_ids) == completion.token_ids


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_long_prompts_in_parts_are_the_same(
    family: str, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spelling = load(tiny_model(family))
    shared = [TEXT[:200] + TEXT[at : at + 20 + 2 * (at % 37)] for at in range(1000, 1900, 100)]
    requests = [Request(prompt, budget=30) for prompt in [*PROMPTS, *shared]]
    whole = answers(model, spelling, requests)
    sized(monkeypatch, prompt_tokens=5)
    sliced = answers(model, spelling, requests)
    assert [c.token_ids for (c,) in whole] == [c.token_ids for (c,) in sliced]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_the_sizes_of_an_accelerator_give_the_same(
    family: str, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole prompts in one pass, some or all of them met together, with as many guesses as there is room for."""
    model, spelling = load(tiny_model(family))
    shared = [TEXT[:200] + TEXT[at : at + 40 + 2 * (at % 37)] for at in range(1000, 1900, 100)]
    requests = [Request(prompt, budget=40, n=1 + at % 3) for at, prompt in enumerate([*PROMPTS, *shared])]
    how = {"batch_size": 12, "temperature": 0.7}
    alone = answers(model, spelling, requests, **how)  # type: ignore[arg-type]
    for cells in (2_000, 4_000, 2**22):
        sized(monkeypatch, ON_ACCELERATOR, attention_cells=cells)
        together = answers(model, spelling, requests, **how)  # type: ignore[arg-type]
        assert [[c.token_ids for c in samples] for samples in together] == [
            [c.token_ids for c in samples] for samples in alone
        ], cells


def test_the_cache_takes_a_third_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2-135M in float32 has 46,080 bytes a cell; on a CPU nothing is asked."""
    config = smollm2.config()
    cells = {}
    for gigabytes in (100, 3, 0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, n=gigabytes: (n * 10**9, 140 * 10**9))
        model: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, config=config)
        cells[gigabytes] = batching.cells_of(model)
    assert cells == {100: ON_ACCELERATOR.cells, 3: 10**9 // 46_080, 0: 1}
    model.device = torch.device("cpu")
    assert batching.cells_of(model) == ON_CPU.cells


def test_neighbours_with_many_tokens_are_met_together() -> None:
    sizes = [20, 30, 1, 40, 17, 17, 0, 90]
    ends = [20, 30, 50, 40, 20, 17, 9, 90]
    assert list(packed._long(sizes, ends, 2**22)) == [range(2), range(3, 6), range(7, 8)]
    assert list(packed._long(sizes, ends, 0)) == [range(at, at + 1) for at in (0, 1, 3, 4, 5, 7)]
    # 2 x 40 x 40 is one too many, 2 x 17 x 20 is not.
    assert list(packed._long(sizes, ends, 3_199)) == [range(2), range(3, 4), range(4, 6), range(7, 8)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nothing_is_run_for_padding(family: str, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token of a prompt and of what is written is run once, and no other, whatever the lengths are."""
    model, spelling = load(tiny_model(family))
    monkeypatch.setattr(lookup.Trust, "length", lambda *_: 0)
    n_run = 0
    run = packed.Places.run

    def noted(self: packed.Places, tokens: Sequence[Sequence[int]], wanted: Sequence[int]) -> torch.Tensor:
        nonlocal n_run
        n_run += sum(map(len, tokens))
        return run(self, tokens, wanted)

    monkeypatch.setattr(packed.Places, "run", noted)
    found = answers(model, spelling, [Request(prompt, budget=20) for prompt in PROMPTS])
    prompts = [spelling.healed(ids)[0] for ids in encode(spelling.tokenizer, PROMPTS)]
    # The last token of an answer is written and not run.
    written = sum(len(c.token_ids) - (c.ended != "eos") for (c,) in found)
    assert n_run == sum(map(len, prompts)) + written


def test_prompts_that_begin_alike_are_put_together(tiny_model: MakeModel) -> None:
    from kldistill.evaluation.generation.batching import Prompt

    many = [Prompt(at, [7] * 40 + [at], b"") for at in range(9)]
    few = [Prompt(9 + at, [8] * 40 + [at], b"") for at in range(3)]
    assert [[p.index for p in group] for group in alike(many + few)] == [list(range(9)), [9, 10, 11]]
    assert common_prefix([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3]]) == 2, "each keeps a token of its own"
    assert common_prefix([[1, 2], [2, 1]]) == 0


def test_padding_rows_of_the_embedding_are_never_chosen(tiny_model: MakeModel) -> None:
    model, spelling = load(tiny_model("llama", pad_to=100))
    head = model.get_output_embeddings()  # type: ignore[operator]
    assert head.weight.shape[0] > len(spelling.table)
    with torch.no_grad():
        model.get_input_embeddings().weight[len(spelling.table) :] = 100.0  # type: ignore[operator]
        head.weight[len(spelling.table) :] = 100.0
    for (completion,) in answers(model, spelling, [Request(prompt, budget=20) for prompt in PROMPTS]):
        assert all(index < len(spelling.table) for index in completion.token_ids)


def test_a_prompt_beyond_the_context_is_refused(tiny_model: MakeModel) -> None:
    model, spelling = load(tiny_model())
    model.config.max_position_embeddings = 20  # type: ignore[union-attr]
    with pytest.raises(EvaluationError, match="the model's context 20: lower the suite's prompt_bytes"):
        answers(model, spelling, [Request(TEXT[:400], budget=5)])
    ((cut,),) = answers(model, spelling, [Request(TEXT[:8], budget=500)])
    assert cut.ended == "budget" and len(cut.token_ids) < 20, "ends where the context does"


# ---- bytes and stop strings


def row(budget: int = 100, stop: tuple[bytes, ...] = (), rest: bytes = b"") -> Row:
    return Row(0, 0, rest, budget, stop, random.Random(0))


def test_a_stop_string_is_found_across_tokens() -> None:
    found = row(stop=(b"\nclass", b"\ndef"))
    for index, spelt in enumerate([b"x = 1", b"\n", b"de", b"f g"]):
        assert not found.ended
        found.take(index, spelt, False)
    assert (found.ended, found.text, found.n_tokens) == ("stop", b"x = 1", 4)


def test_the_first_stop_string_in_the_text_counts() -> None:
    found = row(stop=(b"late", b"early"))
    found.take(0, b"an early and a late one", False)
    assert found.text == b"an "


def test_a_stop_string_beyond_the_budget_does_not_count() -> None:
    found = row(budget=4, stop=(b"#",))
    found.take(0, b"abcdef#", False)
    assert (found.ended, found.text) == ("budget", b"abcd")
    found = row(budget=4, stop=(b"#",))
    found.take(0, b"abcd#", False)
    assert (found.ended, found.text) == ("stop", b"abcd")


def test_a_stop_string_is_not_sought_in_the_prompt() -> None:
    found = row(stop=(b"\ndef",), rest=b"\n")
    found.take(0, b"\nd", False)
    found.take(1, b"ef f", False)
    assert not found.ended and found.text == b"def f"


def test_the_end_token_leaves_no_text() -> None:
    found = row()
    found.take(0, b"abc", False)
    found.take(1, b"<end>", True)
    assert (found.ended, found.text, found.ids) == ("eos", b"abc", [0])


def test_tokens_that_only_spell_the_prompt_again_are_not_counted() -> None:
    found = row(rest=b"self.")
    for index, spelt in enumerate([b"self", b".", b"config"]):
        found.take(index, spelt, False)
    assert (found.text, found.n_tokens, found.rest) == (b"config", 1, b"")
    found = row(rest=b"self.")
    found.take(0, b"self.config", False)
    assert (found.text, found.n_tokens) == (b"config", 1)


def test_tokens_without_text_cannot_go_on_for_ever() -> None:
    found = row(budget=10)
    while not found.ended:
        found.take(0, b"", False)
    assert found.ended == "budget" and len(found.ids) < 100


def test_the_budget_is_in_bytes_and_cuts_no_character(tiny_model: MakeModel) -> None:
    model, spelling = load(tiny_model())
    for budget in (1, 2, 3, 7, 40):
        requests = [Request(prompt, budget=budget) for prompt in PROMPTS]
        for (completion,) in answers(model, spelling, requests):
            assert completion.n_bytes == len(completion.text.encode()) <= budget


# ---- sampling


def test_samples_depend_on_seed_and_key_alone(tiny_model: MakeModel) -> None:
    model, spelling = load(tiny_model())
    requests = [Request(prompt, budget=25, n=3, key=f"task{at}") for at, prompt in enumerate(PROMPTS)]
    options = {"temperature": 1.0, "top_p": 0.95}
    first = answers(model, spelling, requests, batch_size=7, **options)
    turned = answers(model, spelling, requests[::-1], batch_size=4, **options)[::-1]
    assert [[c.token_ids for c in found] for found in first] == [[c.token_ids for c in found] for found in turned]
    assert len({tuple(completion.token_ids) for found in first for completion in found}) > len(requests)
    other = answers(model, spelling, requests, seed=1, **options)
    assert [c.text for (c, *_) in other] != [c.text for (c, *_) in first]


def test_draws_follow_the_probabilities_and_stay_in_the_nucleus() -> None:
    p = torch.tensor([0.1, 0.5, 0.15, 0.25])
    n = 4000
    uniform = [(at + 0.5) / n for at in range(n)]
    counts = Counter(draw(p.log().expand(n, -1).clone(), 1.0, uniform).tolist())
    assert {index: count / n for index, count in counts.items()} == pytest.approx(dict(enumerate(p.tolist())), abs=1e-3)
    counts = Counter(draw(p.log().expand(n, -1).clone(), 0.7, uniform).tolist())
    assert {index: count / n for index, count in counts.items()} == pytest.approx({1: 2 / 3, 3: 1 / 3}, abs=1e-3)
    assert draw(p.log()[None], 1e-9, [0.999]).tolist() == [1], "the first always stays"


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.6])
def test_draws_among_few_are_those_of_sorted_rows(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as sharp as models', and rows that are nearly flat, for which the few most probable ids will not do."""
    logits = torch.randn(600, 500, generator=torch.Generator().manual_seed(0))
    logits *= torch.linspace(0.1, 8, 600)[:, None]
    chance = random.Random(0)
    uniform = [chance.random() for _ in range(600)]
    monkeypatch.setattr(sampling, "FEW", 500)
    whole = draw(logits, top_p, uniform)
    monkeypatch.setattr(sampling, "FEW", 40)
    p = logits.softmax(-1).sort(-1, descending=True).values[:, :40].sum(-1)
    assert (p < 0.6).sum() > 50 and (p > 0.99).sum() > 50
    assert torch.equal(draw(logits, top_p, uniform), whole)


# ---- the extended model


def test_an_extended_model_generates_with_its_own_tokens(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    folder = tiny_model()
    tokens = fake_tokens(folder)
    size = load_original(folder).get_input_embeddings().weight.shape[1]
    # New rows so large, in pairs that point away from each other, that one of them is always the most probable.
    large = 50 * torch.randn(12, size, generator=torch.Generator().manual_seed(0))
    Rows(torch.cat([large, -large])).save(tmp_path)
    spelling = Spelling(load_tokenizer(folder, tokens))
    model = load_model(folder, tmp_path)
    found = answers(model, spelling, [Request(prompt, budget=30) for prompt in PROMPTS])
    old = len(spelling.table) - 24
    for (completion,) in found:
        after_the_healed = list(dropwhile(lambda index: index < old, completion.token_ids))
        assert after_the_healed and min(after_the_healed) >= old


def test_a_few_that_leave_early_do_not_shorten_what_many_share() -> None:
    from kldistill.evaluation.generation.batching import Prompt

    many = [Prompt(at, [7] * 400 + [at], b"") for at in range(12)]
    few = [Prompt(12 + at, [7] * 60 + [99 + at] * 100, b"") for at in range(3)]
    groups = alike([*few, *many])
    assert [sorted(prompt.index for prompt in group) for group in groups] == [list(range(12)), [12, 13, 14]]
    assert common_prefix([prompt.ids for prompt in groups[0]]) == 400


def test_a_special_token_ends_the_answer_and_is_never_text(tiny_model: MakeModel, monkeypatch) -> None:
    """Not only EOS: a chat's marker, or a reserved token, that the model prefers at the third step."""
    folder = tiny_model("llama", tied=False)
    model, spelling = load(folder)
    spelling.tokenizer.add_special_tokens({"additional_special_tokens": ["the"]})  # one with a row of its own
    reserved = spelling.tokenizer.convert_tokens_to_ids("the")
    spelling = Spelling(spelling.tokenizer)
    steps = 0
    choose = decoding.Rows._choose

    def prefer(self, logits, rows):
        nonlocal steps
        steps += 1
        if steps == 3:
            logits[:, reserved] = 1e4
        return choose(self, logits, rows)

    monkeypatch.setattr(decoding.Rows, "_choose", prefer)
    ((completion,),) = answers(model, spelling, [Request("def f(x):\n    ", budget=40)])
    assert completion.ended == "eos" and reserved not in completion.token_ids
