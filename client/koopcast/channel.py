"""Channels: where the service is, how the connection is secured, and what its errors mean.

A channel is opened on first use and belongs to the process that opened it: gRPC channels do not survive `fork`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.experimental
from google.protobuf.message import DecodeError

from koopcast.errors import ArgumentTypeError, ArgumentValueError, Cancelled, KoopcastError, error_class
from koopcast.v1 import error_pb2

__all__ = ["STATUS_DETAILS_KEY", "Connection", "error_from_call", "is_local"]

STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.http2.max_frame_size", 16_777_215),  # the largest there is: chunks arrive in fewer pieces
    # Answers come without a detour over a thread.
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
    # A connection that has died without a word is noticed within 20 s, whether or not a call is under way, so that
    # a service that can be reached again is found within 30. The service allows such pings every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # of the pings that measure bandwidth, which keepalive waits for
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class Connection:
    """A lazily opened, secured channel to one service.

    Plain connections are for Unix sockets and loopback; anything else needs `ca` (TLS), or an explicit
    `insecure=True`.

    Raises:
        ArgumentValueError: no such target form, an unreadable CA file, or a plain connection to another host.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        ca: str | os.PathLike[str] | bytes | None = None,
        insecure: bool = False,
    ) -> None:
        """Check the arguments; nothing is contacted yet."""
        _check_target(target)
        self.target = target
        self.metadata = (("authorization", f"Bearer {_check_token(token)}"),) if token else ()
        self._root_certificates = _read_ca(ca)
        self._secure = ca is not None
        if not (self._secure or insecure or is_local(target)):
            raise ArgumentValueError(
                f"{target} is not on this machine and the connection would be plain: give ca=<certificate file> "
                'for TLS (ca="system" trusts the system\'s authorities), or insecure=True',
                field="ca",
            )
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._process_id = 0
        self._closed = False

    def channel(self) -> grpc.Channel:
        """The open channel of this process."""
        with self._lock:
            if self._closed:
                raise Cancelled("this client is closed", reason="CLIENT_CLOSED")
            if self._channel is None or self._process_id != os.getpid():
                self._channel = self._open()
                self._process_id = os.getpid()
            return self._channel

    def call(self, method: Callable[[grpc.Channel], Any], request: Any, timeout_seconds: float) -> Any:
        """Calls a method of a stub made from the channel; gRPC errors become koopcast's.

        Raises:
            KoopcastError: the class that stands for the status.
        """
        with self.errors():
            return method(self.channel())(request, timeout=timeout_seconds, metadata=self.metadata)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns what gRPC raises in the block into koopcast's exceptions; those that are ours already pass."""
        try:
            yield
        except KoopcastError:
            raise
        except grpc.RpcError as error:
            raise error_from_call(error, self.target) from None
        except ValueError as error:  # grpc's answer to a call on a channel closed by another thread
            raise Cancelled(f"the client was closed during the call ({error})") from None

    def close(self) -> None:
        """Closes the channel; calls under way end as Cancelled."""
        with self._lock:
            self._closed = True
            if self._channel is not None and self._process_id == os.getpid():
                self._channel.close()
            self._channel = None

    def _open(self) -> grpc.Channel:
        if not self._secure:
            return grpc.insecure_channel(self.target, options=_OPTIONS)
        credentials = grpc.ssl_channel_credentials(self._root_certificates)
        return grpc.secure_channel(self.target, credentials, options=_OPTIONS)


def is_local(target: str) -> bool:
    """Whether the target is a Unix socket or a loopback address."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def error_from_call(error: grpc.RpcError, target: str) -> KoopcastError:
    """The koopcast exception for a failed call, with the reason and details the service sent."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    text = (error.details() if isinstance(error, grpc.Call) else str(error)) or code.name
    reason = ""
    details: dict[str, str] = {}
    for key, value in _trailers(error):
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            reason, details = _decode_details(value)
    if code is grpc.StatusCode.UNAVAILABLE and not reason:
        text = f"the koopcast service at {target} cannot be reached ({text})"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and not reason:
        text = f"no answer from the koopcast service at {target} within the deadline ({text})"
    return error_class(code)(text, reason=reason or code.name, **details)


def _trailers(error: grpc.RpcError) -> Sequence[tuple[str, str | bytes]]:
    trailers = error.trailing_metadata() if isinstance(error, grpc.Call) else None
    return tuple(trailers or ())


def _decode_details(value: bytes) -> tuple[str, dict[str, str]]:
    try:
        status = error_pb2.ErrorStatus.FromString(value)
        for detail in status.details:
            if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                info = error_pb2.ErrorInfo.FromString(detail.value)
                return info.reason, dict(info.metadata)
    except DecodeError:  # a proxy's own trailers: the code and the text still stand
        return "", {}
    return "", {}


def _check_target(target: str) -> None:
    if not isinstance(target, str):
        raise ArgumentTypeError(f"target must be a string, not {target!r}", field="target")
    if target.startswith("unix:"):
        return
    port = target.rpartition(":")[2]
    if not (port.isdecimal() and 0 < int(port) < 65536 and ":" in target):
        raise ArgumentValueError(
            f'target must be "host:port" or "unix:/path", not {target!r}', field="target"
        )


def _check_token(token: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ArgumentValueError("token must be printable ASCII without spaces", field="token")
    return token


def _read_ca(ca: str | os.PathLike[str] | bytes | None) -> bytes | None:
    if ca is None or ca == "system":
        return None
    if isinstance(ca, bytes):
        return ca
    try:
        return Path(ca).read_bytes()
    except OSError as error:
        raise ArgumentValueError(
            f"cannot read the CA certificate {os.fspath(ca)}: {error.strerror}", field="ca"
        ) from None
