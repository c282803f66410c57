"""Memory that clients on this host share with the service: opened, checked, and read, but never mapped.

A client may change or truncate its file at any time. What it holds is therefore copied first and looked at afterwards,
and it is read with calls that end early where a mapping would end the process. The memory is the client's; the service
keeps a file open for as long as the lease under which it was offered.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from koopcast.errors import DataLoss, InvalidArgument

__all__ = ["MOST_OPEN", "Offer", "OfferedMemory", "reader_of"]

MOST_OPEN: Final = 256
"""Files open at a time; further clients send their bytes over their connections."""
_DIRECTORY: Final = Path("/dev/shm")  # noqa: S108  # file names there cannot be guessed
_NAME: Final = re.compile(r"koopcast-[0-9a-f]{32}")
_NONCE_BYTES: Final = 32
_LARGEST_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client says of its memory.

    Attributes:
        name: of a file in /dev/shm.
        nbytes: its size.
        nonce: its first bytes, which only somebody who sees the same file can know.
    """

    name: str
    nbytes: int
    nonce: bytes


class OfferedMemory:
    """One client's memory, open for reading.

    Attributes:
        nbytes: its size when it was opened.
    """

    def __init__(self, descriptor: int, nbytes: int) -> None:
        """Own an open file; use `open_offered`."""
        self.nbytes = nbytes
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._readers = 0
        self._closed = False

    @classmethod
    def open_offered(cls, offer: Offer) -> OfferedMemory | None:
        """Opens what a client offers; None where that is not a file which both see, of the size and form agreed on."""
        if not _NAME.fullmatch(offer.name) or not _NONCE_BYTES < offer.nbytes <= _LARGEST_BYTES:
            return None
        if len(offer.nonce) != _NONCE_BYTES:
            return None
        # A pipe of that name would keep a caller who waits for its other end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(_DIRECTORY / offer.name, flags)
        except OSError:
            return None
        try:
            found = os.fstat(descriptor)
            right = stat.S_ISREG(found.st_mode) and found.st_size == offer.nbytes
            if right and hmac.compare_digest(os.pread(descriptor, _NONCE_BYTES, 0), offer.nonce):
                return cls(descriptor, found.st_size)
        except OSError:
            pass
        os.close(descriptor)
        return None

    def read_into(self, position: int, target: memoryview) -> None:
        """Fills `target` with the bytes from `position` on; blocks.

        Raises:
            DataLoss: they are not there: the file was truncated, or is closed.
        """
        with self._lock:
            if self._closed:
                raise _gone("is not open any more")
            self._readers += 1
        try:
            while target:
                count = os.preadv(self._descriptor, [target], position)
                if not count:
                    raise _gone(f"ends at byte {position}")
                target, position = target[count:], position + count
        except OSError as error:
            raise _gone(f"cannot be read ({error.strerror})") from error
        finally:
            with self._lock:
                self._readers -= 1
                self._close_unread()

    def close(self) -> None:
        """Closes the file, when nobody reads it any more; does nothing the second time. Does not wait."""
        with self._lock:
            self._closed = True
            self._close_unread()

    def _close_unread(self) -> None:
        """A descriptor must not be closed under a reader: its number may be another file's at once."""
        if self._closed and not self._readers and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def reader_of(memory: OfferedMemory | None, position: int, nbytes: int) -> Callable[[memoryview], None]:
    """What fills a buffer of `nbytes` with those from `position` on, as `OfferedMemory.read_into`.

    Raises:
        InvalidArgument: there is no memory, or not so much.
    """
    if memory is None:
        raise InvalidArgument(
            "the lease of this upload shares no memory with the service: send the bytes in `data`",
            field="shared_bytes",
            reason="NO_SHARED_MEMORY",
        )
    if position + nbytes > memory.nbytes:
        raise InvalidArgument(
            f"the shared memory has {memory.nbytes} bytes; this chunk ends at {position + nbytes}",
            field="shared_position",
            limit=memory.nbytes,
        )
    return partial(memory.read_into, position)


def _gone(what: str) -> DataLoss:
    return DataLoss(
        f"the shared memory that this lease's writer offered {what}: send the bytes over the connection",
        reason="SHARED_MEMORY_GONE",
    )
