"""What a model gives to a text in all its cuts: bits/byte sums one of them, the tokenizer's own (the canonical cut).

A model may also spell a new token in its old pieces, or cut otherwise; what it gives to those cuts is probability of
the same bytes that ``bits_per_byte`` does not see. Summing over all cuts of a text is out of reach, and importance
sampling of whole cuts (Cao and Rimell, 2021, "You should evaluate your language model on marginal likelihood over
tokenisations") varies much. But cuts differ locally: at a sample of *words* that hold new tokens, the text before and
after stays in its canonical cut, and all cuts of the word's own bytes are summed, by dynamic programming. What follows
the word is taken to be as likely after one cut of it as after another.

A *word* is what ``kldistill.evaluation.words`` finds.

Names: B rows, T columns of the cache, S columns that a row sees, L tokens of a history, W vocabulary.
"""

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from numpy import logaddexp
from torch import Tensor

from kldistill.evaluation.generation.cache import Cache
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.evaluation.words import Word, words_of
from kldistill.rows.student import Student
from kldistill.runtime.progress import Bar
from kldistill.runtime.shares import ALONE, Share
from kldistill.training.cuts import TwoCuts
from kldistill.training.padding import pad
from kldistill.training.sums import Score

LEAST = 0.01  # cuts that have less than this share of the canonical cut's probability up to their place are dropped
KEPT = 1  # histories of each kind (old tokens alone, or not) that are told apart at each place of a word
ROWS = 16  # histories that are run at a time
PER_TEXT = 5  # words of a text that are looked at
TEXTS = 8  # whose words are looked at side by side


class Masses(NamedTuple):
    """What a model gives to one word, in nats, each given the text before it.

    Attributes:
        canonical: log-probability of the canonical cut.
        all: of all cuts together.
        old: of all cuts that have no new token, together.
    """

    canonical: float
    all: float
    old: float


