"""Layers, agreement, lens and attention on models of which the answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from kldistill.interpret import agreement, attention, lens
from kldistill.interpret.contexts import Context, Place
from kldistill.interpret.layers import Layers, lasting_from
from kldistill.losses.alignment import align
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student, embedding_of, head_of
from kldistill.runtime.errors import ModelError
from kldistill.tokens.pieces import PieceTable
from tests.helpers.artifacts import MakeModel

FAMILIES = ["llama", "gpt2", "gemma3", "qwen2"]
IDS = [1, 40, 300, 77, 301, 40, 9, 300, 12, 40, 5]
ALIAS_OF = 40


def alias_of(model_folder, family_size: int = 512) -> Student:
    """A student with one new token whose rows are those of an old one."""
    model = load_original(model_folder)
    rows = [of.weight[ALIAS_OF : ALIAS_OF + 1] for of in (embedding_of(model), head_of(model))]
    return Student(model, Rows(*rows), family_size)


def aliased(ids: list[int]) -> list[int]:
    """The ids with the alias, id 512, wherever the token itself stood, but for the first time."""
    first = ids.index(ALIAS_OF)
    return [512 if token == ALIAS_OF and at > first else token for at, token in enumerate(ids)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_gives_the_models_own_logits(family: str, tiny_model: MakeModel) -> None:
    student = alias_of(tiny_model(family))
    layers = Layers(student)
    states = layers.states(IDS)
    output = student.model(torch.tensor([IDS]), output_hidden_states=True)
    assert torch.equal(layers.logits_old(states[-1]), output.logits[0, :, :512])
    assert torch.equal(layers.logits(states[-1]), student.logits(student.hidden(torch.tensor([IDS]))[0]))
    assert len(states) == student.model.config.get_text_config().num_hidden_layers + 1
    for mine, theirs in zip(states[:-1], output.hidden_states[:-1], strict=True):
        assert torch.equal(mine, theirs[0])
    assert not torch.equal(states[-1], output.hidden_states[-1][0])  # theirs has been through the norm already


@pytest.mark.parametrize("family", FAMILIES)
def test_an_alias_agrees_at_every_layer(family: str, tiny_model: MakeModel) -> None:
    student = alias_of(tiny_model(family))
    layers, new_ids = Layers(student), aliased(IDS)
    # Both uses of the alias, and one of another token, as states that are all alike have no centred cosine.
    rows = [3, *(at for at, token in enumerate(new_ids) if token == 512)]
    old, new = layers.states(IDS), layers.states(new_ids)
    assert torch.equal(old, new)
    found = agreement.measure(old[:, rows], new[:, rows], [IDS[3], 512, 512], old[:, [1, 6]], [1, 2])
    np.testing.assert_allclose(found["cosine"], 1, atol=1e-12)
    np.testing.assert_allclose(found["centred"], 1, atol=1e-12)
    assert (found["distance"] == 0).all() and (found["nearest"] == 1).all()
    ahead = found["ahead"]
    assert (ahead[1:, 1:] == 1).all() and (ahead[0, 2] == 1)  # place 6 has another token: told apart at once
    # Place 1 has the alias's own token. Without learned positions, their embeddings are the same.
    assert ahead[0, 1] == (family == "gpt2")
    assert agreement.detokenised(ahead).tolist() == [0 if family == "gpt2" else 1, 0]


def test_agreement_by_hand() -> None:
    teacher = torch.tensor([[[1.0, 0], [3, 0], [2, 3]]])  # mean (2, 1): centred (-1, -1), (1, -1), (0, 2)
    student = torch.tensor([[[3.0, 2], [3, 0], [2, 1.5]]])  # centred (1, 1), (1, -1), (0, 0.5)
    rivals, use_of_rival = torch.tensor([[[0.0, 1], [3, 4]]]), [1, 2]  # centred (-2, 0), (1, 3)
    found = agreement.measure(teacher, student, [7, 8, 7], rivals, use_of_rival)
    assert found["centred"][0] == pytest.approx([-1, 1, 1])
    assert found["cosine"][0] == pytest.approx([3 / math.sqrt(13), 1, (4 + 4.5) / math.sqrt(13 * 6.25)])
    assert found["distance"][0] == pytest.approx([math.sqrt(8), 0, 1.5 / math.sqrt(13)])
    assert found["nearest"][0].tolist() == [0, 1, 1]
    # Of use 0 and 2 the only other token is use 1's; of use 1 both others.
    assert found["others"][0] == pytest.approx([0, (0 - math.sqrt(0.5)) / 2, -math.sqrt(0.5)])
    assert math.isnan(found["ahead"][0, 0]) and found["ahead"][0, 1:].tolist() == [1, 1]
    summary = agreement.summarise(found)
    assert (summary["rivalled_uses"], summary["detokenised_layer"], summary["detokenised_share"]) == (2, 0.0, 1.0)
    assert summary["ahead"]["mean"] == [1.0]


def test_lasting_from() -> None:
    holds = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0]], dtype=bool)
    assert lasting_from(holds).tolist() == [2, -1, 0, -1]


def test_a_student_without_new_tokens_reads_as_the_teacher(tiny_model: MakeModel) -> None:
    model = load_original(tiny_model())
    student = Student(model, Rows(torch.zeros(0, 32)), 512)
    layers = Layers(student)
    states = layers.states(IDS)[:, :-1]
    places = [Place(at, at, piece, piece) for at, piece in enumerate(IDS[1:])]
    reading = lens.Reading(layers, states)
    curves = lens.measure(reading, {"same": reading}, places, PieceTable(512, []))
    assert np.abs(curves["same"]["js"]).max() < 1e-5
    assert (curves["same"]["same_top"] == 1).all()
    for key in ("rank", "probability", "to_final"):
        np.testing.assert_array_equal(curves["same"][key], curves["original"][key])
    np.testing.assert_allclose(curves["original"]["to_final"][-1], 0, atol=1e-5)
    logits = student.model(torch.tensor([IDS])).logits[0, :-1, :512]
    p = torch.softmax(logits, -1)
    np.testing.assert_allclose(curves["original"]["probability"][-1], [p[at, y] for at, y in enumerate(IDS[1:])], 1e-5)
    ranks = [1 + int((p[at] > p[at, y]).sum()) for at, y in enumerate(IDS[1:])]
    assert curves["original"]["rank"][-1].tolist() == ranks
    summary = lens.summarise(curves)["same"]
    assert (summary["meeting_layer"], summary["meeting_share"]) == (0.0, 1.0)


def test_the_lens_by_brute_force(tiny_model: MakeModel) -> None:
    """Every figure of the lens, by loops over tokens."""
    model = load_original(tiny_model())
    table = PieceTable(512, [(40, 300), (40, 300, 77), (9, 9)])
    generator = torch.Generator().manual_seed(0)
    rows = Rows(torch.randn(3, 32, generator=generator), torch.randn(3, 32, generator=generator))
    student = Student(model, rows, 512)
    old_ids, new_ids = [1, 40, 300, 9, 40, 300, 77, 8], [1, 512, 9, 513, 8]
    layers = Layers(student)
    context = Context("d", "", old_ids, new_ids, align(old_ids, new_ids, table))
    uses = context.uses(0)
    assert [use.token for use in uses] == [512, 513]
    places = [use.after for use in uses]
    assert places[0] == Place(1, 2, 9, 9, (77,))  # after (40, 300) the piece 77 would have made another token
    old = layers.states(old_ids)[:, [place.teacher_row for place in places]]
    new = layers.states(new_ids)[:, [place.student_row for place in places]]
    curves = lens.measure(lens.Reading(layers, old), {"s": lens.Reading(layers, new)}, places, table)
    for at, place in enumerate(places):
        targets = []
        for k in range(len(old)):
            p = torch.softmax(layers.logits_old(old[k, at : at + 1])[0].double(), -1)
            p[list(place.forbidden)] = 0
            targets.append(p / p.sum())
        for k, p in enumerate(targets):
            q = torch.softmax(layers.logits(new[k, at : at + 1])[0].double(), -1)
            Q = q[:512].clone()
            for token, pieces in enumerate(table.pieces, start=512):
                Q[pieces[0]] += q[token]
            assert curves["s"]["probability"][k, at] == pytest.approx(Q[place.piece].item(), rel=1e-4)
            assert curves["s"]["rank"][k, at] == 1 + int((Q[place.piece] < Q).sum())
            assert curves["s"]["token_probability"][k, at] == pytest.approx(q[place.token].item(), rel=1e-4)
            assert curves["s"]["token_rank"][k, at] == 1 + int((q > q[place.token]).sum())
            assert curves["s"]["js"][k, at] == pytest.approx((kl(p, (p + Q) / 2) + kl(Q, (p + Q) / 2)) / 2, rel=1e-3)
            assert curves["s"]["to_final"][k, at] == pytest.approx(kl(targets[-1], Q), rel=1e-3)
            assert curves["s"]["same_top"][k, at] == float(p.argmax() == Q.argmax())
            assert curves["original"]["to_final"][k, at] == pytest.approx(kl(targets[-1], p), rel=1e-3, abs=1e-5)


def kl(p: Tensor, q: Tensor) -> float:
    return sum(x * math.log(x / y) for x, y in zip(p.tolist(), q.tolist(), strict=True) if x > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_an_alias_is_that_of_its_token(family: str, tiny_model: MakeModel) -> None:
    student = alias_of(tiny_model(family))
    new_ids = aliased(IDS)
    context = Context("d", "", IDS, new_ids, align(IDS, IDS, PieceTable(512, [])))
    before = student.model.config._attn_implementation
    with attention.eager(student):
        teacher, maps = attention.maps(student, IDS), attention.maps(student, new_ids)
    assert student.model.config._attn_implementation == before
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
    assert torch.equal(teacher, maps)
    found = attention.measure(maps, teacher, context)
    np.testing.assert_array_equal(found["student"], found["pieces"])
    np.testing.assert_array_equal(found["student"], found["last_piece"])
    assert (found["variation"] == 0).all() and found["variation"].size > 0
    summary = attention.summarise([found])
    assert (summary["ratio"], summary["last_piece_share"], summary["mean_variation"]) == (1.0, 1.0, 0.0)
    assert summary["pairs"] == sum(len(IDS) - 2 - at for at, token in enumerate(new_ids) if token == 512)


def test_attention_is_summed_over_pieces() -> None:
    table = PieceTable(10, [(1, 2)])
    old_ids, new_ids = [0, 1, 2, 3, 4], [0, 10, 3, 4]
    context = Context("d", "", old_ids, new_ids, align(old_ids, new_ids, table))
    teacher = torch.tril(torch.arange(1.0, 26).reshape(5, 5))
    teacher = (teacher / teacher.sum(-1, keepdim=True)).expand(1, 2, 5, 5)
    spans = attention.pooled(teacher, context)
    assert spans.shape == (1, 2, 3, 4)  # boundaries after 0, after (1, 2) and after 3; the last one has no next token
    torch.testing.assert_close(spans.sum(-1), torch.ones(1, 2, 3))
    row = torch.tensor([16.0, 17 + 18, 19, 0]) / (16 + 17 + 18 + 19)
    torch.testing.assert_close(spans[0, 0, 2], row)
    student = torch.zeros(1, 2, 4, 4)
    student[..., 0] = 1  # all attention on the first token
    found = attention.measure(student, teacher, context)
    assert found["student"].tolist() == [[0.0]]
    assert found["pieces"][0] == pytest.approx([35 / 70]) and found["last_piece"][0] == pytest.approx([18 / 70])
    assert found["variation"][0] == pytest.approx([1 - 16 / 70])


def small(model_type: str, **settings: object) -> Student:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=2,
        **settings,
    )
    return Student(AutoModelForCausalLM.from_config(config), Rows(torch.zeros(0, 16)), 64)


def test_families_without_a_final_norm_or_attention_are_refused() -> None:
    settings = {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64}
    assert len(Layers(small("opt", **settings)).states([1, 2, 3])) == 3
    with pytest.raises(ModelError, match="opt: no final norm"):
        Layers(small("opt", do_layer_norm_before=False, **settings))
    mamba = small("mamba", state_size=4)
    with pytest.raises(ModelError, match=r"mamba: .* no attention weights"), attention.eager(mamba):
        attention.maps(mamba, [1, 2, 3])


def test_centred_cosine_takes_a_common_direction_off() -> None:
    generator = torch.Generator().manual_seed(0)
    common = 50 * F.normalize(torch.randn(64, generator=generator), dim=0)
    teacher, student = (torch.randn(1, 40, 64, generator=generator) + common for _ in range(2))
    found = agreement.measure(teacher, student, list(range(40)), teacher[:, :0], [])
    assert found["cosine"].mean() > 0.9  # says nothing: the states were drawn apart
    assert abs(found["centred"].mean()) < 0.1
