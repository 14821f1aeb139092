"""Rows that are written side by side: what each has to run next, and what is chosen from the logits.

Shapes: K positions whose logits are wanted, W vocabulary.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from kldistill.evaluation.generation.attention import fits
from kldistill.evaluation.generation.canonical import CanonicalMask
from kldistill.evaluation.generation.cuts import Merging
from kldistill.evaluation.generation.lookup import Trust, find
from kldistill.evaluation.generation.one_by_one import Alone
from kldistill.evaluation.generation.packed import Places
from kldistill.evaluation.generation.sampling import draw
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.runtime.devices import suited
from kldistill.tokens.windows import context_length


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token each time.
        top_p: the most probable tokens that together have this probability are drawn from.
        seed: of the random numbers.
        cut: how what is written is cut (see ``kldistill.evaluation.generation.cuts``); None: as it is written.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    cut: CanonicalMask | Merging | None = None


GREEDY = Decoding()


def most_tokens(budget: int) -> int:
    """After so many tokens a completion of ``budget`` bytes ends whatever was written: some tokens have no text."""
    return 2 * budget + 65


@dataclass
class Row:
    """One completion that is being written.

    Attributes:
        request, sample: which completion of which request it is.
        rest: bytes of the prompt that are still to be spelt again.
        budget: bytes of the completion, at most.
        stop: the byte strings before which the completion ends.
        chance: the row's own random numbers, so that nothing depends on its neighbours.
        before: ids of the prompt.
        ids: the tokens that were written.
        counted: for each of them, whether it holds at least a byte of the completion.
        gone: tokens that were run, the row's last ones, which were replaced by the one to be run next.
        waiting: tokens to be run: of the prompt, or the one that was written last.
        guess: what may follow them; ``found``: on how many tokens the guess rests.
        text: the bytes of the completion so far.
        seconds: its share of the wall time.
        ended: ``stop``, ``budget`` or ``eos``; empty while it goes on.
    """

    request: int
    sample: int
    rest: bytes
    budget: int
    stop: Sequence[bytes]
    chance: random.Random
    before: Sequence[int] = ()
    ids: list[int] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)
    gone: int = 0
    waiting: list[int] = field(default_factory=list)
    guess: list[int] = field(default_factory=list)
    found: int = 0
    text: bytes = b""
    seconds: float = 0.0
    ended: str = ""
    _drawn: list[float] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens that hold at least a byte of the completion."""
        return sum(self.counted)

    def uniform(self, n: int) -> list[float]:
        """The next ``n`` random numbers; each token that is taken uses up one of them."""
        while len(self._drawn) < n:
            self._drawn.append(self.chance.random())
        return self._drawn[:n]

    def take(self, index: int, spelt: bytes, eos: bool) -> None:
        """Add one token, and see whether that ends the completion."""
        del self._drawn[:1]
        if eos:
            self.ended = "eos"
            return
        self.ids.append(index)
        spelt, self.rest = spelt[len(self.rest) :], self.rest[len(spelt) :]
        self.counted.append(not self.rest and bool(spelt))  # one that only spells the prompt is no part of the answer
        searched = max(0, len(self.text) - max(map(len, self.stop), default=1) + 1)
        self.text += spelt
        stops = [place for stop in self.stop if (place := self.text.find(stop, searched)) >= 0]
        if stops and min(stops) <= self.budget:
            self.text, self.ended = self.text[: min(stops)], "stop"
        elif len(self.text) >= self.budget or len(self.ids) >= most_tokens(self.budget):
            self.text, self.ended = self.text[: self.budget], "budget"

    def merge(self, merging: Merging) -> int | None:
        """Replace tokens at the end of what was written by the new one that they spell, as long as there is one.

        Returns:
            The token that is to be run next in place of the last one; None where nothing was replaced.
        """
        merged = None
        while not self.rest and (found := merging.find(self.ids)):
            count, merged = found
            self.ids[-count:] = [merged]
            self.counted[-count:] = [any(self.counted[-count:])]
            self.gone += count - 1  # the last token of all has not been run yet
        return merged


