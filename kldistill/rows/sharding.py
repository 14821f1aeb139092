"""A frozen model whose layers are split among the processes of a run (PyTorch's FSDP2, ``fully_shard``).

Between its turns a layer is held in parts, one a process; all gather it whole when it runs, one layer ahead of time.
What is trained is left out: it is whole in every process, and the processes average its gradients as they always do.
So are the embedding and the head, which are read by rows and in parts, not by calls of their modules.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from kldistill.rows.student import Student, layers_of
from kldistill.runtime.errors import ModelError
from kldistill.runtime.shares import Share


def home(device: torch.device, share: Share) -> torch.device:
    """Where to load a model: on its device, or, where no device may hold it whole, in the machine's memory."""
    return torch.device("cpu") if share.sharded else device


def place(student: Student, device: torch.device, share: Share) -> Student:
    """Put a student on its device; where layers are shared out, only this process's part of their frozen weights.

    Raises:
        ModelError: the body has no layers that transformers marks as such.
    """
    if share.sharded:
        layers = layers_of(student.body)
        if not layers:
            raise ModelError(
                f"runtime.shard=true: {type(student.model).__name__} has no layers that can be told apart. Use "
                "runtime.shard=false."
            )
        mesh = init_device_mesh(device.type, (share.world,))
        whole = {parameter for parameter in student.parameters() if parameter.requires_grad}
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole & set(layer.parameters()))
        of_layers = {parameter for layer in layers for parameter in layer.parameters()}
        # The body itself holds nothing: it lets the next layer be gathered while one runs.
        fully_shard(student.body, mesh=mesh, ignored_params=set(student.body.parameters()) - of_layers | whole)
    return student.to(device)


def spare(module: nn.Module) -> None:
    """Keep ``DistributedDataParallel`` from making the processes' parts of frozen weights equal."""
    parts = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    if parts:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, parts)
