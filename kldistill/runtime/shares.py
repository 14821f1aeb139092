"""A process's share of work that all processes of a run do together: texts in turn, and sums over all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import KldistillError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Share:
    """What this process does of a stage that runs in all of them. The default does all of it, alone.

    Attributes:
        rank: the number of this process, from 0; the process 0 is the main one.
        world: how many processes share the work.
        accelerate: joins the processes; None where nothing is exchanged between them.
        sharded: each process holds a part of the model's layers (``runtime.shard``), so that all must run them equally
            often.
    """

    rank: int = 0
    world: int = 1
    accelerate: Accelerator | None = None
    sharded: bool = False

    @classmethod
    def of(cls, accelerate: Accelerator, runtime: RuntimeConfig) -> "Share":
        """The share of one of the processes that ``accelerate`` has joined."""
        world = accelerate.num_processes
        return cls(accelerate.process_index, world, accelerate, runtime.shard and world > 1)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def mine(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's part of items that all processes have in the same order."""
        return items[self.rank :: self.world]

    def parts(self, n: int) -> list[range]:
        """The numbers of ``n`` items, one part a process, for work that takes several at a time; none is empty."""
        return [range(n)[rank :: self.world] for rank in range(min(n, self.world))]

    def each(self, items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
        """What ``work`` makes of every item, in the order of the items: each process does its own, and all get all.

        Results must be possible to pickle, and hold no tensor of an accelerator. They go from one process of this run
        to the others, and nowhere else.

        Raises:
            KldistillError: what the work of some process has raised, in all processes.
        """
        own: list[Result] = []
        error: KldistillError | None = None
        try:
            own += map(work, self.mine(items))
        except KldistillError as caught:
            if self.world == 1:
                raise
            error = caught
        if self.accelerate is None or self.world == 1:
            return own
        of_all = gather_object([(own, error)])
        for _, error in of_all:
            if error is not None:
                raise error
        turns = [iter(results) for results, _ in of_all]
        return [next(turns[number % self.world]) for number in range(len(items))]

    def idle(self, items: Sequence[Any]) -> bool:
        """Whether the others run the model over one more of ``items`` than this process, which then has to run along:
        it has a part of the layers that they need.
        """
        return self.sharded and len(self.mine(items)) < len(items[:: self.world])

    def total(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The sum of every process's values, in all of them. Numbers that one process alone has come back exactly."""
        if self.accelerate is None or self.world == 1:
            return values
        summed = self.accelerate.reduce(values.to(self.accelerate.device), "sum")
        assert isinstance(summed, torch.Tensor)
        return summed.cpu()

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.accelerate is not None:
            self.accelerate.wait_for_everyone()


ALONE = Share()
