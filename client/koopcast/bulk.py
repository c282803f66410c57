"""The calls that move bytes, with the codec's messages in place of the generated ones.

They are the calls of the generated stubs, except that chunks and short snapshots are sent as the bytes that
`koopcast.codec` made of them, and chunks read as a `koopcast.codec.Chunk`.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
import numpy as np

from koopcast.codec import Chunk, decode_answer
from koopcast.v1 import prediction_pb2, snapshot_pb2

__all__ = ["keep_buffers", "predict_ahead", "push_short_snapshot", "push_snapshot", "serialized"]

_MANY_BYTES: Final = 8 << 20
_KEPT_BLOCK_BYTES: Final = 31 << 20


def push_snapshot(
    channel: grpc.Channel,
) -> grpc.StreamStreamMultiCallable[
    snapshot_pb2.PushSnapshotRequest | bytes, snapshot_pb2.PushSnapshotResponse
]:
    """`SnapshotService.PushSnapshot`, whose requests are messages, or bytes that are one."""
    return channel.stream_stream(
        "/koopcast.v1.SnapshotService/PushSnapshot",
        request_serializer=serialized,
        response_deserializer=snapshot_pb2.PushSnapshotResponse.FromString,
    )


def push_short_snapshot(
    channel: grpc.Channel,
) -> grpc.UnaryUnaryMultiCallable[bytes, snapshot_pb2.PushShortSnapshotResponse]:
    """`SnapshotService.PushShortSnapshot`, whose request is the bytes of `koopcast.codec.encode_short_push`."""
    return channel.unary_unary(
        "/koopcast.v1.SnapshotService/PushShortSnapshot",
        request_serializer=serialized,
        response_deserializer=snapshot_pb2.PushShortSnapshotResponse.FromString,
    )


def predict_ahead(
    channel: grpc.Channel,
) -> grpc.UnaryStreamMultiCallable[
    prediction_pb2.PredictAheadRequest, prediction_pb2.PredictAheadResponse | Chunk
]:
    """`PredictionService.PredictAhead`, whose responses are chunks, or messages of another kind.

    Read to the end what can be: on a channel of one thread (`koopcast.channel`) gRPC keeps 18 KB of a cancelled call.
    """
    return channel.unary_stream(
        "/koopcast.v1.PredictionService/PredictAhead",
        request_serializer=prediction_pb2.PredictAheadRequest.SerializeToString,
        response_deserializer=decode_answer,
    )


def keep_buffers(transfer_bytes: int) -> None:
    """Before many bytes move: has glibc keep the buffers of chunks, where it would return each to the system.

    It keeps up to twice the largest block that was freed so far, up to 32 MiB. Training programs have freed one that
    large as a rule; here one is, unused. Does nothing under another allocator.
    """
    if transfer_bytes >= _MANY_BYTES:
        np.empty(_KEPT_BLOCK_BYTES, np.uint8)


def serialized(message: Any) -> bytes:
    """A message's bytes; bytes are taken to be those of a message already."""
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data
