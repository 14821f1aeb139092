"""Models whose attention cannot be taken over: rows that run side by side get what each gets by itself."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kldistill.evaluation.generation import attention
from kldistill.evaluation.generation.one_by_one import PADDED, Alone

SHAPE = {
    "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
# Positions that are numbered (GPT-J, CodeGen, two Falcons), and that are distances (BLOOM, MPT, the third Falcon).
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gptj": ("gptj", {"rotary_dim": 4}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-7b": ("falcon", {"multi_query": True, "new_decoder_architecture": False}),
    "falcon-rw": ("falcon", {"alibi": True, "multi_query": False, "new_decoder_architecture": False}),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {"n_layers": 2, "n_heads": 4, "d_model": 32}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rows_side_by_side_get_what_each_gets_alone(name: str) -> None:
    """Rows join with prompts of other lengths, have more samples, take tokens back, and leave."""
    family, own = SHAPES[name]
    assert {family for family, _ in SHAPES.values()} == PADDED
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHAPE, **own})).eval()
    assert not attention.fits(model)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda _module, args: passes.append(len(args[0])))
    chance, pair = random.Random(0), [Alone(model), Alone(model)]
    pair[1]._padded = False
    rows = fewer = 0
    for step in range(24):
        tokens = [[chance.randrange(2, 128)] for _ in range(rows)]
        if step % 3 == 0:
            tokens.append([chance.randrange(2, 128) for _ in range(chance.randint(1, 9))])
            rows += 1
            for memory in pair:
                memory.add()
        found, counts = [], []
        for memory in pair:
            passes.clear()
            found.append(memory.run(tokens, [1] * rows))
            counts.append(len(passes))
        assert (found[0] - found[1]).abs().max() < 1e-4 < 0.1 < found[1].std()
        assert counts[0] <= counts[1] == rows
        fewer += counts[0] == 1 < rows
        if step % 5 == 4:
            rows += 1
            for memory in pair:
                memory.fork(0, 1)
        if step % 7 == 6:
            rows -= 1
            for memory in pair:
                memory.remove(1)
        if step % 11 == 10:
            for memory in pair:
                memory.forget(rows - 1, 1)
        assert pair[0].lengths == pair[1].lengths
    assert fewer > 10, "one pass for all, wherever nobody was new"


def test_a_family_that_is_not_known_runs_row_by_row() -> None:
    """Its positions may be numbered otherwise: a RoBERTa that predicts the next token begins at 2."""
    settings = {**SHAPE, "is_decoder": True, "pad_token_id": 1, "max_position_embeddings": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("roberta", **settings)).eval()
    memory, passes = Alone(model), list[int]()
    model.register_forward_pre_hook(lambda _module, args: passes.append(len(args[0])))
    for _ in range(2):
        memory.add()
    found = [memory.run(tokens, [1, 1]) for tokens in ([[5, 6, 7], [8]], [[9], [10]])]
    with torch.no_grad():
        whole = [model(torch.tensor([ids])).logits[0, -1] for ids in ([5, 6, 7, 9], [8, 10])]
    torch.testing.assert_close(found[1], torch.stack(whole), atol=1e-5, rtol=1e-5)
    assert passes[:4] == [1] * 4
