"""The ``init`` stage: the first rows of the new tokens.

V old vocabulary, N new tokens, D width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kldistill.model.load import check_causal, load_original, read_facts
from kldistill.rows import inits
from kldistill.rows.config import InitConfig
from kldistill.rows.rows import Rows
from kldistill.rows.student import embedding_of, head_of
from kldistill.runtime.components import find
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.tokens.artifact import read_new_tokens, read_vocabulary


def build(cfg: InitConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Make the ``init`` artifact from the ``model`` and ``tokens`` artifacts.

    Writes ``rows.safetensors``, ``rows.json`` and ``summary.json`` (norms of the new rows beside the old rows' median).
    Raises ``ConfigError`` for a combination that cannot be: tying an untied model, a method that needs pieces with
    tokens that have none; ``ModelError`` for a model that is not causal: this stage is the first with its weights.
    """
    model = load_original(inputs["model"])
    check_causal(model, read_facts(inputs["model"])["name"])
    old_size = read_vocabulary(inputs["tokens"]).old_size
    pieces = [token.pieces for token in read_new_tokens(inputs["tokens"])]
    embedding, head = embedding_of(model), head_of(model)
    old_input_VD = embedding.weight[:old_size].float()
    # One matrix or two is a fact of the weights; the config can say one thing and the file hold another.
    model_tied = head.weight is embedding.weight
    old_output_VD = old_input_VD if model_tied else head.weight[:old_size].float()
    tied = choose_tie(cfg.tie, model_tied)
    rows = make(cfg, old_input_VD, old_output_VD, pieces, tied)
    rows.save(out)
    figures = {
        "init/tied": int(tied),
        "init/input_norm": rows.input.norm(dim=1).mean().item(),
        "init/old_input_norm": old_input_VD.norm(dim=1).median().item(),
        "init/output_norm": rows.head.norm(dim=1).mean().item(),
        "init/old_output_norm": old_output_VD.norm(dim=1).median().item(),
    }
    write_summary(out, figures)
    job.say(
        f"{len(pieces):,} new rows of width {rows.input.shape[1]:,}, {'tied' if tied else 'input and output apart'}"
    )


def make(
    cfg: InitConfig,
    old_input: Float[Tensor, "V D"],
    old_output: Float[Tensor, "V D"],
    pieces: list[list[int]],
    tied: bool,
) -> Rows:
    """The rows that ``cfg`` describes. Where tied rows are asked for by two methods, the row is the mean of the two."""
    input_ND = apply(cfg.input, "init.input", old_input, pieces, cfg.seed)
    # Another seed, so that untied random rows are two draws; one method for tied rows is one draw.
    same = tied and cfg.input == cfg.output
    output_ND = input_ND if same else apply(cfg.output, "init.output", old_output, pieces, cfg.seed + 1)
    made_by = {"input": describe(cfg.input), "output": describe(cfg.output)}
    if tied:
        input_ND = input_ND if same else (input_ND + output_ND) / 2
    if cfg.calibrate:
        input_ND = inits.calibrate(input_ND, old_input)
        output_ND = inits.calibrate(output_ND, old_output)
    return Rows(input_ND, None if tied else output_ND, made_by)


def apply(
    node: Mapping[str, Any], key: str, old_rows: Float[Tensor, "V D"], pieces: list[list[int]], seed: int
) -> Float[Tensor, "N D"]:
    """Call the method that ``node`` names, with its own settings. Raises ``ConfigError`` naming ``key``."""
    if not pieces:
        return old_rows[:0].clone()
    return find(node, "init", key)(old_rows, pieces, torch.Generator().manual_seed(seed))


def choose_tie(asked: bool | None, model_tied: bool) -> bool:
    """Whether one row serves as input and output. Raises ``ConfigError`` for tied rows in an untied model."""
    if asked and not model_tied:
        raise ConfigError("init.tie=true: the model has separate input and output embeddings; leave init.tie=null.")
    return model_tied if asked is None else asked


def describe(node: Mapping[str, Any]) -> str:
    """The method's name and settings in short, such as ``weighted_mean(rate=2.0)``."""
    settings = [f"{name}={value}" for name, value in node.items() if name != "_target_"]
    name = str(node["_target_"]).rpartition(".")[2]
    return f"{name}({', '.join(settings)})" if settings else name