@dataclass
class _Cuts:
    """The dynamic programme of one word.

    Attributes:
        text, word: where it is.
        spelt: its bytes.
        canonical: log-probability of the canonical cut.
        floor: for every place in the bytes, the least log-mass that is gone on from.
        at: the cuts that end at a place and have not been gone on from, apart by whether they are of old tokens alone:
            pairs of log-probability and tokens.
    """

    text: int
    word: Word
    spelt: bytes
    canonical: float
    floor: list[float]
    at: dict[int, dict[bool, list[tuple[float, tuple[int, ...]]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at[0] = {True: [(0.0, ())]}

    @property
    def place(self) -> int:
        """The first place that is still to be gone on from; the word's end where there is none."""
        return min(self.at, default=len(self.spelt))

    def take(self, kept: int | None) -> list["_History"]:
        """The histories at that place, which is done with: the likeliest of each kind, with the mass of the others."""
        place = self.place
        histories = []
        for old, found in self.at.pop(place).items():
            total = logaddexp.reduce([mass for mass, _ in found])
            if total < self.floor[place]:
                continue
            chosen = found if kept is None else heapq.nlargest(kept, found)
            more = total - logaddexp.reduce([mass for mass, _ in chosen])
            histories += [_History(self, place, old, mass + more, ids) for mass, ids in chosen]
        return histories

    def add(self, place: int, old: bool, mass: float, ids: tuple[int, ...]) -> None:
        """One more cut, up to ``place``."""
        self.at.setdefault(place, {}).setdefault(old, []).append((mass, ids))

    def masses(self) -> Masses:
        """What all cuts of the word have, when none is left to go on from."""
        done = self.at[len(self.spelt)]
        of_kind = {old: logaddexp.reduce([mass for mass, _ in found]) for old, found in done.items()}
        return Masses(self.canonical, logaddexp.reduce(list(of_kind.values())), of_kind.get(True, -math.inf))


@dataclass
class _History:
    """One cut of a word's beginning.

    Attributes:
        cuts: the word's programme.
        place: bytes of the word that it covers.
        old: whether it is of old tokens alone.
        mass: log-probability that it stands for.
        ids: its tokens.
    """

    cuts: _Cuts
    place: int
    old: bool
    mass: float
    ids: tuple[int, ...]


def add_gaps(
    student: Student,
    spelling: Spelling,
    cuts: TwoCuts,
    scores: Sequence[Score],
    n_words: int,
    *,
    description: str,
    share: Share = ALONE,
) -> None:
    """Look at all cuts of about ``n_words`` words, in the first texts, and add what they tell to the scores.

    The words of a text are drawn at random, the same ones for every model of a tokenizer. All processes of ``share``
    call this with the same texts, and all get all scores.
    """
    n_texts = min(math.ceil(n_words / PER_TEXT), len(cuts))
    if not n_texts or student.new_size == student.old_size:
        return
    table = torch.zeros(n_texts, 4, dtype=torch.float64)
    mine = share.mine(range(n_texts))
    with Bar(description, total=len(mine), unit="texts") as bar:
        for start in range(0, len(mine), TEXTS):
            part = mine[start : start + TEXTS]
            found = [words_of(spelling, cuts, index) for index in part]
            texts = [
                (cuts.new_ids[index], sorted(random.Random(index).sample(of, min(PER_TEXT, len(of)))))
                for index, of in zip(part, found, strict=True)
            ]
            for index, every, masses in zip(part, found, marginals(student, spelling, texts), strict=True):
                gaps = sum(one.all - one.canonical for one in masses)
                table[index] = torch.tensor([
                    len(masses),
                    sum(math.exp(one.canonical - one.all) for one in masses),
                    sum(math.exp(one.old - one.all) for one in masses),
                    gaps * len(every) / len(masses) if masses else 0.0,
                ])  # fmt: skip
            bar.advance(len(part))
    for score, row in zip(scores, share.total(table).tolist(), strict=False):
        score.n_words, score.canonical_mass, score.old_mass, score.gap_nats = int(row[0]), *row[1:]
        score.gap_bytes = score.n_bytes


@torch.no_grad()
def marginals(
    student: Student,
    spelling: Spelling,
    texts: Sequence[tuple[Sequence[int], Sequence[Word]]],
    *,
    kept: int | None = KEPT,
    least: float = LEAST,
) -> list[list[Masses]]:
    """What the model gives to all cuts of some words of some texts, which are run side by side.

    Args:
        texts: the canonical cut of each, the first token in front, and those of its ``words`` that are asked for.
        kept: histories of each kind that are told apart at a place; the others' mass goes on as theirs does. None: all
            of them, so nothing is approximated.
        least: cuts with less than this share of the canonical cut's probability up to their place are dropped; 0: none.
    """
    cache, cuts = Cache(), []
    read = [ids[: max((word.end for word in chosen), default=1)] for ids, chosen in texts]
    ids_BT, _ = pad(read, student.embedding.weight.device)
    hidden_BTD = _run(student, ids_BT, cache)
    for text, (ids, chosen) in enumerate(texts):
        for word in chosen:
            log_q_LW = student.logits(hidden_BTD[text, word.start - 1 : word.end - 1]).float().log_softmax(-1)
            targets_L = ids_BT[text, word.start : word.end]
            steps = log_q_LW.gather(1, targets_L[:, None]).squeeze(1).double().tolist()
            one = _started(spelling, ids, text, word, steps, least)
            _go_on(one.take(kept)[0], log_q_LW[0], spelling, student.old_size)
            cuts.append(one)
    while waiting := [one for one in cuts if one.place < len(one.spelt)]:
        histories = [history for one in waiting for history in one.take(kept)]
        histories.sort(key=lambda history: history.cuts.word.start)  # rows of about one width
        for start in range(0, len(histories), ROWS):
            part = histories[start : start + ROWS]
            for history, log_q_W in zip(part, _after(student, cache, part), strict=True):
                _go_on(history, log_q_W, spelling, student.old_size)
    masses = iter([one.masses() for one in cuts])
    return [[next(masses) for _ in chosen] for _, chosen in texts]


def _started(
    spelling: Spelling, ids: Sequence[int], text: int, word: Word, steps: Sequence[float], least: float
) -> _Cuts:
    """The programme of a word whose canonical tokens have the log-probabilities ``steps``."""
    # Within a canonical token: what the canonical cut has at the token's end, as far as which a cut has yet to get.
    floor, reached = [-math.inf], 0.0
    for index, step in zip(ids[word.start : word.end], steps, strict=True):
        reached += step
        floor += [reached + math.log(least) if least else -math.inf] * len(spelling.table[index])
    return _Cuts(text, word, spelling.spell(ids[word.start : word.end]), reached, floor)


def _go_on(history: _History, log_q_W: Float[Tensor, " W"], spelling: Spelling, old_size: int) -> None:
    """Add every cut that is one token longer than this history."""
    one = history.cuts
    found = list(spelling.beginnings(one.spelt[history.place :]))
    steps = log_q_W[[index for index, _ in found]].double().tolist()
    for (index, size), step in zip(found, steps, strict=True):
        old = history.old and index < old_size
        one.add(history.place + size, old, history.mass + step, (*history.ids, index))


def _after(student: Student, cache: Cache, histories: Sequence[_History]) -> Float[Tensor, "B W"]:
    """Log-probabilities of what follows each history, which stands after the text before its word."""
    device = student.embedding.weight.device
    ids_BL, mask_BL = pad([history.ids for history in histories], device)
    text_B = torch.tensor([[history.cuts.text] for history in histories], device=device)
    begin_B = torch.tensor([history.cuts.word.start for history in histories], device=device)
    # Each row's text stands right before its history, so that sliding windows reach as far back as they should.
    width = int(begin_B.max())
    column_BT = torch.arange(width, device=device) - (width - begin_B)[:, None]
    own = Cache()
    for number, layer in enumerate(cache.grown):
        keys, values = (states[text_B, :, column_BT.clamp(min=0)].transpose(1, 2) for states in layer.pair)
        own.update(keys, values, number)
    mask_BS = torch.cat([(column_BT >= 0).long(), mask_BL], 1)
    position_BL = begin_B[:, None] + torch.arange(ids_BL.shape[1], device=device)
    hidden_BLD = _run(student, ids_BL, own, mask_BS, position_BL)
    last_B = mask_BL.sum(1) - 1
    return student.logits(hidden_BLD[torch.arange(len(histories), device=device), last_B]).float().log_softmax(-1)


def _run(
    student: Student,
    ids_BL: Int[Tensor, "B L"],
    cache: Cache,
    mask_BS: Int[Tensor, "B S"] | None = None,
    position_BL: Int[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L D"]:
    """Last hidden states; the cache takes in the keys and values."""
    return student.body(
        inputs_embeds=student.embed(ids_BL),
        attention_mask=mask_BS,
        position_ids=position_BL,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
