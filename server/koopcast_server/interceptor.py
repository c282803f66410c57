"""Around every gRPC call: who calls, how long it took, and what its errors are on the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from koopcast.channel import STATUS_DETAILS_KEY
from koopcast.codec import decode_push_request, decode_short_push, is_chunk, is_short_push
from koopcast.errors import DeadlineExceeded, InternalError, InvalidArgument, KoopcastError
from koopcast_server.engine import Engine
from koopcast_server.identity import Identities
from koopcast_server.metrics import Metrics

__all__ = ["CallInterceptor", "caller", "status_of"]

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

_OPEN_SERVICES: Final = ("/grpc.health.v1.Health/",)
_ERROR_DOMAIN: Final = "koopcast"
_TEXT_BYTES: Final = 640
_DETAIL_BYTES: Final = 160
"""An error travels in headers, text and details several times over; beyond 8 KiB a peer would drop all of it."""
_caller: ContextVar[str] = ContextVar("koopcast_caller")
_LARGE_BYTES: Final = 64 << 10
"""Messages above this are decoded on a worker: shorter ones take less than the hop there."""
_log = structlog.get_logger("koopcast")


def caller() -> str:
    """Identity of the caller of the current call."""
    return _caller.get()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Checks the token before a byte of the request is read, times the call, and turns errors into status.

    Attributes:
        active: calls under way, health checks apart.
        idle: set while there are none.
    """

    def __init__(
        self, identities: Identities, metrics: Metrics, engine: Engine, stall_seconds: float
    ) -> None:
        """Let these identities in; end calls whose reader takes nothing for `stall_seconds`."""
        self._identities = identities
        self._metrics = metrics
        self._engine = engine
        self._stall_seconds = stall_seconds
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wraps the handler of one call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        authorization = dict(handler_call_details.invocation_metadata or ()).get("authorization")
        header = authorization if isinstance(authorization, str) else None
        return self._wrapped(handler, method, header)

    def _wrapped(self, handler: Any, method: str, authorization: str | None) -> Handler:
        behavior = (
            handler.stream_stream or handler.unary_stream or handler.stream_unary or handler.unary_unary
        )

        decode = handler.request_deserializer

        async def decoded(request: Any) -> Any:
            if handler.request_streaming:
                return self._all_decoded(request, decode)
            return await self._decoded(request, decode)

        async def single(request: Any, context: Context) -> Any:
            async with self._call(method, authorization, context):
                return await behavior(await decoded(request), context)

        async def stream(request: Any, context: Context) -> None:
            # Not a generator: a call that is cancelled while it waits for its reader ends here, at once.
            async with (
                self._call(method, authorization, context),
                aclosing(behavior(await decoded(request), context)) as responses,
            ):
                async for response in responses:
                    await self._write(context, response)

        kinds = {
            (False, False): (grpc.unary_unary_rpc_method_handler, single),
            (False, True): (grpc.unary_stream_rpc_method_handler, stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, single),
            (True, True): (grpc.stream_stream_rpc_method_handler, stream),
        }
        make, wrapper = kinds[(handler.request_streaming, handler.response_streaming)]
        return make(
            wrapper,
            request_deserializer=None,  # bytes are read once their sender is known
            response_serializer=handler.response_serializer,
        )

    async def _all_decoded(
        self, requests: AsyncIterator[bytes], decode: Callable[[bytes], Any]
    ) -> AsyncIterator[Any]:
        async for data in requests:
            yield await self._decoded(data, decode)

    async def _decoded(self, data: bytes, decode: Callable[[bytes], Any]) -> Any:
        """Decodes a message; a large one on a worker thread, so that the event loop stays free for others.

        Snapshots apart: the codec does not copy them.
        """
        if len(data) > _LARGE_BYTES and not _is_snapshot(data, decode):
            return await self._engine.run(_decoded, data, decode)
        return _decoded(data, decode)

    async def _write(self, context: Context, response: Any) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await context.write(response)
        except grpc.aio.InternalError:  # what a write says of a call whose reader is gone
            raise asyncio.CancelledError from None
        except TimeoutError:
            raise DeadlineExceeded(
                f"the reader took nothing for {self._stall_seconds:.0f} s", reason="READER_STALLED"
            ) from None

    @asynccontextmanager
    async def _call(self, method: str, authorization: str | None, context: Context) -> AsyncIterator[None]:
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        self.active += 1
        self.idle.clear()
        failure: KoopcastError | None = None
        try:
            _caller.set(self._identities.of_header(authorization))
            yield
        except KoopcastError as error:
            failure = error
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  # the border that protects the server's loop
            _log.exception("call failed", method=method)
            failure = InternalError(f"a fault of the service: {type(error).__name__}; please report it")
        finally:
            self.active -= 1
            if not self.active:
                self.idle.set()
            code = failure.code if failure is not None else code
            name = method.rpartition("/")[2]
            self._metrics.calls.labels(name, code.name).observe(time.perf_counter() - started)
        if failure is not None:
            await abort(context, failure)


async def abort(context: Context, error: KoopcastError) -> None:
    """Ends a call with the status of `error`."""
    details = status_of(error).SerializeToString()
    await context.abort(
        error.code, _clipped(str(error), _TEXT_BYTES), trailing_metadata=((STATUS_DETAILS_KEY, details),)
    )


def status_of(error: KoopcastError) -> status_pb2.Status:
    """The google.rpc.Status of an error: an ErrorInfo, and a BadRequest where a field is at fault."""
    text = _clipped(str(error), _TEXT_BYTES)
    details = {name: _clipped(value, _DETAIL_BYTES) for name, value in error.details.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=_ERROR_DOMAIN, metadata=details)
    status = status_pb2.Status(code=error.code.value[0], message=text)
    status.details.append(_packed(info))
    if isinstance(error, InvalidArgument) and "field" in details:
        violation = error_details_pb2.BadRequest.FieldViolation(field=details["field"], description=text)
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    return status


def _clipped(text: str, limit: int) -> str:
    """`text`, or its beginning where it is longer than `limit` bytes."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= limit else encoded[: limit - 3].decode(errors="ignore") + "..."


def _is_snapshot(data: bytes, decode: Callable[[bytes], Any]) -> bool:
    """Whether a message carries bytes that are not copied when it is read."""
    if decode is decode_push_request:
        return is_chunk(data)
    return decode is decode_short_push and is_short_push(data)


def _decoded(data: bytes, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(data)
    except DecodeError as error:
        raise InvalidArgument(
            f"the request is no message of this call: {error}", reason="BAD_MESSAGE"
        ) from None


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
