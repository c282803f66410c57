"""What an upload sends of a payload: messages of its chunks, their checksums, and what was sent so far."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Protocol

from koopcast.codec import SharedChunk, encode_chunk, encode_shared_chunk
from koopcast.errors import InternalError
from koopcast.payload import Payload
from koopcast.shared_memory import Places, SharedRing
from koopcast.wire import checksum, combine

__all__ = ["UploadSource"]


class Stream(Protocol):
    """One connection's part of an upload."""

    over: bool


class UploadSource:
    """A payload as it is sent, over one connection after another.

    Attributes:
        bytes_sent: data sent. Unit: bytes.
        bytes_resent: of these, what had been sent before. Unit: bytes.
    """

    def __init__(self, payload: Payload, ring: SharedRing | None) -> None:
        """Send `payload`, through `ring` while it is usable."""
        self._payload = payload
        self._ring = ring
        self._lock = threading.Lock()
        self._before = {0: 0}  # crc32c of all bytes before each border between chunks
        self._sent_to = 0
        self.bytes_sent = 0
        self.bytes_resent = 0

    @property
    def is_short(self) -> bool:
        """Whether it is a single chunk."""
        return next(self._payload.ranges(0))[1] == self._payload.nbytes

    def ranges(self, start: int) -> Iterator[tuple[int, int]]:
        """Ranges of the chunks from `start` on.

        Raises:
            InternalError: no chunk that was sent ended there.
        """
        if start not in self._before:
            raise InternalError(f"the service asks for byte {start}, inside of a chunk", reason="BAD_OFFSET")
        return self._payload.ranges(start)

    def places(self) -> Places | None:
        """Where chunks may lie in shared memory, for a stream that begins; None where there is none."""
        return self._ring.places() if self._ring is not None and self._ring.usable else None

    def close_ring(self) -> None:
        """No more of it goes through shared memory."""
        if self._ring is not None:
            self._ring.close()

    def message(self, stream: Stream, start: int, stop: int, position: int | None) -> bytes | None:
        """The message of a chunk; None once its stream is over.

        Args:
            stream: that asks.
            start: where the chunk begins.
            stop: where it ends.
            position: where it is to lie in shared memory; None: in the message.
        """
        with self._lock:
            if stream.over:
                return None
            data = self._payload.read(start, stop)
            if position is None or self._ring is None:
                message = encode_chunk(start, data, self._summed(start, stop, data))
            else:
                self._ring.write(position, data)
                message = encode_shared_chunk(
                    SharedChunk(start, position, stop - start, self._summed(start, stop, data))
                )
            self.bytes_sent += stop - start
            self.bytes_resent += max(0, min(stop, self._sent_to) - start)
            self._sent_to = max(self._sent_to, stop)
            return message

    def digest(self) -> bytes:
        """crc32c of all bytes, big-endian; reads what was not read yet."""
        with self._lock:
            for start, stop in self._payload.ranges(max(self._before)):
                self._summed(start, stop, self._payload.read(start, stop))
            return self._before[self._payload.nbytes].to_bytes(4, "big")

    def leave(self) -> None:
        """Returns when nobody reads the payload."""
        with self._lock:
            return

    def _summed(self, start: int, stop: int, data: memoryview) -> int:
        crc32c = checksum(data)
        self._before[stop] = combine(self._before[start], crc32c, stop - start)
        return crc32c
