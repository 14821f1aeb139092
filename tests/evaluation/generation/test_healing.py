"""Healed prompts in transformers' ``generate``, against this package's own decoder."""

from pathlib import Path

import pytest
import torch

from kldistill.evaluation.generation.batching import Request, generate
from kldistill.evaluation.generation.healing import HealedPrompts
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.model import tiny
from kldistill.rows.rows import Rows
from kldistill.runtime.errors import EvaluationError
from kldistill.tokens.encoding import encode
from kldistill.training.load import load_model, load_tokenizer
from tests.helpers.artifacts import MakeModel, MakeTokens

TEXT = tiny.training_text()[0]
PROMPTS = [TEXT[:end] for end in (40, 75, 116, 163, 240, 300, 351)]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_greedy_answers_are_those_of_the_own_decoder(
    family: str, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    folder = tiny_model(family, pad_to=96)
    tokens = fake_tokens(folder, 60)
    Rows(0.3 * torch.randn(60, 32, generator=torch.Generator().manual_seed(0))).save(tmp_path)
    model, tokenizer = load_model(folder, tmp_path), load_tokenizer(folder, tokens)
    spelling = Spelling(tokenizer)
    ids = encode(tokenizer, PROMPTS)
    healed = HealedPrompts(tokenizer, [list(row) for row in ids])
    assert sum(map(bool, healed.ends)) >= 3, "or the test shows little"
    made = model.generate(  # type: ignore[operator]
        **healed.inputs,
        logits_processor=[healed],
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, healed.length :].tolist()
    theirs = dict(generate(model, spelling, [Request(prompt, budget=60) for prompt in PROMPTS], batch_size=4))
    for index, (prompt, end, row) in enumerate(zip(ids, healed.ends, made, strict=True)):
        assert spelling.spell(row).startswith(end)
        whole = spelling.spell([*spelling.healed(prompt)[0][1:], *row])
        assert whole.startswith(spelling.spell(prompt[1:]))
        (own,) = theirs[index]
        size = min(len(own.token_ids), len(row)) - 1
        assert size > 3 and own.token_ids[:size] == row[:size]


def test_a_prompt_without_a_token_is_refused(tiny_model: MakeModel) -> None:
    tokenizer = load_tokenizer(tiny_model(), None)
    for prompts in ([], [[]], [[], [5, 6]]):
        with pytest.raises(EvaluationError, match="every prompt needs a token"):
            HealedPrompts(tokenizer, prompts)
    for wrong in ([5, 6], torch.tensor([[5, 6]]), tokenizer(["if x"]), "if x"):
        with pytest.raises(EvaluationError, match="the ids of each prompt as a list"):
            HealedPrompts(tokenizer, wrong)  # type: ignore[arg-type]


def test_several_answers_to_each_prompt_spell_its_end(tiny_model: MakeModel) -> None:
    folder = tiny_model()
    model, tokenizer = load_model(folder, None), load_tokenizer(folder, None)
    spelling, healed = Spelling(tokenizer), HealedPrompts(tokenizer, [list(row) for row in encode(tokenizer, PROMPTS)])
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 12, "pad_token_id": 0}
    made = model.generate(**healed.inputs, logits_processor=[healed], **options)  # type: ignore[operator]
    assert len(made) == 3 * len(PROMPTS)
    for row, end in zip(made[:, healed.length :].tolist(), [end for end in healed.ends for _ in range(3)], strict=True):
        assert spelling.spell([index for index in row if index < len(spelling.table)]).startswith(end)
