"""Registers the services whose messages carry bytes: the codec in place of the generated code, for those messages.

Every other message of these services is read and written by its generated class, as the descriptor names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from koopcast.bulk import serialized
from koopcast.codec import decode_push_request, decode_short_push
from koopcast.v1 import prediction_pb2, snapshot_pb2
from koopcast_server.grpc_predictions import PredictionService
from koopcast_server.grpc_snapshots import SnapshotService

__all__ = ["add_bulk_services"]

_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "koopcast.v1.PushSnapshotRequest": decode_push_request,
    "koopcast.v1.PushShortSnapshotRequest": decode_short_push,
}
"""Messages that are not read by their generated class. Responses of any service may come as bytes."""
_MAKERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests and responses are streams."""


def add_bulk_services(
    server: grpc.aio.Server, snapshots: SnapshotService, predictions: PredictionService
) -> None:
    """Serves snapshots and predictions."""
    for module, name, servicer in (
        (snapshot_pb2, "SnapshotService", snapshots),
        (prediction_pb2, "PredictionService", predictions),
    ):
        service: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]
        handlers = {method.name: _handler(method, servicer) for method in service.methods}
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        server.add_generic_rpc_handlers((generic,))


def _handler(method: MethodDescriptor, servicer: Any) -> grpc.RpcMethodHandler[Any, Any]:
    request = method.input_type
    decode = _DECODERS.get(request.full_name) or GetMessageClass(request).FromString
    make = _MAKERS[method.client_streaming, method.server_streaming]
    return make(getattr(servicer, method.name), request_deserializer=decode, response_serializer=serialized)
