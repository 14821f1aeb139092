"""Scores of texts against the same figures computed one text, one position at a time."""

import math
from dataclasses import replace

import pytest
import torch

from kldistill.evaluation.generation.canonical import CanonicalMask
from kldistill.losses import kl
from kldistill.losses.alignment import align
from kldistill.runtime.shares import ALONE, Share
from kldistill.tokens.pieces import PieceTable
from kldistill.training.scoring import SUMMED, score_original, score_student
from kldistill.training.sums import SUMS, Score, summarise
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.setting import CPU, Setting, make_setting


@pytest.fixture(scope="module")
def setting(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tiny_model(hidden_size=16, layers=1)
    return make_setting(folder, fake_tokens(folder), tmp_path_factory.mktemp("states"))


def scores_of(
    setting: Setting,
    teacher: bool = True,
    batch_size: int = 3,
    chunk: int = 10,
    share: Share = ALONE,
    masked: bool = False,
) -> list[Score]:
    return score_student(
        setting.student, setting.cuts,
        teacher=teacher, batch_size=batch_size, chunk=chunk, device=CPU, description="", share=share, masked=masked,
    )  # fmt: skip


def test_what_processes_share_adds_up_to_the_whole(setting: Setting) -> None:
    """Each text is scored by one of them, in the batches that one process would have made."""
    whole, parts = scores_of(setting), [scores_of(setting, share=Share(rank, 2)) for rank in range(2)]
    originals = [
        score_original(setting.teacher, setting.states, chunk=7, device=CPU, description="", share=share)
        for share in (ALONE, Share(0, 2), Share(1, 2))
    ]
    for all_of_them, some in ((whole, parts), (originals[0], originals[1:])):
        for score, mine, theirs in zip(all_of_them, *some, strict=True):
            assert (mine.nats == 0) != (theirs.nats == 0)
            assert (score.document, score.n_bytes, score.n_tokens) == (mine.document, mine.n_bytes, mine.n_tokens)
            for name in SUMMED:
                assert getattr(mine, name) + getattr(theirs, name) == getattr(score, name), name


def test_the_original_by_hand(setting: Setting) -> None:
    scores = score_original(setting.teacher, setting.states, chunk=7, device=CPU, description="")
    for score, ids, snippet in zip(scores, setting.states.ids, setting.states.snippets, strict=True):
        logits = setting.teacher.model(torch.tensor([ids])).logits[0, :, : setting.pieces.old_size]
        log_p = torch.log_softmax(logits, -1)
        nats = -sum(log_p[at, token].item() for at, token in enumerate(ids[1:]))
        assert score.nats == pytest.approx(nats, rel=1e-4)
        assert (score.document, score.n_bytes) == (snippet.document, len(snippet.text.encode()))
        assert score.n_tokens == len(ids) - 1
    bits = (
        sum(score.nats for score in scores) / math.log(2) / sum(len(s.text.encode()) for s in setting.states.snippets)
    )
    assert summarise(scores)["bits_per_byte"] == pytest.approx(bits)


def test_a_student_without_new_tokens_is_the_original(setting: Setting) -> None:
    original = score_original(setting.teacher, setting.states, chunk=7, device=CPU, description="")
    table = PieceTable(setting.pieces.old_size, [])
    same = scores_of(replace(setting, student=setting.teacher, pieces=table, new_ids=setting.states.ids))
    for one, other in zip(original, same, strict=True):
        assert other.nats == pytest.approx(one.nats, rel=1e-4)
        assert other.kl == pytest.approx(0, abs=1e-3)
        assert (other.n_new, other.adopted, other.left_out, other.unresolved) == (0, 0, 0, 0)
        assert other.n_common == other.n_tokens == one.n_tokens
    assert "adoption" not in summarise(same)  # no new token to adopt: no figure, not a 0


@torch.no_grad()
def test_the_student_by_a_loop_over_positions(setting: Setting) -> None:
    scores = scores_of(setting)
    for index, (score, ids) in enumerate(zip(scores, setting.new_ids, strict=True)):
        nats = adopted = new_nats = 0.0
        n_new = 0
        for at in range(1, len(ids)):
            q = torch.softmax(setting.student.logits(setting.student.hidden(torch.tensor([ids[:at]]))[0, -1:])[0], -1)
            p = q[ids[at]].item()
            nats -= math.log(p)
            if ids[at] >= setting.pieces.old_size:
                n_new, adopted, new_nats = n_new + 1, adopted + p, new_nats - math.log(p)
        found = (score.nats, score.adopted, score.new_nats)
        assert found == pytest.approx((nats, adopted, new_nats), rel=1e-3)
        assert (score.n_new, score.n_tokens) == (n_new, len(ids) - 1)
        logits = setting.student.logits(setting.student.hidden(torch.tensor([ids]))[0])
        alignment = align(setting.states.ids[index], ids, setting.pieces)
        whole = kl(logits, setting.teacher.logits_old(setting.states.hidden(index)), alignment).item()
        assert score.kl == pytest.approx(whole * alignment.n_common, rel=1e-3)
        assert (score.n_common, score.left_out) == (alignment.n_common, alignment.n_left_out)
        assert score.contradictions == alignment.n_contradictions
    assert sum(score.n_new for score in scores) > 5


@torch.no_grad()
def test_the_masked_student_by_a_loop_over_positions(setting: Setting) -> None:
    """Renormalised over what the mask of the suites lets follow; where the text shows what it does not, as it is."""
    mask = CanonicalMask(setting.pieces)
    scores, free = scores_of(setting, masked=True), scores_of(setting)
    shown = n_refused = 0
    for index, (score, ids) in enumerate(zip(scores, setting.new_ids, strict=True)):
        logits_TW = setting.student.logits(setting.student.hidden(torch.tensor([ids]))[0])
        nats = refused = 0.0
        for at in range(1, len(ids)):
            never = mask.forbidden(ids[:at])
            n_refused += len(never)
            if ids[at] in never:
                shown, never = shown + 1, []
            refused += torch.softmax(logits_TW[at - 1], -1)[never].sum().item()
            logits_TW[at - 1, never] = -1e4
            nats -= torch.log_softmax(logits_TW[at - 1], -1)[ids[at]].item()
        assert (score.nats_masked, score.refused) == pytest.approx((nats, refused), rel=1e-3)
        assert score.n_masked == len(ids) - 1
        alignment = align(setting.states.ids[index], ids, setting.pieces)
        whole = kl(logits_TW, setting.teacher.logits_old(setting.states.hidden(index)), alignment).item()
        assert score.kl_masked == pytest.approx(whole * alignment.n_common, rel=1e-3)
        assert score.kl_masked < score.kl and score.nats_masked < score.nats
    assert n_refused > 50 > shown
    for one, other in zip(scores, free, strict=True):
        assert (one.nats, one.kl, one.adopted) == pytest.approx((other.nats, other.kl, other.adopted), rel=1e-6)
    assert not {"bits_per_byte_masked", "kl_to_teacher_masked", "refused_mass"} & summarise(free).keys()


def test_batches_and_chunks_change_nothing(setting: Setting) -> None:
    ones, others = scores_of(setting, batch_size=1, chunk=500), scores_of(setting, batch_size=4, chunk=3)
    for one, other in zip(ones, others, strict=True):
        assert (one.nats, one.kl, one.adopted) == pytest.approx((other.nats, other.kl, other.adopted), rel=1e-3)
    assert summarise(ones) == pytest.approx(summarise(others), rel=1e-3)


def test_without_a_teacher_there_is_no_kl(setting: Setting) -> None:
    scores = scores_of(replace(setting, states=setting.states._replace(values=None)), teacher=False)
    assert not {"kl_to_teacher", "kl_per_byte"} & summarise(scores).keys()
    assert [score.nats for score in scores] == pytest.approx([score.nats for score in scores_of(setting)])


def test_figures_by_hand() -> None:
    one = Score("a", n_bytes=100, n_tokens=20, nats=math.log(2) * 150, kl=3.0, n_common=19, n_new=4, adopted=1.0)
    two = Score("b", n_bytes=300, n_tokens=60, nats=math.log(2) * 50, kl=9.0, n_common=61, new_nats=8.0, left_out=4)
    one.n_masked, one.nats_masked, one.kl_masked, one.refused = 20, math.log(2) * 140, 2.0, 0.4
    two.n_masked, two.nats_masked, two.kl_masked, two.refused = 60, math.log(2) * 40, 8.0, 1.2
    two.n_words, two.canonical_mass, two.old_mass, two.gap_nats, two.gap_bytes = 4, 3.0, 0.5, math.log(2) * 6, 300
    assert summarise([one, two]) == pytest.approx(
        {
            "bits_per_byte": 200 / 400,
            "tokens_per_1000_bytes": 200.0,
            "kl_to_teacher": 12 / 80,
            "kl_per_byte": 12 / 400,
            "bits_per_byte_masked": 180 / 400,
            "kl_to_teacher_masked": 10 / 80,
            "refused_mass": 1.6 / 80,
            "new_token_share": 4 / 80,
            "adoption": 1 / 4,
            "new_token_nats": 2.0,
            "unresolved_mass": 0.0,
            "left_out": 4 / 80,
            "contradictions": 0.0,
            "marginal_gap": 6 / 300,  # of the texts whose words were looked at
            "canonical_mass": 3 / 4,
            "old_mass": 0.5 / 4,
        }
    )
    assert list(summarise([one, two])) == list(SUMS)
