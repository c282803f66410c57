"""Parameters of which every process holds a part: FSDP2's `fully_shard`, and DTensors of one's own.

The hook never gathers them. It works on what is here (`local`): copies, translations and inner products are all it does
to weights, and each of them goes part by part.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from koopcast.errors import ArgumentValueError

__all__ = ["are_sharded", "check_sharding", "is_sharded", "local", "local_shapes", "reshard"]


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a `torch.distributed.tensor.DTensor`."""
    return type(tensor) is not Tensor and hasattr(tensor, "device_mesh") and hasattr(tensor, "to_local")


def are_sharded(parameters: Mapping[str, Tensor]) -> bool:
    """Whether any of them is a DTensor."""
    return any(map(is_sharded, parameters.values()))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here, in its own memory: of a plain tensor, itself."""
    if not is_sharded(tensor):
        return tensor
    dtensor: Any = tensor
    with torch.no_grad():
        part: Tensor = dtensor.to_local()
        return part.detach()


def local_shapes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of the part of each that is here; it may hold nothing."""
    return {name: tuple(local(parameter).shape) for name, parameter in parameters.items()}


def reshard(model: nn.Module) -> None:
    """Let FSDP2 forget what it gathered for a forward pass.

    It keeps the outermost module's weights after a pass without a backward one, and would use them, stale, in the next.
    """
    for module in _fsdp_modules(model):
        module.reshard()


def check_sharding(model: nn.Module, parameters: Mapping[str, Tensor], processes: int) -> None:
    """Parameters whose parts, of all processes together, are each weight once.

    Args:
        model: whose parameters.
        parameters: those that take part, by name.
        processes: in the default group.

    Raises:
        ArgumentValueError: naming a parameter that is not.
    """
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ArgumentValueError(
                "the model is wrapped by FullyShardedDataParallel (FSDP1), whose parameters hide which part is whose: use "
                "torch.distributed.fsdp.fully_shard",
                field="model",
            )
    if not are_sharded(parameters):
        return
    for name, parameter in parameters.items():
        why = _unfit(parameter, processes)
        if why:
            raise ArgumentValueError(
                f"parameter {name!r} {why}; koopcast takes models whose parameters are all cut into parts, one for each of "
                f"the {processes} processes: leave the others out by filter=...",
                field=name,
            )


def _unfit(parameter: Tensor, processes: int) -> str:
    """Why this one cannot take part among sharded ones; empty where it can."""
    if not is_sharded(parameter):
        return "is whole in every process, while others are sharded (DTensors)"
    dtensor: Any = parameter
    mesh = dtensor.device_mesh
    for dimension, placement in enumerate(dtensor.placements):
        if mesh.size(dimension) > 1 and (placement.is_replicate() or placement.is_partial()):
            kind = "replicated" if placement.is_replicate() else "a partial sum"
            return f"is {kind} along dimension {dimension} of its mesh (as under HSDP)"
    if mesh.size() != processes:
        return f"is sharded over {mesh.size()} processes"
    return ""


def _fsdp_modules(model: nn.Module) -> Iterator[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where it was never imported, nothing is wrapped by it
    wrapper = getattr(fsdp, "FSDPModule", None)
    if wrapper is not None:
        yield from (module for module in model.modules() if isinstance(module, wrapper))
