"""A proxy that knows where gRPC's messages end, to let things happen between any two of them.

::

    client <── down ──┐ MessageProxy ┌── up ──> service
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from proxy import Direction, Proxy, _Connection

Fate = Literal["arrives", "cut", "lost"]
"""Of the last message before something happens: it arrives; and its connection ends then; or before."""

_PREFACE: Final = 24  # bytes that an HTTP/2 client begins with
_FRAME_HEADER: Final = 9
_DATA: Final = 0  # type of the frames that carry messages
_PADDED: Final = 8
_MESSAGE_HEADER: Final = 5  # compressed or not, and how long
_READ_BYTES: Final = 64 << 10


class MessageEnds:
    """Finds the ends of gRPC messages in one direction of an HTTP/2 connection. Streams may interleave."""

    def __init__(self, direction: Direction) -> None:
        """At the beginning of a connection."""
        self._waiting = bytearray()
        self._seen = 0  # bytes of the connection before those waiting
        self._skip = _PREFACE if direction == "up" else 0
        self._frame = 0  # bytes that are still missing of the present frame
        self._stream: int | None = None  # whose data it carries; None: it carries none
        self._headers: dict[int, bytearray] = {}
        self._missing: dict[int, int] = {}

    def feed(self, data: bytes) -> list[int]:
        """Ends of the messages that these bytes complete, as numbers of bytes of `data`."""
        before = self._seen + len(self._waiting)
        self._waiting += data
        return [end - before for end in self._ends()]

    def _ends(self) -> Iterator[int]:
        while self._waiting:
            if self._skip:
                self._take(min(self._skip, len(self._waiting)), skipping=True)
            elif not self._frame:
                if len(self._waiting) < _FRAME_HEADER:
                    return
                header = self._take(_FRAME_HEADER)
                self._frame = int.from_bytes(header[:3], "big")
                is_data = header[3] == _DATA and not header[4] & _PADDED
                self._stream = int.from_bytes(header[5:], "big") if is_data else None
            elif self._stream is None:
                self._frame -= len(self._take(min(self._frame, len(self._waiting))))
            else:
                yield from self._message(self._stream)

    def _message(self, stream: int) -> Iterator[int]:
        """Goes on in the message of a stream, at most to its end."""
        header = self._headers.setdefault(stream, bytearray())
        wanted = _MESSAGE_HEADER - len(header) or self._missing[stream]
        taken = self._take(min(wanted, self._frame, len(self._waiting)))
        self._frame -= len(taken)
        if len(header) < _MESSAGE_HEADER:
            header += taken
            if len(header) < _MESSAGE_HEADER:
                return
            self._missing[stream] = int.from_bytes(header[1:], "big")
        else:
            self._missing[stream] -= len(taken)
        if not self._missing[stream]:
            header.clear()
            yield self._seen

    def _take(self, count: int, *, skipping: bool = False) -> bytes:
        taken = bytes(self._waiting[:count])
        del self._waiting[:count]
        self._seen += count
        if skipping:
            self._skip -= count
        return taken


class _Trigger:
    """Something that is to happen once, after so many messages or bytes in one direction."""

    def __init__(
        self,
        direction: Direction,
        unit: Literal["messages", "bytes"],
        count: int,
        act: Callable[[], None],
        fate: Fate,
    ) -> None:
        self.direction = direction
        self.unit = unit
        self.left = count
        self.act = act
        self.fate = fate

    def reached(self, size: int, ends: list[int]) -> int | None:
        """How many of `size` bytes still pass before it happens; None where all do."""
        if self.unit == "bytes":
            passing, self.left = min(self.left, size), self.left - size
            return passing if self.left < 0 else None
        missing, self.left = self.left, self.left - len(ends)
        if self.left > 0:
            return None
        return ([0, *ends])[missing - 1 if self.fate == "lost" else missing]


@dataclass
class MessageProxy(Proxy):
    """Forwards, until told otherwise; of the faults of `Proxy` it knows none.

    Attributes:
        bytes_per_second: of each connection and direction; None: as fast as it goes.
        messages: forwarded so far, by direction.
        cuts: connections that were reset.
    """

    bytes_per_second: float | None = None
    messages: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    cuts: int = 0

    def __post_init__(self) -> None:
        """Listen."""
        self._trigger: _Trigger | None = None
        self._holed = False
        self._lost: set[_Connection] = set()
        super().__post_init__()

    def after_messages(
        self, direction: Direction, count: int, act: Callable[[], None], fate: Fate = "arrives"
    ) -> None:
        """Call `act`, on another thread, when the next `count` messages, at least one, have passed.

        Args:
            direction: which messages count.
            count: how many.
            act: what to do.
            fate: of the last of these messages.
        """
        with self._lock:
            self._trigger = _Trigger(direction, "messages", count, act, fate)

    def cut_after_bytes(self, direction: Direction, count: int) -> None:
        """Cut everything when the next `count` bytes have passed, those that follow being lost."""
        with self._lock:
            self._trigger = _Trigger(direction, "bytes", count, self.cut, "cut")

    def disarm(self) -> bool:
        """Forget what was to happen; whether it had not happened yet."""
        with self._lock:
            trigger, self._trigger = self._trigger, None
            return trigger is not None

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            self.cuts += len(self._open)
        super().cut()

    def open_hole(self) -> None:
        """From now on bytes vanish, without a word to either side. Those connections never come back to life."""
        with self._lock:
            self._holed = True
            self._lost.update(self._open)

    def close_hole(self) -> None:
        """Connections made from now on work again."""
        self._holed = False

    def _forward(self, connection: _Connection, direction: Direction) -> None:
        source, sink = connection.ends[direction]
        ends = MessageEnds(direction)
        if self._holed:
            self._lost.add(connection)
        with contextlib.suppress(OSError):  # an end that was closed
            while data := source.recv(_READ_BYTES):
                self._pass(connection, direction, data, ends.feed(data), sink)
        if connection in self._lost:  # the other side does not hear of it
            return
        connection.cut()
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(connection)

    def _pass(
        self, connection: _Connection, direction: Direction, data: bytes, ends: list[int], sink: socket.socket
    ) -> None:
        if connection in self._lost:
            return
        if self.bytes_per_second is not None:
            time.sleep(len(data) / self.bytes_per_second)
        with self._lock:
            self.messages[direction] += len(ends)
            trigger, passing = self._trigger, None
            if trigger is not None and trigger.direction == direction:
                passing = trigger.reached(len(data), ends)
            if passing is not None:
                self._trigger = None
        if trigger is None or passing is None:
            sink.sendall(data)
            return
        sink.sendall(data[:passing])
        trigger.act()
        if trigger.fate != "arrives":
            connection.cut()
            return
        sink.sendall(data[passing:])


@contextlib.contextmanager
def proxied(service: str) -> Iterator[MessageProxy]:
    """A proxy before a service for the length of the block."""
    proxy = MessageProxy(service)
    try:
        yield proxy
    finally:
        proxy.disarm()
        proxy.close()
