"""Memory that a client shares with a service on its own host, so that the bytes of a push need not go through a socket.

::

    trainer ── copies a chunk ──> ring in /dev/shm ── reads it into its window ──> service
       └───────────── where it lies, and its checksum, over the connection ─────────┘

The file is made before a job is opened, and its name is gone when the service has answered, whether or not it opened
the file: what is left is the client's mapping and the service's descriptor. The memory is the client's.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import secrets
import sys
from collections import deque
from pathlib import Path
from typing import Final

import numpy as np

from koopcast.channel import is_local
from koopcast.v1 import job_pb2
from koopcast.wire import Bytes

__all__ = ["LEAST_CHUNK_BYTES", "LEAST_SNAPSHOT_BYTES", "Places", "SharedRing"]

LEAST_SNAPSHOT_BYTES: Final = 4 << 20
"""Shorter snapshots go through the socket: less than a millisecond could be saved."""
LEAST_CHUNK_BYTES: Final = 64 << 10
"""Shorter chunks, as between tensors of different types, go through the socket."""
_DIRECTORY: Final = Path("/dev/shm")  # noqa: S108  # file names there cannot be guessed
_RING_BYTES: Final = 16 << 20
"""A larger ring is no faster."""
_FIRST_BYTE: Final = mmap.PAGESIZE
"""Where chunks may lie; before it there is the nonce."""
_NONCE_BYTES: Final = 32
_linked: set[Path] = set()
"""Files that still have a name."""


class Places:
    """Where in a ring each chunk lies, from when it is written until its bytes are acknowledged."""

    def __init__(self, first: int, end: int) -> None:
        """Use the bytes [first, end) of the ring, all of them free."""
        self._first = first
        self._end = end
        self._next = first
        self._taken: deque[tuple[int, int]] = deque()  # where it begins, offset behind it in the snapshot

    def take(self, nbytes: int, stop: int, landed: int) -> int | None:
        """A place for the next chunk; None where there is none until more has landed.

        Args:
            nbytes: of the chunk.
            stop: offset behind it in the snapshot; higher each time.
            landed: everything below this offset has landed.
        """
        while self._taken and self._taken[0][1] <= landed:
            self._taken.popleft()
        position = self._position(nbytes)
        if position is not None:
            self._next = position + nbytes
            self._taken.append((position, stop))
        return position

    def _position(self, nbytes: int) -> int | None:
        if not self._taken:
            return self._first if nbytes <= self._end - self._first else None
        oldest = self._taken[0][0]
        if self._next > oldest:  # free are the bytes from `_next` to the end, and those before the oldest
            if nbytes <= self._end - self._next:
                return self._next
            return self._first if nbytes <= oldest - self._first else None
        return self._next if nbytes <= oldest - self._next else None


class SharedRing:
    """A ring of bytes in /dev/shm. Of no use in a process forked from the one that made it.

    Attributes:
        offer: what the service must know to open it.
    """

    def __init__(self, nbytes: int) -> None:
        """Make the file, with memory for all of it, and map it.

        Args:
            nbytes: for chunks.

        Raises:
            OSError: there is no /dev/shm, or not so much memory in it.
        """
        size = _FIRST_BYTE + nbytes
        self.offer = job_pb2.SharedMemory(
            name=f"koopcast-{secrets.token_hex(16)}", size_bytes=size, nonce=secrets.token_bytes(_NONCE_BYTES)
        )
        self._path = _DIRECTORY / self.offer.name
        self._process_id = os.getpid()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        _linked.add(self._path)
        try:
            os.posix_fallocate(descriptor, 0, size)  # too little memory shows now, not as a signal later
            mapped = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            self.unlink()
            raise
        finally:
            os.close(descriptor)
        mapped[:_NONCE_BYTES] = self.offer.nonce
        # The array keeps the mapping, and the mapping ends with it. NumPy copies without holding the interpreter.
        self._bytes: Bytes | None = np.frombuffer(mapped, np.uint8)

    @classmethod
    def for_job(cls, target: str, snapshot_bytes: int) -> SharedRing | None:
        """A ring for a job's snapshots; None where they are short, the service is elsewhere, or memory is not to be had."""
        if snapshot_bytes < LEAST_SNAPSHOT_BYTES or sys.platform != "linux" or not is_local(target):
            return None
        try:
            return cls(min(snapshot_bytes, _RING_BYTES))
        except OSError:
            return None

    @property
    def usable(self) -> bool:
        """Whether it is open, and this is the process that made it."""
        return self._bytes is not None and self._process_id == os.getpid()

    def places(self) -> Places:
        """All of it, free."""
        return Places(_FIRST_BYTE, self.offer.size_bytes)

    def write(self, position: int, data: memoryview) -> None:
        """Copies a chunk to where it is to lie; does nothing once the ring is closed."""
        ring = self._bytes
        if ring is not None:
            ring[position : position + len(data)] = np.frombuffer(data, np.uint8)

    def unlink(self) -> None:
        """Takes the file's name away: who has opened it keeps the memory, nobody else finds it."""
        if self._path in _linked and self._process_id == os.getpid():
            _linked.discard(self._path)
            with contextlib.suppress(OSError):
                self._path.unlink()

    def close(self) -> None:
        """Gives up the mapping; a chunk that is being written still ends."""
        self.unlink()
        self._bytes = None


def _unlink_left() -> None:
    """At the end of the interpreter: a thread may have been stopped while its job was being opened."""
    for path in list(_linked):
        with contextlib.suppress(OSError):
            path.unlink()


atexit.register(_unlink_left)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_linked.clear)
