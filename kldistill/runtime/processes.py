"""The processes of one run, as ``accelerate launch`` starts them: who builds an artifact, who joins in, who waits.

Most stages run in the main process alone, while the others wait for its word. A stage that trains, scores or generates
runs in all of them, on the same folder, which the main process leaves as it is to be. Words are single integers on a
gloo group of their own with a long timeout: the main process may be busy for hours, and one that ends closes its
connections, so nobody waits for it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from kldistill.runtime.artifacts import Store
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.devices import PATIENCE, process_state
from kldistill.runtime.errors import ConfigError, ProcessError

_JOIN, _DONE, _FAILED = 1, 2, 3


def launched() -> int:
    """How many processes the launcher says that there are."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched_here() -> int:
    """How many of them the launcher says that it started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or launched())


@dataclass(frozen=True)
class Processes:
    """This process among those of its run. The default is a process of its own.

    Attributes:
        rank: the number of this process, from 0; the process 0 is the main one.
        world: how many processes the run has.
        group: torch's group in which all of them exchange words; None where there is only one process.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that builds, writes and reports."""
        return self.rank == 0

    def build(
        self,
        store: Store,
        stage: str,
        fingerprint: str,
        builder: Callable[[Path], None],
        *,
        together: bool = False,
        **options: Any,
    ) -> Path:
        """``Store.build`` in the main process, for all processes; every one of them calls this.

        Args:
            together: every process runs ``builder``, on the same folder, once the main process has found that there is
                something to build. Otherwise the main process alone does.
            options: further arguments of ``Store.build``.

        Returns:
            The folder of the finished artifact, when it is finished.

        Raises:
            ConfigError: the processes do not all see the same inputs; raised in all of them.
            ProcessError: the main process has failed, or has ended.
        """
        if self.world == 1:
            return store.build(stage, fingerprint, builder, **options)
        if not self._agree(int(fingerprint[:15], 16)):
            raise ConfigError(
                f"The processes of this run would each build another {stage}: the files or the packages that they see "
                "differ. All must see the same."
            )
        if self.main:
            return self._lead(store, stage, fingerprint, builder, together, options)
        return self._follow(store, stage, fingerprint, builder)

    def _lead(
        self,
        store: Store,
        stage: str,
        fingerprint: str,
        builder: Callable[[Path], None],
        together: bool,
        options: dict[str, Any],
    ) -> Path:
        joined = False

        def build(partial: Path) -> None:
            nonlocal joined
            if together:
                joined = True
                self._word(_JOIN)
            builder(partial)
            if together:
                self._meet()

        try:
            path = store.build(stage, fingerprint, build, **options)
        except BaseException:
            # Those who have joined wait for an exchange of the stage's own, which breaks when this process ends.
            if not joined:
                self._word(_FAILED)
            raise
        self._word(_DONE)
        return path

    def _follow(self, store: Store, stage: str, fingerprint: str, builder: Callable[[Path], None]) -> Path:
        word = self._word()
        if word == _JOIN:
            builder(store.partial(stage, fingerprint))
            self._meet()
            word = self._word()
        if word != _DONE:
            raise ProcessError(f"The main process has failed at {stage}; its own message says why.")
        return store.path(stage, fingerprint)

    def _word(self, number: int = 0) -> int:
        """What the main process says; the others listen."""
        word = torch.tensor([number if self.main else 0], dtype=torch.int64)
        self._exchange(lambda: distributed.broadcast(word, src=0, group=self.group))
        return int(word)

    def _agree(self, number: int) -> bool:
        """Whether all processes have the same number (of 60 bits: torch's integers are signed, of 64)."""
        ends = torch.tensor([number, -number])
        self._exchange(lambda: distributed.all_reduce(ends, op=distributed.ReduceOp.MAX, group=self.group))
        return int(ends.sum()) == 0

    def _meet(self) -> None:
        """Wait until all processes are here."""
        self._exchange(lambda: distributed.all_reduce(torch.zeros(1), group=self.group))

    def _exchange(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            who = "Another process of this run" if self.main else "The main process"
            raise ProcessError(f"{who} has ended; its own message says why. ({str(error).splitlines()[0]})") from error


def join(runtime: RuntimeConfig) -> Processes:
    """Find the other processes of this run, if it was launched with several.

    Raises:
        ConfigError: the launcher started several, but they cannot be joined.
    """
    wanted = launched()
    if wanted == 1:
        return Processes()
    state = process_state(runtime)
    if state.num_processes != wanted:
        raise ConfigError(
            f"{wanted} processes were launched, but accelerate joins {state.num_processes} of them on "
            f"{state.device}. Launch as many as there are devices, or set runtime.device=cpu."
        )
    return Processes(state.process_index, wanted, distributed.new_group(backend="gloo", timeout=PATIENCE))
