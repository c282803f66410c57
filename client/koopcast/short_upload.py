"""A short snapshot up the wire, in one call.

A stream of three messages costs the sender two threads and, on a small snapshot, most of the time.
"""

from __future__ import annotations

import secrets
import time
from typing import Final

from koopcast.bulk import push_short_snapshot
from koopcast.channel import Connection
from koopcast.codec import encode_short_push
from koopcast.errors import KoopcastError
from koopcast.payload import Payload
from koopcast.upload import PushResult, is_break, result_of
from koopcast.v1 import snapshot_pb2
from koopcast.wire import checksum

__all__ = ["SHORT_SNAPSHOT_BYTES", "ShortUpload"]

SHORT_SNAPSHOT_BYTES: Final = 2 << 20
"""A snapshot up to this long goes in one message."""


class ShortUpload:
    """The upload of one short snapshot.

    Attributes:
        bytes_sent: data sent, over all connections. Unit: bytes.
        bytes_resent: of these, what had been sent before. Unit: bytes.
    """

    def __init__(self, header: snapshot_pb2.SnapshotHeader, payload: Payload) -> None:
        """Take the bytes, and a header that says all but what concerns the upload itself."""
        self._payload = payload
        self._header = snapshot_pb2.SnapshotHeader()
        self._header.CopyFrom(header)
        self._header.upload_id = secrets.token_bytes(16)
        self.bytes_sent = 0
        self.bytes_resent = 0

    def digest(self) -> bytes:
        """crc32c of the payload's bytes, big-endian, once it was sent."""
        return self._header.digest

    def run(self, connection: Connection, timeout_seconds: float) -> PushResult:
        """Sends the snapshot and waits for its result; where the connection breaks, once more, at once.

        Raises:
            KoopcastError: as the service answers; InternalError with the reason ``UNIMPLEMENTED`` where it takes no
                snapshots in one message.
        """
        deadline = time.monotonic() + timeout_seconds
        data = self._payload.read(0, self._payload.nbytes)
        self._header.digest = checksum(data).to_bytes(4, "big")
        try:
            return self._call(connection, data, timeout_seconds)
        except KoopcastError as error:
            left = deadline - time.monotonic()
            if left <= 0 or not is_break(error):
                raise
        self._header.resume = True  # it may have been stored: the service then says so
        self.bytes_resent += data.nbytes
        return self._call(connection, data, left)

    def _call(self, connection: Connection, data: memoryview, timeout_seconds: float) -> PushResult:
        message = encode_short_push(self._header.SerializeToString(), data)
        self.bytes_sent += data.nbytes
        answer = connection.call(push_short_snapshot, message, timeout_seconds)
        return result_of(answer.result)
