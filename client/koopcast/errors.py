"""Every exception that koopcast raises, as one tree.

::

    KoopcastError                     .code (grpc.StatusCode), .details (names and numbers), .reason (a constant)
    ├── InvalidArgument               INVALID_ARGUMENT: non-finite values, shape, dtype, stride, name, horizon
    │   ├── ArgumentValueError        ... found before any call; also a ValueError
    │   └── ArgumentTypeError         ... found before any call; also a TypeError
    ├── NotFound                      NOT_FOUND: no such job
    ├── AlreadyExists                 ALREADY_EXISTS: other spec, live lease, same step with other bytes
    ├── FailedPrecondition            FAILED_PRECONDITION: too few snapshots, a step that does not follow
    ├── ResourceExhausted             RESOURCE_EXHAUSTED: does not fit the memory limit, too many requests
    ├── LeaseLost                     ABORTED: somebody else holds the job now
    ├── DataLoss                      DATA_LOSS: a checksum does not match
    ├── Unauthenticated               UNAUTHENTICATED: no token, or a wrong one
    ├── PermissionDenied              PERMISSION_DENIED: the job belongs to another identity
    ├── Unavailable                   UNAVAILABLE: service absent, or draining
    ├── DeadlineExceeded              DEADLINE_EXCEEDED: no answer in time
    ├── Cancelled                     CANCELLED: the client was closed during the call
    ├── InternalError                 INTERNAL, UNKNOWN, UNIMPLEMENTED ...: a fault of the service; please report it
    └── MissingExtra                  a part of koopcast that is not installed is needed; also an ImportError

Server and client raise the same classes: the service turns them into gRPC status with details, the client turns
status back into them, so `except koopcast.NotFound` means the same on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import grpc

__all__ = [
    "AlreadyExists",
    "ArgumentTypeError",
    "ArgumentValueError",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "InvalidArgument",
    "KoopcastError",
    "LeaseLost",
    "MissingExtra",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "error_class",
]


class KoopcastError(Exception):
    """Base of all koopcast exceptions.

    Attributes:
        code: the gRPC status code that stands for this error.
        reason: a constant in UPPER_SNAKE_CASE to branch on, e.g. ``"TOO_FEW_SNAPSHOTS"``.
        details: the numbers and names the message speaks of, as strings, e.g. ``{"held": "2", "needed": "3"}``.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, reason: str = "", **details: object) -> None:
        """Keep `message` for the reader, `reason` and `details` for the program."""
        super().__init__(message)
        self.reason = reason or self.code.name
        self.details: Mapping[str, str] = {name: str(value) for name, value in details.items()}


class InvalidArgument(KoopcastError):
    """A request that can never succeed as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class ArgumentValueError(InvalidArgument, ValueError):
    """A bad value found before any call."""


class ArgumentTypeError(InvalidArgument, TypeError):
    """A bad type found before any call."""


class NotFound(KoopcastError):
    """No such job."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(KoopcastError):
    """The name is taken by a job of another spec or with a live lease, or the step by other bytes."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(KoopcastError):
    """Right at another time: too few snapshots yet, or a step that does not follow the last one."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(KoopcastError):
    """A limit would be passed; the details name it."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class LeaseLost(KoopcastError):
    """Somebody else holds the job's lease now."""

    code = grpc.StatusCode.ABORTED


class DataLoss(KoopcastError):
    """Bytes arrived changed: a checksum does not match."""

    code = grpc.StatusCode.DATA_LOSS


class Unauthenticated(KoopcastError):
    """No token, or a wrong one."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(KoopcastError):
    """The job belongs to another identity."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unavailable(KoopcastError):
    """The service cannot be reached, or is draining."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(KoopcastError):
    """No answer in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(KoopcastError):
    """The call was given up, for instance because the client was closed."""

    code = grpc.StatusCode.CANCELLED


class InternalError(KoopcastError):
    """A fault of the service."""

    code = grpc.StatusCode.INTERNAL


class MissingExtra(KoopcastError, ImportError):
    """A part of koopcast that is not installed is needed; the message names the command that installs it."""

    code = grpc.StatusCode.UNIMPLEMENTED


_BY_CODE: Mapping[grpc.StatusCode, type[KoopcastError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        LeaseLost,
        DataLoss,
        Unauthenticated,
        PermissionDenied,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
    )
}


def error_class(code: grpc.StatusCode) -> type[KoopcastError]:
    """The exception class for a gRPC status code; InternalError for those that only a fault produces."""
    return _BY_CODE.get(code, InternalError)
