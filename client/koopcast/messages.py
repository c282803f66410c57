"""Settings to protobuf messages and back. Used by the client and by the service, so that both read alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from koopcast.errors import InvalidArgument
from koopcast.operator import Operator, Rank
from koopcast.v1 import operator_pb2, tensor_pb2
from koopcast.wire import TensorSpec

__all__ = [
    "DTYPE_NAMES",
    "DTYPE_NUMBERS",
    "operator_from_message",
    "operator_to_message",
    "override_from_message",
    "override_to_message",
    "tensors_from_messages",
    "tensors_to_messages",
]

DTYPE_NUMBERS: Final[Mapping[str, tensor_pb2.ElementType]] = {
    "float64": tensor_pb2.ELEMENT_TYPE_FLOAT64,
    "float32": tensor_pb2.ELEMENT_TYPE_FLOAT32,
    "bfloat16": tensor_pb2.ELEMENT_TYPE_BFLOAT16,
    "float16": tensor_pb2.ELEMENT_TYPE_FLOAT16,
}
DTYPE_NAMES: Final[Mapping[int, str]] = {number: name for name, number in DTYPE_NUMBERS.items()}

_MOST_ELEMENTS: Final = 2**63
_OBSERVABLES: Final[Mapping[str, operator_pb2.Observable]] = {
    "velocity": operator_pb2.OBSERVABLE_VELOCITY,
    "state": operator_pb2.OBSERVABLE_STATE,
}
_PARTITIONS: Final[Mapping[str, operator_pb2.Partition]] = {
    "network": operator_pb2.PARTITION_NETWORK,
    "tensor": operator_pb2.PARTITION_TENSOR,
}


def tensors_to_messages(specs: Mapping[str, TensorSpec]) -> list[tensor_pb2.TensorSpec]:
    """One message a tensor, in order."""
    return [
        tensor_pb2.TensorSpec(name=name, dtype=DTYPE_NUMBERS[spec.dtype], shape=spec.shape)
        for name, spec in specs.items()
    ]


def tensors_from_messages(messages: Iterable[tensor_pb2.TensorSpec]) -> dict[str, TensorSpec]:
    """Name to spec, in order.

    Raises:
        InvalidArgument: unknown dtype, a dimension of 0, too many elements, a name twice or too long, a reserved field.
    """
    specs: dict[str, TensorSpec] = {}
    for message in messages:
        name = message.name
        if not 1 <= len(name) <= 512 or name in specs:
            raise InvalidArgument(
                f"tensor names must be unique and 1 to 512 characters long; at fault: {name[:80]!r}",
                field="tensors",
            )
        if message.dtype not in DTYPE_NAMES:
            raise InvalidArgument(
                f"tensor {name!r} has an unknown dtype (number {message.dtype}); koopcast takes {', '.join(DTYPE_NUMBERS)}",
                field=name,
                dtype=message.dtype,
            )
        if len(message.shape) > 16 or any(size == 0 for size in message.shape):
            raise InvalidArgument(
                f"tensor {name!r} has shape {_shown(message.shape)}; at most 16 dimensions, each at least 1",
                field=name,
            )
        if math.prod(message.shape) > _MOST_ELEMENTS:
            raise InvalidArgument(
                f"tensor {name!r} of shape {_shown(message.shape)} has more than 2**63 elements", field=name
            )
        if message.HasField("shard") or message.node_of:
            raise InvalidArgument(
                f"tensor {name!r}: this service does not implement shard and node_of", field=name
            )
        specs[name] = TensorSpec(DTYPE_NAMES[message.dtype], tuple(message.shape))
    return specs


def operator_to_message(operator: Operator) -> operator_pb2.OperatorSpec:
    """All settings, none left to a default."""
    rule, rank, energy = _rank_to_message(operator)
    return operator_pb2.OperatorSpec(
        observable=_OBSERVABLES[operator.observable],
        partition=_PARTITIONS[operator.partition],
        window=operator.window,
        rank_rule=rule,
        rank=rank,
        energy=energy,
        ridge=operator.ridge,
        stabilize=operator.stabilize,
    )


def operator_from_message(message: operator_pb2.OperatorSpec) -> Operator:
    """The settings of a message; what is unspecified gets its default, what is reserved is refused.

    Raises:
        InvalidArgument: a value out of range, or a field this service does not implement.
    """
    reserved = {
        "quasi_node_inputs": message.quasi_node_inputs != 0,
        "forgetting": message.forgetting not in {0.0, 1.0},
        "delays": message.delays != 0,
        "debias": message.debias not in {operator_pb2.DEBIAS_UNSPECIFIED, operator_pb2.DEBIAS_NONE},
    }
    for field, is_set in reserved.items():
        if is_set:
            raise InvalidArgument(
                f"this service does not implement the operator setting {field}", field=field
            )
    default = Operator()
    observable = _known("observable", message.observable, _OBSERVABLES, default.observable)
    partition = _known("partition", message.partition, _PARTITIONS, default.partition)
    rank, energy = _rank_from_message(message.rank_rule, message.rank, message.energy, default)
    return Operator(
        observable="state" if observable == "state" else "velocity",
        partition="tensor" if partition == "tensor" else "network",
        window=message.window or default.window,
        rank=rank,
        energy=energy,
        ridge=message.ridge if message.HasField("ridge") else default.ridge,
        stabilize=message.stabilize if message.HasField("stabilize") else default.stabilize,
    )


def override_to_message(operator: Operator) -> operator_pb2.OperatorOverride:
    """Rank, ridge and stabilisation of `operator`; the rest is the job's."""
    rule, rank, energy = _rank_to_message(operator)
    return operator_pb2.OperatorOverride(
        rank_rule=rule, rank=rank, energy=energy, ridge=operator.ridge, stabilize=operator.stabilize
    )