class Rows:
    """The rows that are being written with one model, all after the same ``prefix``, which may be empty."""

    def __init__(
        self,
        model: PreTrainedModel,
        spelling: Spelling,
        eos: set[int],
        decoding: Decoding,
        prefix: Sequence[int] = (),
    ) -> None:
        self.spelling, self.eos, self.decoding = spelling, eos, decoding
        self.packed = fits(model)
        assert self.packed or not prefix
        self.memory = Places(model, prefix) if self.packed else Alone(model)
        self.sizes = suited(model.device)
        self.trust = Trust(self.sizes.idle_tokens)
        self.limit = context_length(model.config)
        self.rows: list[Row] = []
        self._samples: dict[int, list[Row]] = {}  # of a request, without the first, which runs the prompt for all
        self._masks: dict[bytes, Tensor] = {}

    @property
    def width(self) -> int:
        """Tokens of the longest row, the prefix left out, those to be run included."""
        lengths = zip(self.memory.lengths, self.rows, strict=True)
        return max((length + len(row.waiting) for length, row in lengths), default=0)

    def __len__(self) -> int:
        return len(self.rows) + sum(map(len, self._samples.values()))

    def join(self, prompt: Sequence[int], rows: Sequence[Row]) -> None:
        """Let the rows of a prompt join; it is run once for all of them.

        Args:
            prompt: its ids after those of ``prefix``, at least one.
        """
        first, *others = rows
        first.waiting = list(prompt)
        self.rows.append(first)
        self.memory.add()
        if others:
            self._samples[first.request] = others

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Run what is waiting, of prompts a part at a time, and choose what follows.

        Returns:
            The rows that ended.
        """
        begun = time.perf_counter()
        tokens = self._next()
        # One for each token of a guess, and one more: the first is what follows the tokens before it.
        wanted = [0 if row.waiting else 1 + len(row.guess) for row in self.rows]
        logits_KW = self.memory.run(tokens, wanted)[:, : len(self.spelling.table)].float()
        places = [place for place, n in enumerate(wanted) for _ in range(n)]
        copies = [(index, new) for index, place in enumerate(places) for new in self._fork(place)]
        if copies:
            logits_KW = torch.cat([logits_KW, logits_KW[[index for index, _ in copies]]])
            places += [new for _, new in copies]
        chosen: dict[int, list[int]] = {place: [] for place in places}
        for place, index in zip(places, self._choose(logits_KW, places), strict=True):
            chosen[place].append(index)
        for place, own in chosen.items():
            self._take(place, own)
        seconds, total = time.perf_counter() - begun, sum(map(len, tokens))
        for row, run in zip(self.rows, tokens, strict=False):
            row.seconds += seconds * len(run) / total
        return self._leave()

    def _next(self) -> list[list[int]]:
        """What every row runs in the next pass: its last token with a guess, a part of its prompt, or nothing yet."""
        left, tokens = self.sizes.prompt_tokens, list[list[int]]()
        size = len(self.rows) + min(left, sum(len(row.waiting) for row in self.rows if not row.ids))
        for length, row in zip(self.memory.lengths, self.rows, strict=True):
            row.guess, row.found = [], 0
            if row.ids:
                if self.packed and not row.rest:
                    self._guess(row, length, size)
                tokens.append([*row.waiting, *row.guess])
                row.waiting = []
            else:
                tokens.append(row.waiting[:left])
                row.waiting = row.waiting[left:]
                left -= len(tokens[-1])
        return tokens

    def _guess(self, row: Row, length: int, size: int) -> None:
        """Guess what follows a row's last token, as far as that is worth it in a pass of ``size`` tokens."""
        row.found, guess = find("".join(map(chr, [*row.before, *row.ids])))
        padded = self.sizes.guessed_tokens // len(self.rows) - 1
        most = min(self.trust.length(row.found, size), padded) if row.found else 0
        room = self.limit - 1 - length - self.memory.shared
        row.guess = [ord(char) for char in guess[: int(max(0, min(most, room)))]]

    def _fork(self, place: int) -> list[int]:
        """Let the other samples of a row's request join, once, as its prompt has been run; their places."""
        others = self._samples.pop(self.rows[place].request, [])
        if others:
            self.memory.fork(place, len(others))
            self.rows += others
        return list(range(len(self.rows) - len(others), len(self.rows)))

    def _choose(self, logits_KW: Float[Tensor, "K W"], places: Sequence[int]) -> list[int]:
        """The next token at each position, as if all that its row guessed before it were right: the most probable one,
        or one drawn.
        """
        uniform: list[float] = []
        for place in dict.fromkeys(places):
            row, first = self.rows[place], places.index(place)
            for at in range(1 + len(row.guess)):
                self._forbid(logits_KW[first + at], row, row.guess[:at])
        if self.decoding.temperature == 0:
            return logits_KW.argmax(-1).tolist()
        for place in dict.fromkeys(places):
            uniform += self.rows[place].uniform(1 + len(self.rows[place].guess))
        return draw(logits_KW / self.decoding.temperature, self.decoding.top_p, uniform).tolist()

    def _forbid(self, logits_W: Float[Tensor, " W"], row: Row, guessed: Sequence[int]) -> None:
        """Set the logits of what cannot follow to minus infinity."""
        cut = self.decoding.cut
        if row.rest:
            if row.rest not in self._masks:
                self._masks[row.rest] = ~self.spelling.allowed(row.rest).to(logits_W.device)
            logits_W.masked_fill_(self._masks[row.rest], -torch.inf)
        elif isinstance(cut, CanonicalMask):
            last = [*row.before[-cut.reach :], *row.ids[-cut.reach :], *guessed]
            logits_W[cut.forbidden(last)] = -torch.inf

    def _take(self, place: int, chosen: Sequence[int]) -> None:
        """Add what was chosen to a row: as many tokens as were guessed right, and the one after them."""
        row, cut = self.rows[place], self.decoding.cut
        right = taken = 0
        for index, guessed in zip(chosen, [*row.guess, None], strict=True):
            row.take(index, self.spelling.table[index], index in self.eos)
            taken += 1
            right += index == guessed
            merged = row.merge(cut) if isinstance(cut, Merging) else None
            row.waiting = [index if merged is None else merged]
            if row.ended or merged is not None or index != guessed:
                break
        if row.guess:
            self.trust.learn(row.found, len(row.guess), right)
        self.memory.forget(place, 1 + len(row.guess) - taken + row.gone)
        row.gone = 0
        if not row.ended and self.memory.lengths[place] + self.memory.shared >= self.limit:
            row.ended = "budget"

    def _leave(self) -> list[Row]:
        """Take out the rows that have ended; the last ones get their places."""
        done = []
        for place in reversed(range(len(self.rows))):
            if self.rows[place].ended:
                done.append(self.rows[place])
                self.memory.remove(place)
                self.rows[place] = self.rows[-1]
                self.rows.pop()
        return done
