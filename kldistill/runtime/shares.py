"""A process's share of work that all processes of a run do together: texts in turn, and sums over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """What this process does of a stage that runs in all of them. The default does all of it, alone.

    Attributes:
        accelerate: joins the processes; None where there is one.
    """

    accelerate: Accelerator | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.accelerate is None or self.accelerate.is_main_process

    def mine(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's part of items that all processes have in the same order."""
        if self.accelerate is None:
            return items
        return items[self.accelerate.process_index :: self.accelerate.num_processes]

    def total(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The sum of every process's values, in all of them. Numbers that one process alone has come back exactly."""
        if self.accelerate is None or self.accelerate.num_processes == 1:
            return values
        summed = self.accelerate.reduce(values.to(self.accelerate.device), "sum")
        assert isinstance(summed, torch.Tensor)
        return summed.cpu()

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.accelerate is not None:
            self.accelerate.wait_for_everyone()


ALONE = Share()
