"""Batches for training: which snippets a step sees, and all that the losses need of their tokens, ready-made.

A step's snippets run together, or, where memory asks for it, in several passes whose gradients add up.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from kldistill.losses.alignment import Alignment
from kldistill.losses.chunks import Chunk, chunks, concatenate
from kldistill.losses.sampled import Columns, Sampling
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.shares import ALONE, Share
from kldistill.training.cuts import TwoCuts
from kldistill.training.padding import pad, together


@dataclass(frozen=True)
class Batch:
    """Snippets of one pass (of one process), padded on the right.

    ``old_hidden`` are the teacher's last hidden states as they were stored, or ``old_ids`` what the teacher is to run
    over in the same step; both are None where the run has no teacher. With ``columns`` the chunks number the old tokens
    of these alone.
    """

    new_ids: Int[Tensor, "B T"]
    new_mask: Int[Tensor, "B T"]
    old_hidden: Float[Tensor, "B U D"] | None
    old_ids: Int[Tensor, "B U"] | None
    chunks: list[Chunk]
    n_tokens: int
    columns: Columns | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on ``device``: numbers of a kind in one copy, which is not waited for."""
        names = [name for name in ("new_ids", "new_mask", "old_hidden", "old_ids") if getattr(self, name) is not None]
        tensors = [getattr(self, name) for name in names]
        tensors += self.columns or ()
        tensors += [tensor for chunk in self.chunks for tensor in chunk.tensors()]
        moved = iter(together(tensors, torch.device(device)))
        own = {name: next(moved) for name in names}
        columns = self.columns and Columns(next(moved), next(moved))
        return replace(self, chunks=[chunk.of(moved) for chunk in self.chunks], columns=columns, **own)


