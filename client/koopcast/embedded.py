"""The embedded service: the same gRPC server inside this process, on a private Unix socket.

One a process, reference-counted: started for the first client, stopped with the last or with the interpreter,
never inherited across `fork`. gRPC cannot start another one in a forked process: a child that asks is told so.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

from koopcast.errors import FailedPrecondition, MissingExtra

__all__ = ["EmbeddedService", "acquire_embedded"]


class _Running(Protocol):
    """What the server's `start_embedded` gives."""

    @property
    def target(self) -> str: ...
    def stop(self) -> None: ...


class EmbeddedService:
    """The process's embedded service, with the number of its users."""

    def __init__(self, running: _Running) -> None:
        """Hold a running service, not yet used."""
        self.target = running.target
        self.process_id = os.getpid()
        self._running = running
        self._users = 0

    def acquire(self) -> EmbeddedService:
        """Count one more user."""
        self._users += 1
        return self

    def release(self) -> None:
        """Count one user less; the last one stops the service."""
        global _current  # noqa: PLW0603  # one service a process is the contract
        if self.process_id != os.getpid():
            return
        with _lock:
            self._users -= 1
            if self._users > 0:
                return
            if _current is self:
                _current = None
        self._running.stop()


_lock = threading.Lock()
_current: EmbeddedService | None = None
_first_process_id: int | None = None
"""The process that first started one; its children by fork cannot."""


def acquire_embedded() -> EmbeddedService:
    """The process's embedded service, started if need be. Release it when done.

    Raises:
        MissingExtra: the server is not installed.
        FailedPrecondition: this process was forked from one that started it.
    """
    global _current, _first_process_id  # noqa: PLW0603  # one service a process is the contract
    with _lock:
        if _first_process_id not in {None, os.getpid()}:
            raise FailedPrecondition(
                "the embedded service (target=None) cannot be started in a process forked from one that started "
                "it: start processes with the 'spawn' method, or give the address of a running service",
                reason="FORKED",
            )
        if _current is None:
            _current = EmbeddedService(_start())
            _first_process_id = os.getpid()
        return _current.acquire()


def _start() -> _Running:
    try:
        from koopcast_server.embedding import start_embedded  # noqa: PLC0415  # the one arrow back (design: embedded)
    except ImportError as error:
        raise MissingExtra(
            "the embedded service (target=None) needs the server: pip install 'koopcast[server]', or give the "
            f"address of a running service ({error})",
            reason="MISSING_EXTRA",
            extra="server",
        ) from error
    running: _Running = start_embedded()
    return running


def _forget_after_fork() -> None:
    global _lock  # noqa: PLW0603  # a lock held by another thread at fork would never be released in the child
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
