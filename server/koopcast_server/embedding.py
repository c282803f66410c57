"""The embedded service: a real gRPC server in a thread of the trainer's process, on a private Unix socket."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import structlog

from koopcast_server.config import Settings
from koopcast_server.service import Service

__all__ = ["Embedded", "start_embedded"]

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 10.0
_DIRECTORY_PREFIX: Final = "koopcast-"


class Embedded:
    """A service on a Unix socket in a directory that only this user can enter."""

    def __init__(self) -> None:
        """Start the thread and wait until it answers.

        Raises:
            StartupError, DeviceMissing: the service cannot start.
        """
        self._directory = Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX))  # mkdtemp makes it 0700
        self.target = f"unix:{self._directory / 'socket'}"
        self._process_id = os.getpid()
        self._started: Future[None] = Future()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="koopcast-embedded", daemon=True)
        self._thread.start()
        try:
            self._started.result(timeout=_START_SECONDS)
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        atexit.register(self.stop)  # for clients that are never closed

    def stop(self) -> None:
        """Stops the service and removes its directory; nothing in a process forked from its own.

        Where a computation takes longer than this waits, the interpreter's end, which waits for it, calls this again: the
        service's thread must not run on while the interpreter goes.
        """
        if self._process_id != os.getpid():
            return
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has ended just now
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=_STOP_SECONDS)
        shutil.rmtree(self._directory, ignore_errors=True)
        if not self._thread.is_alive():
            atexit.unregister(self.stop)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001  # carried to the thread that waits for the start
            if not self._started.done():
                self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        settings = Settings(
            listen=self.target,
            http=None,
            tokens=None,
            token_file=None,
            tls_cert=None,
            tls_key=None,
            workers=2,
            threads=0,  # the trainer's setting is the trainer's
            drain_seconds=1.0,
            log_level="warning",
        )
        service = Service(settings)
        await service.start()
        self._started.set_result(None)
        await self._stop.wait()
        await service.drain()


def start_embedded() -> Embedded:
    """Starts the embedded service; `stop` it when done."""
    if not structlog.is_configured():
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    return Embedded()
