"""Healing of the prompt's end, adoption of new tokens, ranking: fair to both tokenizers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import GPT2Config, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from kldistill.evaluation.generation.batching import Request, generate
from kldistill.evaluation.generation.ranking import likelihoods, rank
from kldistill.evaluation.generation.spelling import Spelling, adoption
from kldistill.model import tiny
from kldistill.runtime.errors import EvaluationError
from kldistill.tokens.encoding import encode
from kldistill.training.load import load_model, load_tokenizer
from tests.helpers.artifacts import MakeModel, MakeTokens

TEXT = tiny.training_text()[0]


class Wants(PreTrainedModel):
    """A model that always gives the same tokens the highest logits, in this order."""

    config_class = GPT2Config
    generation_config = None

    def __init__(self, order: list[int], size: int) -> None:
        super().__init__(GPT2Config(n_layer=1))
        self.logits = torch.nn.Parameter(torch.zeros(size), requires_grad=False)
        for at, index in enumerate(order):
            self.logits[index] = len(order) - at

    def forward(self, ids: torch.Tensor, **_: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.logits.expand(*ids.shape, -1).clone())


@pytest.fixture(scope="module")
def spellings(tiny_model: MakeModel, fake_tokens: MakeTokens) -> dict[str, Spelling]:
    """The original tokenizer and the extended one."""
    model = tiny_model()
    return {
        "original": Spelling(load_tokenizer(model, None)),
        "extended": Spelling(load_tokenizer(model, fake_tokens(model))),
    }


BEFORE = "value = 7"  # no token goes on from the digit into a word


def span_of(spelling: Spelling) -> tuple[int, list[int], bytes]:
    """A token, a cut of its text into two shorter tokens, and its text."""
    by_text = {text: index for index, text in enumerate(spelling.table)}
    for index in reversed(range(len(spelling.table))):
        text = spelling.table[index]
        for cut in range(1, len(text)):
            left, right = by_text.get(text[:cut]), by_text.get(text[cut:])
            if left and right and text[:cut].isalpha() and text[cut:].isalpha():
                ids = encode(spelling.tokenizer, [BEFORE + text[:cut].decode()])[0]
                if ids[-1] == left and spelling.healed(ids)[1] == text[:cut]:
                    return index, [left, right], text
    raise AssertionError("no such token")


@pytest.mark.parametrize("name", ["original", "extended"])
def test_without_healing_a_token_across_the_prompts_end_cannot_be_written(
    name: str, spellings: dict[str, Spelling], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same procedure, and the same gain, for either tokenizer."""
    spelling = spellings[name]
    whole, (left, right), text = span_of(spelling)
    if name == "extended":
        assert whole >= len(spellings["original"].table), "a new token"
    prompt, rest = BEFORE + spelling.table[left].decode(), spelling.table[right].decode()
    assert prompt + rest == BEFORE + text.decode()
    # What the model has learnt: this text is written with the whole token, never as its two halves.
    model = Wants([whole], len(spelling.table))
    request = Request(prompt, budget=len(rest))
    ((_, (healed,)),) = generate(model, spelling, [request], batch_size=1)
    assert healed.text == rest
    assert healed.token_ids == [whole] and healed.n_tokens == 1
    assert healed.healed == len(spelling.table[left])
    monkeypatch.setattr(Spelling, "healed", lambda self, ids: (list(ids), b""))
    ((_, (plain,)),) = generate(model, spelling, [request], batch_size=1)
    assert plain.text != rest, "it can only begin the word anew"


@pytest.mark.parametrize("name", ["original", "extended"])
def test_healing_takes_back_the_longest_run_that_a_token_can_span(name: str, spellings: dict[str, Spelling]) -> None:
    spelling = spellings[name]
    for at in range(0, 3000, 37):
        (ids,) = encode(spelling.tokenizer, [TEXT[at : at + 50]])
        kept, rest = spelling.healed(ids)
        assert kept == ids[: len(kept)] and kept[0] == ids[0]
        assert spelling.spell(ids[len(kept) :]) == rest
        longer = [text for text in spelling.table if len(text) > len(rest) and text.startswith(rest)]
        assert longer or not rest
        for start in range(1, len(kept)):
            tail = spelling.spell(ids[start:])
            assert not any(len(text) > len(tail) and text.startswith(tail) for text in spelling.table)


def test_where_no_token_can_span_the_end_nothing_is_taken_back(spellings: dict[str, Spelling]) -> None:
    for spelling in spellings.values():
        ends = [text for text in (")", "@", "é", "7") if not spelling._begins(text.encode())]
        assert ends
        for end in ends:
            (ids,) = encode(spelling.tokenizer, ["value" + end])
            assert spelling.healed(ids) == (ids, b"")


def test_allowed_tokens_agree_with_what_is_to_be_spelt(spellings: dict[str, Spelling]) -> None:
    spelling = spellings["extended"]
    special = set(spelling.tokenizer.all_special_ids)
    for rest in (b"s", b"sel", b"return ", b"\n    "):
        allowed = spelling.allowed(rest)
        for index, text in enumerate(spelling.table):
            agrees = bool(text) and (text.startswith(rest) or rest.startswith(text)) and index not in special
            assert bool(allowed[index]) == agrees, (rest, text)


# ---- adoption