def collate(
    alignments: Sequence[Alignment],
    new_ids: Sequence[Sequence[int]],
    old_hidden: Sequence[Float[Tensor, "U D"]] | None,
    old_lengths: Sequence[int],
    chunk: int,
    old_ids: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Put snippets into one batch; ``chunk`` is the number of student positions of one chunk, and ``old_ids`` are
    given where the teacher runs in the same step.
    """
    padded, mask = pad(new_ids)
    longest = max(old_lengths)
    hidden = None
    if old_hidden is not None:
        hidden = old_hidden[0].new_zeros(len(old_hidden), longest, old_hidden[0].shape[-1])
        for row, values in enumerate(old_hidden):
            hidden[row, : len(values)] = values
    n = len(alignments)
    whole = concatenate(alignments, student_rows=[padded.shape[1]] * n, teacher_rows=[longest] * n)
    old = None if old_ids is None else pad(old_ids)[0]
    return Batch(padded, mask, hidden, old, list(chunks(whole, chunk)), sum(len(row) for row in new_ids))


def schedule(lengths: Sequence[int], batch_size: int, steps: int, seed: int | str) -> list[list[int]]:
    """Indices of the snippets of every step: each epoch a new order, batches of similar length.

    Within an epoch, runs of 16 batches are sorted by length and cut into batches, and all batches are shuffled. A
    snippet is not seen again before all others were, but for the rest of an epoch that fills no batch: another one,
    drawn by chance, each time.
    """
    planned: list[list[int]] = []
    epoch = 0
    size = min(batch_size, len(lengths))
    while len(planned) < steps:
        rng = random.Random(f"{seed}/{epoch}")
        order = list(range(len(lengths)))
        rng.shuffle(order)
        order = order[: len(order) // size * size]  # before sorting: else the longest would never be seen
        batches = []
        for start in range(0, len(order), 16 * size):
            bucket = sorted(order[start : start + 16 * size], key=lambda index: lengths[index])
            batches += [bucket[at : at + size] for at in range(0, len(bucket), size)]
        rng.shuffle(batches)
        planned += batches
        epoch += 1
    return planned[:steps]


def passes(lengths: Mapping[int, int], budget: int | None) -> list[list[int]]:
    """A step's snippets in groups that run one after the other, each of no more than ``budget`` padded tokens.

    Args:
        lengths: tokens of each snippet, by its index.
        budget: None puts all into one group. A snippet that is longer than the budget runs alone.
    """
    if budget is None:
        return [list(lengths)]
    groups: list[list[int]] = []
    for index in sorted(lengths, key=lambda index: (lengths[index], index)):
        # Sorted, so the newest is the longest and says how wide the group is.
        if groups and (len(groups[-1]) + 1) * lengths[index] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


class Steps(Dataset[list[Batch]]):
    """The batches of every step, as a dataset: item ``step`` is what step ``step`` trains on, one batch a pass.

    The losses of a step's passes add up to that of all its snippets in one.

    Args:
        cuts: the training snippets in both cuts.
        order: from ``schedule``.
        online: the teacher runs in the same step, over ids that the batch brings, and no states are stored.
        budget: tokens of one pass, padding included, at most (``runtime.pass_tokens``); None: one pass a step.
        sampling: which old tokens a step's softmaxes go over; None: all.
        share: of each step's snippets, which this process takes.
        stage: whose ``batch_size`` an error names.

    Raises:
        ConfigError: a batch has fewer snippets than there are processes.
    """

    def __init__(
        self,
        cuts: TwoCuts,
        order: Sequence[Sequence[int]],
        *,
        chunk: int,
        online: bool = False,
        budget: int | None = None,
        sampling: Sampling | None = None,
        share: Share = ALONE,
        stage: str = "distill",
    ) -> None:
        smallest = min(len(indices) for indices in order)
        if smallest < share.world:
            raise ConfigError(
                f"{stage}.batch_size: a batch of {smallest} snippets cannot be shared by {share.world} processes; give "
                "at least one to each (a larger batch_size, or more text)."
            )
        self.cuts, self.order = cuts, order
        self.chunk, self.online, self.budget, self.share = chunk, online, budget, share
        self.sampling = sampling

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> list[Batch]:
        indices = self.order[step]
        aligned = {index: self.cuts.alignment(index) for index in indices}
        # Gradients are averaged over processes, so each divides by the whole batch's positions per process.
        world = self.share.world
        totals = {name: sum(getattr(a, name) for a in aligned.values()) / world for name in ("n_next", "n_common")}
        old = self.cuts.states.ids
        lengths = {index: max(len(old[index]), self.cuts.lengths[index]) for index in indices}
        groups = [
            passes({index: lengths[index] for index in indices[rank :: self.share.world]}, self.budget)
            for rank in range(self.share.world)
        ]
        made = [self._batch(group, aligned, totals) for group in groups[self.share.rank]]
        if self.sampling is not None:
            made = [self._sampled(batch, self.sampling, step) for batch in made]
        if self.share.sharded:  # all run the model equally often: over what is there already, for no loss
            missing = range(max(map(len, groups)) - len(made))
            made += [replace(made[0], chunks=[], n_tokens=0) for _ in missing]
        return made

    @staticmethod
    def _sampled(batch: Batch, sampling: Sampling, step: int) -> Batch:
        """The same batch over the columns that are drawn for it."""
        made, columns = sampling.over(batch.chunks, step)
        return replace(batch, chunks=made, columns=columns)

    def _batch(self, mine: list[int], aligned: Mapping[int, Alignment], totals: Mapping[str, float]) -> Batch:
        """These snippets of a step, whose losses are divided by the step's ``totals``."""
        states = self.cuts.states
        share = [replace(aligned[index], n_next=0, n_common=0) for index in mine]
        share[0] = replace(share[0], n_next=totals["n_next"], n_common=totals["n_common"])
        hidden = None if states.values is None else [states.hidden(index) for index in mine]
        lengths = [len(states.ids[index]) for index in mine]
        old_ids = [states.ids[index] for index in mine] if self.online else None
        return collate(share, [self.cuts.new_ids[index] for index in mine], hidden, lengths, self.chunk, old_ids)
