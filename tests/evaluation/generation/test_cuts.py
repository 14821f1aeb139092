"""How what is written is cut: a loop of plain forward passes writes the same ids, mask and merging included."""

import random
from collections import Counter

import pytest
import torch
from transformers import LogitsProcessorList, PreTrainedModel

from kldistill.evaluation.generation.batching import Completion, Request, generate
from kldistill.evaluation.generation.canonical import CanonicalMask
from kldistill.evaluation.generation.cuts import Merging, cut_of
from kldistill.evaluation.generation.decoding import Decoding, Row
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.model import tiny
from kldistill.tokens.encoding import encode
from kldistill.tokens.pieces import PieceTable
from kldistill.training.load import load_model, load_tokenizer
from tests.helpers.artifacts import MakeModel

TEXT = tiny.training_text()[0]
PROMPTS = [TEXT[at : at + size] for at, size in ((100, 40), (700, 90), (1500, 25), (2100, 160), (3000, 60), (3900, 75))]


@pytest.fixture
def unhealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spelling, "healed", lambda self, ids: (list(ids), b""))


def written(model: PreTrainedModel, spelling: Spelling, cut: CanonicalMask | Merging | None) -> list[Completion]:
    requests = [Request(prompt, budget=60) for prompt in PROMPTS]
    return [made for _, (made,) in sorted(generate(model, spelling, requests, Decoding(cut=cut), batch_size=3))]


def pairs_of(completions: list[Completion]) -> list[tuple[int, int]]:
    """Pairs of different tokens that follow each other in what a model writes, the most frequent first."""
    counts = Counter(pair for made in completions for pair in zip(made.token_ids, made.token_ids[1:], strict=False))
    return [pair for pair, _ in counts.most_common() if pair[0] != pair[1]]


def test_the_longest_token_that_the_last_ones_spell_is_found() -> None:
    merging = Merging(PieceTable(6, [(0, 1), (0, 1, 2), (3, 0, 1, 2), (4, 4), ()]))
    assert merging.find([5, 0, 1]) == (2, 6)
    assert merging.find([5, 0, 1, 2]) == (3, 7)
    assert merging.find([5, 6, 2]) == (2, 7), "a new token, and the piece that makes it a longer one"
    assert merging.find([3, 0, 1, 2]) == (4, 8)
    assert merging.find([3, 7]) == (2, 8)
    assert merging.find([7]) is None, "one token spells nothing but itself"
    assert merging.find([0, 5]) is None and merging.find([]) is None
    assert merging.find([10, 0, 1]) == (2, 6), "what stands before may have no pieces"
    assert Merging(PieceTable(6, [])).find([0, 1]) is None


@pytest.mark.usefixtures("unhealed")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_merged_ids_are_those_of_a_plain_loop(family: str, tiny_model: MakeModel) -> None:
    """A token is put into the place of others, and everything after it is predicted from there: the cache has nothing
    left of them.
    """
    folder = tiny_model(family, pad_to=1)
    model, spelling = load_model(folder, None), Spelling(load_tokenizer(folder, None))
    free = written(model, spelling, None)
    first, second = pairs_of(free)[:2]
    merging = Merging(PieceTable(len(spelling.table), []))
    # Any token will do as what they become; that it is an old one needs no other model.
    merging.spelt, merging.longest = {first: second[1], second: first[0]}, 2
    eos = set(spelling.tokenizer.all_special_ids)
    n_merged = 0
    for prompt, made in zip(PROMPTS, written(model, spelling, merging), strict=True):
        before, ids = encode(spelling.tokenizer, [prompt])[0], list[int]()
        text = b""
        while len(text) < 60 and len(ids) <= 2 * 60 + 64:
            token = int(model(torch.tensor([[*before, *ids]])).logits[0, -1, : len(spelling.table)].argmax())
            if token in eos:
                break
            ids.append(token)
            text += spelling.table[token]
            while found := merging.find(ids):
                count, merged = found
                ids[-count:] = [merged]
                n_merged += 1
        assert made.token_ids == ids
        assert made.text.encode() == text[:60] or made.ended == "budget"
        assert made.n_tokens <= len(ids)
    assert n_merged > 0


@pytest.mark.usefixtures("unhealed")
def test_masked_ids_are_those_of_generate_with_the_mask(tiny_model: MakeModel) -> None:
    folder = tiny_model("llama", pad_to=1)
    model, spelling = load_model(folder, None), Spelling(load_tokenizer(folder, None))
    free = written(model, spelling, None)
    # The tokens that it most often writes one after the other are the pieces of a token that the model does not have.
    mask = CanonicalMask(PieceTable(len(spelling.table), [pairs_of(free)[0]]))
    masked = written(model, spelling, mask)
    assert [made.token_ids for made in masked] != [made.token_ids for made in free]
    for prompt, made in zip(PROMPTS, masked, strict=True):
        ids = torch.tensor(encode(spelling.tokenizer, [prompt]))
        plain = model.generate(  # type: ignore[operator]
            ids,
            max_new_tokens=len(made.token_ids),
            do_sample=False,
            logits_processor=LogitsProcessorList([_Narrow(mask, len(spelling.table))]),
        )
        assert plain[0, ids.shape[1] :].tolist() == made.token_ids


class _Narrow:
    """The mask, for a model that has none of the new tokens' rows."""

    def __init__(self, mask: CanonicalMask, size: int) -> None:
        self.mask, self.size = mask, size

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, own in enumerate(ids.tolist()):
            scores[row, [index for index in self.mask.forbidden(own) if index < self.size]] = -torch.inf
        return scores


def test_a_token_counts_once_where_it_has_a_byte_of_the_answer() -> None:
    """A prompt that ends in ``at`` is healed: its end is spelt again, and is no part of the answer."""
    row = Row(0, 0, b"at", 100, (), random.Random(0))
    merging = Merging(PieceTable(4, [(0, 1), (0, 1, 2)]))
    row.take(0, b"at", False)
    row.take(1, b"_", False)
    assert row.merge(merging) == 4 and (row.ids, row.n_tokens, row.gone) == ([4], 1, 1)
    row.take(2, b"mask", False)
    assert row.merge(merging) == 5 and (row.ids, row.n_tokens, row.gone) == ([5], 1, 2)
    assert row.text == b"_mask"
    row.take(3, b" =", False)
    assert row.merge(merging) is None and row.n_tokens == 2


def test_each_kind_has_its_rule() -> None:
    table = PieceTable(3, [])
    assert cut_of("free", table) is None
    assert isinstance(cut_of("masked", table), CanonicalMask) and isinstance(cut_of("merged", table), Merging)
