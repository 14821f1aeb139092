"""Stage ``interpret``: what the new rows have learnt, seen from inside the model. See docs/interpretability.md.

What is heavy is imported when it is called: the schema in ``interpret.config`` is read before torch is needed.
"""

from collections.abc import Mapping
from pathlib import Path

from kldistill.interpret.config import InterpretConfig
from kldistill.runtime.job import Job


def build(cfg: InterpretConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Compare the original model with the extended one, before (``init``) and after training (``rows``).

    Args:
        inputs: ``model``, ``tokens``, ``corpus``, ``init``, and ``rows``, the artifact of ``distill`` or ``finetune``.
        out: gets ``interpret.json``, ``new_tokens.jsonl``, pictures as ``*.svg`` with ``pictures.json``,
            ``completions.jsonl`` (some held-out lines, completed by both models), and ``summary.json``. Where the
            test split has fewer than two uses of new tokens, a warning is given, and ``summary.json`` is empty.
    """
    from kldistill.interpret import stage as interpret_stage

    interpret_stage.build(cfg, inputs, out, job)


def compare(folders: Mapping[str, Path], out: Path) -> Path | None:
    """Draw several runs side by side.

    Args:
        folders: ``interpret`` artifacts by the name that the picture shows, such as the loss.
        out: gets ``interpret_compare.svg`` and ``interpret_compare.json`` (its title, alternative text and caption as
            in ``pictures.json``, and a table of key numbers).

    Returns:
        The SVG, or None where there are fewer than two folders.
    """
    from kldistill.interpret import comparison

    return comparison.compare(folders, out)
