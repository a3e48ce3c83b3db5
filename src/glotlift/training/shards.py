"""Weights that FSDP has sharded over processes, made whole, and put back.

Enters: a model whose parameters may be `DTensor`s, as `fully_shard` (FSDP2) leaves them. Leaves: plain tensors.

Safetensors cannot write a shard, and a file must hold the whole. To gather one is work of all processes together: each
calls these functions at the same place, whichever of them writes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, gathered from all processes where it is sharded."""
    detached = tensor.detach()
    return (detached.full_tensor() if isinstance(detached, DTensor) else detached).cpu()


def put_back(parameter: Tensor, values: Tensor) -> None:
    """Write whole values into a parameter, each process its own shard.

    Args:
        parameter: of a model.
        values: from `whole`. *Shape:* that of the parameter.
    """
    if isinstance(parameter, DTensor):
        values = distribute_tensor(values.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.data.copy_(values)


def gathered(model: Any) -> dict[str, Tensor] | None:
    """Return the weights that `save_pretrained` shall write as its `state_dict`; None where they are whole as they lie.

    Args:
        model: a peft model, of which the adapter is gathered; or a model of transformers, whose every weight is.
    """
    state = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return None
    if hasattr(model, "peft_config"):
        learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        state = {name: tensor for name, tensor in state.items() if name in learned}
    return {name: whole(tensor) for name, tensor in state.items()}
