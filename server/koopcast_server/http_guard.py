"""Around every HTTP request: who asks, what browsers may do with the answer, and what errors look like."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koopcast.errors import InternalError, InvalidArgument, KoopcastError, Unauthenticated
from koopcast_server.http_models import Problem
from koopcast_server.identity import Identities

__all__ = ["OPEN_PATHS", "PROBLEM_RESPONSES", "Guard", "add_error_handlers", "caller"]

OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz"})
"""Answered without a token: orchestrators probe them."""

_CHALLENGE: Final = 'Basic realm="koopcast", charset="UTF-8"'
"""Makes a browser ask for the token (as password; the user name is ignored)."""

_STATUS: Final[Mapping[grpc.StatusCode, int]] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""google.rpc's mapping; whatever is not here is 500."""

_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_CACHE_CONTROL: Final = "no-store"
_PROBLEM: Final = "application/problem+json"

PROBLEM_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "default": {"description": "A problem.", "content": {_PROBLEM: {"schema": Problem.model_json_schema()}}}
}
"""For OpenAPI: whatever goes wrong is answered as a Problem."""


class Guard:
    """ASGI middleware: checks the token before a route is looked up, and sets the security headers."""

    def __init__(self, app: ASGIApp, identities: Identities) -> None:
        """Let these identities in."""
        self._app = app
        self._identities = identities

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", _CACHE_CONTROL)
            await send(message)

        if scope["path"] not in OPEN_PATHS:
            try:
                identity = self._identity(Headers(scope=scope).get("authorization"))
            except Unauthenticated as error:
                await problem(error)(scope, receive, send_with_headers)
                return
            scope.setdefault("state", {})["identity"] = identity
        await self._app(scope, receive, send_with_headers)

    def _identity(self, authorization: str | None) -> str:
        if authorization is not None and not authorization.isascii():  # no token looks like this
            authorization = "Bearer"
        return self._identities.of_header(authorization)


def caller(request: Request) -> str:
    """Identity of the caller, as the guard found it."""
    identity: str = request.state.identity
    return identity


def problem(error: KoopcastError, status: int | None = None) -> JSONResponse:
    """The answer that tells of an error; its status follows from the error's code unless given."""
    status = status or _STATUS.get(error.code, 500)
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=str(error),
        reason=error.reason,
        details=dict(error.details),
    )
    headers = {"www-authenticate": _CHALLENGE} if isinstance(error, Unauthenticated) else None
    return JSONResponse(body.model_dump(), status, headers, media_type=_PROBLEM)


def add_error_handlers(app: FastAPI) -> None:
    """Answers every error as a Problem."""
    app.add_exception_handler(KoopcastError, _on_koopcast_error)
    app.add_exception_handler(RequestValidationError, _on_bad_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)


async def _on_koopcast_error(request: Request, error: Exception) -> JSONResponse:
    return problem(error if isinstance(error, KoopcastError) else InternalError(str(error)))


async def _on_bad_request(request: Request, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    field = str(found[0]["loc"][-1]) if found else ""
    message = f"{field}: {found[0]['msg']}" if found else "the request is malformed"
    return problem(InvalidArgument(message, field=field))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """What the router refuses by itself: unknown paths (404) and methods (405)."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    phrase = HTTPStatus(status).phrase
    reason = phrase.upper().replace(" ", "_").replace("-", "_")
    answer = problem(
        KoopcastError(f"{request.method} {request.url.path}: {phrase.lower()}", reason=reason), status
    )
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    return problem(InternalError(f"a fault of the service: {type(error).__name__}; please report it"))