def test_adoption_is_one_for_the_canonical_cut_and_zero_for_old_pieces(spellings: dict[str, Spelling]) -> None:
    old, new = spellings["original"], spellings["extended"]
    size = len(old.table)
    prompt, text = TEXT[:50], TEXT[50:400]
    canonical = encode(new.tokenizer, [prompt + text])[0][1:]
    kept = encode(new.tokenizer, [prompt])[0][1:]
    # What was written is what follows the part of the prompt that both cuts share.
    shared = next(at for at, (a, b) in enumerate(zip([*kept, -1], canonical, strict=False)) if a != b)
    healed = len(new.spell(kept[shared:]))
    expected = sum(index >= size for index in canonical[shared:])
    assert expected >= 3
    assert adoption(new, prompt, text, canonical[shared:], healed, size) == (expected, expected)
    pieces = encode(old.tokenizer, [prompt + text])[0][1:]
    at = 0
    while len(old.spell(pieces[:at])) < len(prompt.encode()) - healed:
        at += 1
    assert adoption(new, prompt, text, pieces[at:], healed, size) == (0, expected)


def test_the_original_tokenizer_has_nothing_to_adopt(spellings: dict[str, Spelling]) -> None:
    old = spellings["original"]
    ids = encode(old.tokenizer, [TEXT[:90]])[0][1:]
    assert adoption(old, "", TEXT[:90], ids, 0, len(old.table)) == (0, 0)


# ---- ranking


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_ranking_is_the_log_probability_of_whole_texts(family: str, tiny_model: MakeModel) -> None:
    folder = tiny_model(family)
    model, spelling = load_model(folder, None), Spelling(load_tokenizer(folder, None))
    questions = []
    for at in range(0, 900, 150):
        right = TEXT[at + 40 : at + 100]
        questions.append((TEXT[at : at + 40], [right, right.replace("e", "o"), right + "!", right[:20] + "x" * at]))
    questions[0] = ("", ["def f():", "class f:"])
    found = dict(rank(model, spelling, questions, batch_size=7))
    assert sorted(found) == list(range(len(questions)))
    for index, (prompt, options) in enumerate(questions):
        whole = []
        for option in options:
            ids = torch.tensor(encode(spelling.tokenizer, [prompt + option]))
            log_p = model(ids).logits[..., : len(spelling.table)].float().log_softmax(-1)
            whole.append(log_p[0, :-1].gather(1, ids[0, 1:, None]).sum().item())
        differences = [value - whole[0] for value in whole]
        assert [value - found[index][0] for value in found[index]] == pytest.approx(differences, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_likelihood_of_a_continuation_is_that_of_its_part_of_the_whole_text(
    family: str, tiny_model: MakeModel
) -> None:
    """White space at a prompt's end counts with what follows, as tokens may hold both."""
    folder = tiny_model(family)
    model, spelling = load_model(folder, None), Spelling(load_tokenizer(folder, None))
    texts = [("def f(x):\n    ", "return x + 1\n"), (TEXT[:90], TEXT[90:200]), ("", "import os"), ("a =", " 1")]
    found = dict(likelihoods(model, spelling, texts, batch_size=3))
    assert sorted(found) == list(range(len(texts)))
    for index, (prompt, continuation) in enumerate(texts):
        whole = encode(spelling.tokenizer, [prompt + continuation])[0]
        log_p = model(torch.tensor([whole])).logits[..., : len(spelling.table)].float().log_softmax(-1)
        nats = log_p[0, :-1].gather(1, torch.tensor(whole)[1:, None]).squeeze(1)
        mine = found[index]
        assert mine.nats == pytest.approx(nats[len(nats) - mine.tokens :].sum().item(), abs=1e-3)
        rest = spelling.spell(whole[len(whole) - mine.tokens :])
        assert mine.bytes == len(rest) and rest.decode().endswith(continuation)
    counted = spelling.spell(encode(spelling.tokenizer, ["".join(texts[0])])[0][-found[0].tokens :])
    # Some tokenizers have a token of punctuation with the line break behind it.
    assert counted.endswith(b"\n    return x + 1\n") and b"):\n    return x + 1\n".endswith(counted)


def test_equal_options_are_refused(tiny_model: MakeModel) -> None:
    model, spelling = load_model(tiny_model(), None), Spelling(load_tokenizer(tiny_model(), None))
    with pytest.raises(EvaluationError, match="Question 0: two of its options are the same text"):
        list(rank(model, spelling, [("a", ["b", "b"])], batch_size=4))


def test_a_question_beyond_the_context_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    model, spelling = load_model(tiny_model(), None), Spelling(load_tokenizer(tiny_model(), None))
    model.config.max_position_embeddings = 10
    with pytest.raises(EvaluationError, match="the model's context 10"):
        list(rank(model, spelling, [(TEXT[:200], ["b", "c"])], batch_size=4))


@pytest.mark.parametrize(("token", "over"), [("ĠisĠnot", True), ("ĠÂłĠÂł", False), ("ĠĠx", False), ("Ġx", False)])
def test_a_token_goes_over_a_space_where_something_stands_on_both_sides(token: str, over: bool) -> None:
    tokenizer = tiny.byte_level("gpt2", 400)
    assert not Spelling(tokenizer).over_spaces
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["vocab"][token] = len(tokenizer)
    wider = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    assert Spelling(wider).over_spaces == over
