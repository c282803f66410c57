"""A TCP proxy that harms what passes through it: cuts, delays, truncates, corrupts, or swallows everything.

It stands between a client and a service in tests. Faults are set while it runs; counted bytes begin at 0 with every
connection. Two threads a connection, one for each direction; nothing in it knows what it carries.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
"""From the client to the service, or back."""
_PIECE = 256 << 10


@dataclass
class Faults:
    """What happens to the bytes of one direction.

    Attributes:
        cut_after: ends both directions of a connection, at once and with a reset, when so many bytes have passed.
        truncate_after: passes so many bytes, swallows the others, and ends the connection when `release` is called.
        corrupt_at: flips a bit of the byte at this offset.
        delay_seconds: holds every piece of at most 256 KiB for so long.
        swallow: takes everything and passes nothing: a host that is gone without a word.
    """

    cut_after: int | None = None
    truncate_after: int | None = None
    corrupt_at: int | None = None
    delay_seconds: float = 0.0
    swallow: bool = False


class _Connection:
    """One accepted connection and its continuation to the service."""

    def __init__(self, client: socket.socket, service: socket.socket) -> None:
        self.ends: dict[Direction, tuple[socket.socket, socket.socket]] = {
            "up": (client, service),
            "down": (service, client),
        }

    def cut(self) -> None:
        """Resets both ends."""
        for end in self.ends["up"]:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
            end.close()


@dataclass
class Proxy:
    """Forwards connections from `target` to `service`.

    Attributes:
        service: address of the service, "host:port".
        target: where clients connect.
        up: faults on the way to the service.
        down: faults on the way back.
        passed_up: bytes passed to the service, over all connections.
        passed_down: bytes passed to clients.
        connections: connections accepted so far.
        refuse: close new connections at once.
        on_bytes: called with the direction and the bytes passed on this connection, after every piece.
    """

    service: str
    target: str = ""
    up: Faults = field(default_factory=Faults)
    down: Faults = field(default_factory=Faults)
    passed_up: int = 0
    passed_down: int = 0
    connections: int = 0
    refuse: bool = False
    on_bytes: Callable[[Direction, int], None] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def heal(self) -> None:
        """No more faults."""
        self.up, self.down, self.refuse = Faults(), Faults(), False

    def cut(self) -> None:
        """Resets all connections."""
        with self._lock:
            connections, self._open = self._open, []
        for connection in connections:
            connection.cut()

    def close(self) -> None:
        """Cuts everything and stops listening."""
        self.refuse = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            if self.refuse:
                client.close()
                continue
            try:
                host, _, port = self.service.rpartition(":")
                service = socket.create_connection((host, int(port)), timeout=10)
            except OSError:
                client.close()
                continue
            service.settimeout(None)
            for end in (
                client,
                service,
            ):  # as gRPC does at its own ends: else small messages wait for acknowledgements
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(client, service)
            with self._lock:
                self._open.append(connection)
            self._start(self._forward, connection, "up")
            self._start(self._forward, connection, "down")

    def _forward(self, connection: _Connection, direction: Direction) -> None:
        source, sink = connection.ends[direction]
        passed = 0
        with contextlib.suppress(OSError):  # an end that was closed
            while piece := source.recv(_PIECE):
                faults = self.up if direction == "up" else self.down
                if faults.delay_seconds:
                    time.sleep(faults.delay_seconds)
                limit = faults.cut_after if faults.truncate_after is None else faults.truncate_after
                kept = piece if limit is None else piece[: max(0, limit - passed)]
                if not faults.swallow:
                    sink.sendall(_corrupted(kept, faults.corrupt_at, passed))
                passed += len(kept)
                self._count(direction, len(kept))
                if self.on_bytes is not None:
                    self.on_bytes(direction, passed)
                if (
                    faults.truncate_after is None
                    and faults.cut_after is not None
                    and passed >= faults.cut_after
                ):
                    break
        connection.cut()
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(connection)

    def _count(self, direction: Direction, count: int) -> None:
        with self._lock:
            if direction == "up":
                self.passed_up += count
            else:
                self.passed_down += count


def _corrupted(piece: bytes, corrupt_at: int | None, first: int) -> bytes:
    if corrupt_at is None or not first <= corrupt_at < first + len(piece):
        return piece
    changed = bytearray(piece)
    changed[corrupt_at - first] ^= 0x10
    return bytes(changed)


@contextlib.contextmanager
def proxied(service: str) -> Iterator[Proxy]:
    """A proxy before a service for the length of the block."""
    proxy = Proxy(service)
    try:
        yield proxy
    finally:
        proxy.close()
