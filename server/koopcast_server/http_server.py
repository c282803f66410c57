"""Runs the HTTP API in the service's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import uvicorn

from koopcast_server.http_api import create_app
from koopcast_server.identity import Identities
from koopcast_server.jobs import Jobs
from koopcast_server.metrics import Metrics

__all__ = ["HttpServer"]


class _QuietServer(uvicorn.Server):
    """Leaves signals to the process: the whole service drains together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class HttpServer:
    """The listening HTTP API.

    Attributes:
        address: URL of its root, with the port that was bound.
    """

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None], address: str) -> None:
        """Hold a started server; use `start`."""
        self._server = server
        self._task = task
        self.address = address

    @classmethod
    async def start(
        cls, address: str, parts: tuple[Jobs, Metrics, Identities], tls: tuple[Path, Path] | None
    ) -> Self:
        """Binds ``host:port`` and answers.

        Raises:
            OSError, ValueError: the address cannot be bound, or is none.
            RuntimeError: the server ended while starting.
        """
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=128)
        config = uvicorn.Config(
            create_app(*parts),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            server_header=False,
            ssl_certfile=tls[0] if tls else None,
            ssl_keyfile=tls[1] if tls else None,
        )
        server = _QuietServer(config)
        task = asyncio.create_task(server.serve([bound]), name="koopcast-http")
        while not server.started:
            if task.done():
                raise RuntimeError("the HTTP server ended while starting")
            await asyncio.sleep(0.01)
        scheme = "https" if tls else "http"
        return cls(server, task, f"{scheme}://{host}:{bound.getsockname()[1]}")

    async def stop(self) -> None:
        """Ends open requests within a second, and stops."""
        self._server.should_exit = True
        await self._task
