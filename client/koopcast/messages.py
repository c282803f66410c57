"""Tensor specs to protobuf messages and back. Used by the client and by the service, so that both read alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from koopcast.encoding import EncodingName
from koopcast.errors import InvalidArgument
from koopcast.v1 import tensor_pb2
from koopcast.wire import TensorSpec

__all__ = [
    "DTYPE_NAMES",
    "DTYPE_NUMBERS",
    "ENCODING_NAMES",
    "ENCODING_NUMBERS",
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

ENCODING_NUMBERS: Final[Mapping[EncodingName, tensor_pb2.Encoding]] = {
    "raw": tensor_pb2.ENCODING_RAW,
    "delta": tensor_pb2.ENCODING_DELTA,
    "delta-int8": tensor_pb2.ENCODING_DELTA_INT8,
}
ENCODING_NAMES: Final[Mapping[int, EncodingName]] = {
    tensor_pb2.ENCODING_UNSPECIFIED: "raw",
    **{number: name for name, number in ENCODING_NUMBERS.items()},
}

_MOST_ELEMENTS: Final = 2**63


def tensors_to_messages(specs: Mapping[str, TensorSpec]) -> list[tensor_pb2.TensorSpec]:
    """One message a tensor, in order."""
    return [
        tensor_pb2.TensorSpec(
            name=name,
            dtype=DTYPE_NUMBERS[spec.dtype],
            shape=spec.shape,
            node_of=spec.node_of,
            node_axis=spec.node_axis,
        )
        for name, spec in specs.items()
    ]


def tensors_from_messages(messages: Iterable[tensor_pb2.TensorSpec]) -> dict[str, TensorSpec]:
    """Name to spec, in order. Whether `node_of` and `node_axis` fit the tensors is for `plan_blocks` to say.

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
        if message.HasField("shard"):
            raise InvalidArgument(f"tensor {name!r}: this service does not implement shard", field=name)
        if len(message.node_of) > 512:
            raise InvalidArgument(f"tensor {name!r}: node_of is longer than 512 characters", field=name)
        node_axis = message.node_axis if message.HasField("node_axis") else None
        specs[name] = TensorSpec(DTYPE_NAMES[message.dtype], tuple(message.shape), message.node_of, node_axis)
    return specs


def _shown(shape: Sequence[int]) -> str:
    return str(tuple(shape)) if len(shape) <= 16 else f"of {len(shape)} dimensions"
