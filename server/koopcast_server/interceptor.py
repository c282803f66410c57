"""Around every gRPC call: who calls, how long it took, and what its errors are on the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from koopcast.channel import STATUS_DETAILS_KEY
from koopcast.errors import InternalError, InvalidArgument, KoopcastError
from koopcast_server.identity import Identities
from koopcast_server.metrics import Metrics

__all__ = ["CallInterceptor", "caller", "status_of"]

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

_OPEN_SERVICES: Final = ("/grpc.health.v1.Health/",)
_ERROR_DOMAIN: Final = "koopcast"
_caller: ContextVar[str] = ContextVar("koopcast_caller")
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

    def __init__(self, identities: Identities, metrics: Metrics) -> None:
        """Let these identities in."""
        self._identities = identities
        self._metrics = metrics
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

        async def single(request: Any, context: Context) -> Any:
            async with self._call(method, authorization, context):
                return await behavior(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._call(method, authorization, context):
                async for response in behavior(request, context):
                    yield response

        kinds = {
            (False, False): (grpc.unary_unary_rpc_method_handler, single),
            (False, True): (grpc.unary_stream_rpc_method_handler, stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, single),
            (True, True): (grpc.stream_stream_rpc_method_handler, stream),
        }
        make, wrapper = kinds[(handler.request_streaming, handler.response_streaming)]
        return make(
            wrapper,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

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
    await context.abort(error.code, str(error), trailing_metadata=((STATUS_DETAILS_KEY, details),))


def status_of(error: KoopcastError) -> status_pb2.Status:
    """The google.rpc.Status of an error: an ErrorInfo, and a BadRequest where a field is at fault."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=_ERROR_DOMAIN, metadata=dict(error.details)
    )
    status = status_pb2.Status(code=error.code.value[0], message=str(error))
    status.details.append(_packed(info))
    if isinstance(error, InvalidArgument) and "field" in error.details:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.details["field"], description=str(error)
        )
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    return status


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
