"""What a step of the pipeline is, and what follows from a table of them: which must run, and what a result is of."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kldistill.runtime.artifacts import fingerprint
from kldistill.runtime.config import resolved

if TYPE_CHECKING:
    from kldistill.pipeline.compose import Config


@dataclass(frozen=True)
class Step:
    """One step of the pipeline: a stage, or one of several that a stage is made of.

    Attributes:
        run: the stage's function: (its config slice, folders of its inputs, its output folder, job).
        config: cuts the stage's slice out of the whole configuration; a stage never sees more.
        inputs: what the stage calls each input, and which step makes it.
        group: the name that ``stages=[...]`` and ``force=[...]`` use; empty where it is the step's own.
        optional: steps whose artifacts it reads too if they are part of the run anyway.
        version: raise it when the stage would write something else for the same slice and inputs.
        identity: what the slice's source holds right now, where the slice alone only names it.
        resumable: the function goes on from what an interrupted run left in its output folder.
        together: where a run has several processes, all of them run its function; otherwise the main process alone
            does.
        early: checks of this step's slice against an input's artifact, by the input: run as soon as that input is
            there, so that hours of training are not spent on what is refused at their end.
        figures: what stands in the run's figures in place of the first part of the names that its summary has; empty
            for the names as they are, None where the run leaves them out.
        result: what to call the artifact when the run is done, for one that the user wants to be told of.
    """

    run: Callable[..., None]
    config: Callable[["Config"], Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    optional: Sequence[str] = ()
    version: int = 1
    identity: Callable[[Any], Mapping[str, Any]] | None = None
    resumable: bool = False
    together: bool = False
    early: Mapping[str, Callable[[Any, Path], None]] = field(default_factory=dict)
    figures: str | None = ""
    result: str = ""

    def stage(self, name: str) -> str:
        """The stage that a step of this name belongs to, as ``stages=[...]`` calls it."""
        return self.group or name

    def sources(self, present: Mapping[str, Any]) -> dict[str, str]:
        """What the stage reads in a run that has the steps ``present``."""
        return {**self.inputs, **{name: name for name in self.optional if name in present}}


Steps = Mapping[str, Step]


def stages_of(steps: Steps) -> list[str]:
    """The stages that these steps belong to, each where its last step stands."""
    last = dict.fromkeys(step.stage(name) for name, step in reversed(list(steps.items())))
    return list(reversed(last))


def plan(steps: Steps, wanted: Sequence[str]) -> list[str]:
    """Names of the steps to run, in order: those of the wanted stages, and all that these read."""
    needed: set[str] = set()

    def need(name: str) -> None:
        needed.add(name)
        for source in steps[name].inputs.values():
            need(source)

    for name, step in steps.items():
        if name in wanted or step.group in wanted:
            need(name)
    return [name for name in steps if name in needed]


def rebuilt(steps: Steps, planned: Sequence[str], force: Sequence[str]) -> set[str]:
    """Names of the steps to build anew: those of the forced stages, and what follows from them."""
    anew: set[str] = set()
    present = dict.fromkeys(planned)
    for name in planned:
        step = steps[name]
        follows = any(source in anew for source in step.sources(present).values())
        if name in force or step.group in force or follows:
            anew.add(name)
    return anew


def identify(
    name: str, step: Step, cfg: "Config", prints: Mapping[str, str], known: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """All that decides what a step writes, and its fingerprint.

    Args:
        prints: fingerprints of the steps before it.
        known: identities found before, and where to keep the one found here; None looks at the sources again.
    """
    slice_ = step.config(cfg)
    content: dict[str, Any] = {"config": resolved(slice_)}
    if step.identity is not None:
        key = json.dumps([name, content["config"]], sort_keys=True)
        known = {} if known is None else known
        if key not in known:
            known[key] = dict(step.identity(slice_))
        content["identity"] = known[key]
    inputs = {key: prints[source] for key, source in step.sources(prints).items()}
    return {"version": step.version, **content, "inputs": inputs}, fingerprint(name, step.version, content, inputs)
