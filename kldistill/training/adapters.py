"""A body that fine-tuning has changed: what of it learns, how it is kept beside the rows, and how it is put back.

A folder of rows that holds ``body.json`` says by its ``method`` what else it holds: ``lora`` the adapter as peft saves
it (``adapter/``), ``full`` all weights of the body, embedding and head (``body.safetensors``), ``rows`` nothing. Where
the training began from a body that an earlier stage had changed, ``before/`` holds that stage's ``body.json`` and
adapter, so that a folder of rows is all that is needed beside the original model.
"""

import copy
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kldistill.rows.rows import Rows
from kldistill.rows.student import Student, head_of, layers_of
from kldistill.runtime.errors import ArtifactError, ConfigError
from kldistill.training import low_rank
from kldistill.training.config import LoraConfig
from kldistill.training.finetune_config import METHODS

FACTS, ADAPTER, BODY, BEFORE = "body.json", "adapter", "body.safetensors", "before"


@dataclass(frozen=True)
class Training:
    """What of a student learns.

    Attributes:
        method: of the body: ``lora``, ``full``, or ``rows`` where it stays frozen.
        lora: the adapter's settings, for ``lora``.
        rows: whether the new rows learn.
        checkpointing: run each layer of the body again on the way back rather than keep what it made.
    """

    method: str
    lora: LoraConfig | None = None
    rows: bool = True
    checkpointing: bool = False


def unfreeze(model: PreTrainedModel, rows: Rows, old_size: int, learns: Training) -> tuple[Student, Any]:
    """The student whose right parameters ask for a gradient, and peft's view of it (None without an adapter).

    With ``full`` the weights become float32, and the student keeps a frozen copy of the head for its teacher.

    Raises:
        ConfigError: ``lora.target_modules`` names no linear layer of the body, or the head; or see
            ``run_layers_again``.
    """
    full = learns.method == "full"
    student = Student(model, rows, old_size, frozen_head(model) if full else None)
    student.body_learns = learns.method in ("lora", "full")
    adapter = None
    if learns.method == "lora":
        assert learns.lora is not None
        adapter = add_adapter(student, learns.lora)
    if full:
        nn.Module.to(model, torch.float32).requires_grad_(True)
    rows.requires_grad_(learns.rows and len(rows.input) > 0)
    if learns.checkpointing:
        run_layers_again(student)
    return student.train(), adapter


def run_layers_again(student: Student) -> None:
    """Let each layer of the body keep its input alone for the way back, and run again there.

    transformers' own switch works in training mode alone, in which a frozen body would drop out.

    Raises:
        ConfigError: the body has no layers that transformers marks as fit for this.
    """
    layers = layers_of(student.body)
    if not layers:
        raise ConfigError(
            f"gradient_checkpointing=true: {type(student.model).__name__} has no layers that can be run again. Use a "
            "smaller batch_size, or runtime.pass_tokens."
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def frozen_head(model: PreTrainedModel) -> nn.Linear:
    """A copy of the model's head as it is now, in memory of its own."""
    return copy.deepcopy(head_of(model)).requires_grad_(False)


def add_adapter(student: Student, cfg: LoraConfig) -> Any:
    """Put a LoRA adapter into the student's body, in place; peft's view of the model (``PeftModel``).

    Its first values are drawn from torch's generator. It starts as the identity.
    """
    import peft

    model = student.model
    # transformers keeps GPT-2's weights the other way round.
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    settings = peft.LoraConfig(
        r=cfg.r,
        lora_alpha=cast(Any, cfg.alpha),
        lora_dropout=cfg.dropout,
        target_modules="all-linear" if cfg.target_modules is None else list(cfg.target_modules),
        task_type="CAUSAL_LM",
        fan_in_fan_out=turned,
    )
    try:
        with _quiet():
            view = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules={cfg.target_modules!r}: {error}") from error
    if model.get_output_embeddings() is not student.lm_head or model.get_input_embeddings() is not student.embedding:
        raise ConfigError(
            f"lora.target_modules={cfg.target_modules!r}: names the embedding or the head. Name layers of the "
            "body, or use finetune=full, which trains them too."
        )
    low_rank.join(view)
    return view


def save(
    student: Student, adapter: Any, learns: Training, folder: Path, dtype: torch.dtype, before: Path | None = None
) -> None:
    """Write rows, ``body.json`` and what of the body has learnt; weights of the body in ``dtype``.

    Args:
        before: the folder of rows that the training began from, where it had another stage's body beside it.
    """
    student.rows.save(folder)
    if before is not None and learns.method != "full" and (before / FACTS).is_file():
        for name in (FACTS, ADAPTER, BODY, BEFORE):
            source, target = before / name, folder / BEFORE / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.is_file():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)
    if learns.method == "lora":
        # Else peft compares sizes with the model's source, over the network, to learn whether the embedding grew.
        adapter.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
        settings = folder / ADAPTER / "adapter_config.json"
        facts = json.loads(settings.read_text())
        if isinstance(facts["target_modules"], list):  # from a set: in another order every time
            facts["target_modules"].sort()
        facts["base_model_name_or_path"] = None  # a path of this machine; the run's own model is the base
        settings.write_text(json.dumps(facts, indent=2) + "\n")
    elif learns.method == "full":
        save_model(nn.Module.to(student.model, dtype), str(folder / BODY))
    (folder / FACTS).write_text(json.dumps({"method": learns.method, "train_rows": learns.rows}, indent=2) + "\n")


def method_of(folder: Path) -> str:
    """How the body beside these rows was trained: ``lora``, ``full``, or ``rows`` where it is the original's.

    Raises ``ArtifactError``.
    """
    file = folder / FACTS
    if not file.is_file():
        return "rows"
    try:
        method = json.loads(file.read_text())["method"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: cannot be read: {error!r}") from error
    if method not in METHODS:
        raise ArtifactError(f"{file}: there is no method {method!r}; one of {METHODS} was expected.")
    return method


def adapt(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Change ``model`` itself into the one that a folder of rows was trained with: adapter merged, weights replaced.

    Raises:
        ArtifactError: the folder's adapter or weights are missing, or do not fit the model.
    """
    method = method_of(folder)
    if (folder / BEFORE).is_dir():
        model = adapt(model, folder / BEFORE)
    try:
        if method == "lora":
            import peft

            device = str(next(model.parameters()).device)
            with _quiet():
                view = peft.PeftModel.from_pretrained(model, str(folder / ADAPTER), torch_device=device)
            model = cast(PreTrainedModel, cast(Any, view).merge_and_unload())
        elif method == "full":
            load_model(model, str(folder / BODY))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"{folder}: the fine-tuned weights cannot be read: {error}") from error
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning that the user cannot mend: peft asks transformers for something by an older name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