def override_from_message(message: operator_pb2.OperatorOverride, base: Operator) -> Operator:
    """`base` with the fields that the message sets.

    Raises:
        InvalidArgument: a value out of range.
    """
    rank, energy = _rank_from_message(message.rank_rule, message.rank, message.energy, base)
    return Operator(
        observable=base.observable,
        partition=base.partition,
        window=base.window,
        rank=rank,
        energy=energy,
        ridge=message.ridge if message.HasField("ridge") else base.ridge,
        stabilize=message.stabilize if message.HasField("stabilize") else base.stabilize,
    )


def _shown(shape: Sequence[int]) -> str:
    return str(tuple(shape)) if len(shape) <= 16 else f"of {len(shape)} dimensions"


def _rank_to_message(operator: Operator) -> tuple[operator_pb2.RankRule, int, float]:
    if operator.rank == "auto":
        return operator_pb2.RANK_RULE_AUTO, 0, 0.0
    if operator.rank == "energy":
        return operator_pb2.RANK_RULE_ENERGY, 0, operator.energy
    return operator_pb2.RANK_RULE_FIXED, operator.rank, 0.0


def _rank_from_message(rule: int, rank: int, energy: float, base: Operator) -> tuple[Rank, float]:
    if rule == operator_pb2.RANK_RULE_UNSPECIFIED:
        return base.rank, base.energy
    if rule == operator_pb2.RANK_RULE_AUTO:
        return "auto", base.energy
    if rule == operator_pb2.RANK_RULE_ENERGY:
        return "energy", energy
    if rule == operator_pb2.RANK_RULE_FIXED:
        return rank, base.energy
    raise InvalidArgument(f"this service does not implement rank rule number {rule}", field="rank_rule")


def _known(field: str, number: int, table: Mapping[str, int], default: str) -> str:
    if number == 0:
        return default
    for name, known in table.items():
        if known == number:
            return name
    raise InvalidArgument(f"this service does not implement {field} number {number}", field=field)
