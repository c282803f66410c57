"""One service: gRPC and HTTP in one event loop, from settings to a clean end."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from koopcast.channel import is_local
from koopcast.v1 import (
    job_pb2,
    job_pb2_grpc,
    prediction_pb2,
    snapshot_pb2,
)
from koopcast_server.config import AUTO_MEMORY_LIMIT, Settings
from koopcast_server.engine import Engine
from koopcast_server.grpc_api import JobService
from koopcast_server.grpc_bulk import add_bulk_services
from koopcast_server.grpc_predictions import PredictionService
from koopcast_server.grpc_snapshots import SnapshotService
from koopcast_server.identity import Identities
from koopcast_server.interceptor import CallInterceptor
from koopcast_server.jobs import Jobs
from koopcast_server.metrics import Metrics

if TYPE_CHECKING:
    from koopcast_server.http_server import HttpServer

__all__ = ["Service", "StartupError"]

_log = structlog.get_logger("koopcast")
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # two services on one port would both start, silently
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.http2.max_frame_size", 16_777_215),  # the largest there is: chunks arrive in fewer pieces
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # clients ask every 10 s whether we are there
    ("grpc.keepalive_permit_without_calls", 1),
)
_SERVICE_NAMES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (job_pb2, "JobService"),
        (snapshot_pb2, "SnapshotService"),
        (prediction_pb2, "PredictionService"),
    )
)
_ADDRESS: Final = re.compile(r"unix:.+|(\[[0-9a-fA-F:.]+\]|[^:\s]+):\d{1,5}")
_EXPIRY_SECONDS: Final = 5.0
_LAST_GRACE_SECONDS: Final = 0.5


class StartupError(RuntimeError):
    """The service cannot start as it was asked to; the message says what to change."""


@dataclass(frozen=True)
class _Tls:
    certificate: Path
    key: Path


class Service:
    """The running service. `start`, then `wait`, then `drain`.

    Attributes:
        grpc_address: where gRPC listens, with the port that was bound.
        http_address: where HTTP listens, None without HTTP.
        jobs: the jobs.
    """

    def __init__(self, settings: Settings) -> None:
        """Check the settings and find the device.

        Raises:
            StartupError: addresses that must be secured are not, or TLS files are missing.
            DeviceMissing, TokenFileError: as their names say.
        """
        self._settings = settings
        tokens = settings.tokens.get_secret_value() if settings.tokens is not None else None
        self._identities = Identities.from_sources(settings.token_file, tokens)
        self._tls = _tls_of(settings)
        _refuse_open_doors(settings, has_tls=self._tls is not None, has_tokens=self._identities.required)
        self.engine = Engine(settings.device, settings.workers, settings.computation_threads)
        limit = settings.memory_limit_bytes
        if limit == AUTO_MEMORY_LIMIT:
            limit = self.engine.free_memory_bytes() // 2
        self.jobs = Jobs(self.engine, limit, settings.lease_seconds, settings.job_ttl_seconds)
        self._metrics = Metrics(self.jobs)
        self._calls = CallInterceptor(self._identities, self._metrics, self.engine, settings.stall_seconds)
        self._health = health.aio.HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []
        self._http: HttpServer | None = None
        self.grpc_address = ""
        self.http_address: str | None = None

    async def start(self) -> None:
        """Binds both addresses and begins to answer.

        Raises:
            StartupError: an address cannot be bound, or the device does not compute.
        """
        await self._check_device()
        self._server = grpc.aio.server(interceptors=[self._calls], options=_OPTIONS)
        job_pb2_grpc.add_JobServiceServicer_to_server(JobService(self.jobs), self._server)
        add_bulk_services(
            self._server,
            SnapshotService(self.jobs, self._metrics, self._settings.stall_seconds),
            PredictionService(self.jobs, self._metrics),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_SERVICE_NAMES, health.SERVICE_NAME), self._server)
        self.grpc_address = self._bind_grpc(self._settings.listen)
        await self._server.start()
        if self._settings.http is not None:
            await self._start_http(self._settings.http)
        for name in ("", *_SERVICE_NAMES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._tasks.append(asyncio.create_task(self._expire_jobs(), name="koopcast-expiry"))

    async def drain(self) -> None:
        """Turns unready, refuses new work, lets open calls finish within the bound, and stops."""
        self.jobs.draining = True
        await self._health.enter_graceful_shutdown()
        _log.info("draining", open_calls=self._calls.active, seconds=self._settings.drain_seconds)
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self._calls.idle.wait()
        except TimeoutError:
            _log.warning("open calls are cut", open_calls=self._calls.active)
        await self._server.stop(_LAST_GRACE_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._http is not None:
            await self._http.stop()
        self.engine.close()
        self.jobs.close_memory()
        _log.info("stopped")

    async def _check_device(self) -> None:
        try:
            await self.engine.check()
            await self.engine.rehearse()
        except (RuntimeError, TimeoutError) as error:
            raise StartupError(f"the device {self.engine.device} does not compute: {error}") from error

    def _bind_grpc(self, address: str) -> str:
        if address.startswith("unix:") and _answers(address.removeprefix("unix:")):
            raise StartupError(f"cannot listen on {address}: another service answers there")
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(address)
            else:
                pair = (self._tls.key.read_bytes(), self._tls.certificate.read_bytes())
                port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except (RuntimeError, OSError) as error:
            raise StartupError(f"cannot listen on {address}: {error}") from error
        if address.startswith("unix:"):
            return address
        if not port:
            raise StartupError(f"cannot listen on {address}: is the port taken?")
        return f"{address.rpartition(':')[0]}:{port}"

    async def _start_http(self, address: str) -> None:
        from koopcast_server.http_server import HttpServer  # noqa: PLC0415  # the embedded service has no HTTP

        app_parts = (self.jobs, self._metrics, self._identities)
        pair = (self._tls.certificate, self._tls.key) if self._tls is not None else None
        try:
            self._http = await HttpServer.start(address, app_parts, pair)
        except (OSError, ValueError, RuntimeError) as error:
            await self._server.stop(None)
            raise StartupError(f"cannot listen on {address} for HTTP: {error}") from error
        self.http_address = self._http.address

    async def _expire_jobs(self) -> None:
        while True:
            await asyncio.sleep(min(_EXPIRY_SECONDS, self.jobs.job_ttl_seconds))
            for name in self.jobs.expire():
                _log.info("job expired", job=name)


def _answers(path: str) -> bool:
    """Whether somebody listens on a Unix socket; gRPC would unlink it and take the place, silently."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:  # no such socket, or one that a killed service left behind
            return False
        return True


def _tls_of(settings: Settings) -> _Tls | None:
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise StartupError("TLS needs both --tls-cert and --tls-key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise StartupError(f"cannot use the TLS files {certificate} and {key}: {error}") from error
    return _Tls(certificate, key)


def _refuse_open_doors(settings: Settings, *, has_tls: bool, has_tokens: bool) -> None:
    for option, address in (("--listen", settings.listen), ("--http", settings.http)):
        if address is not None and not _ADDRESS.fullmatch(address):
            raise StartupError(f"{option} takes host:port (or, for gRPC, unix:/path), not {address!r}")
        if address is None or is_local(address) or settings.insecure or (has_tls and has_tokens):
            continue
        missing = [
            name
            for name, present in (("--tls-cert and --tls-key", has_tls), ("--token-file", has_tokens))
            if not present
        ]
        raise StartupError(
            f"{option} {address} can be reached from other machines: give {' and '.join(missing)}, or --insecure if "
            "everybody who can reach it may use it"
        )
