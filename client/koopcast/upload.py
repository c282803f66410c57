"""One snapshot up the wire, over as many connections as it takes.

::

    header ─> chunks, at most 64 MiB ahead of the service's acks ─> commit ─> result
                 └─ the connection breaks: header(resume) ─> ready(offset) ─> chunks from there ...

Nothing is sent twice but what was under way when a connection broke.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import grpc

from koopcast.bulk import push_snapshot
from koopcast.channel import Connection
from koopcast.errors import InternalError, KoopcastError
from koopcast.payload import Payload
from koopcast.shared_memory import LEAST_CHUNK_BYTES, SharedRing
from koopcast.upload_source import UploadSource
from koopcast.v1 import snapshot_pb2
from koopcast.wire import UNACKNOWLEDGED_BYTES

__all__ = ["PushResult", "Upload", "is_break", "result_of"]

Outcome = Literal["accepted", "duplicate", "superseded"]
_OUTCOMES: Final[dict[int, Outcome]] = {
    snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED: "accepted",
    snapshot_pb2.SNAPSHOT_OUTCOME_DUPLICATE: "duplicate",
    snapshot_pb2.SNAPSHOT_OUTCOME_SUPERSEDED: "superseded",
}
_FRUITLESS_ATTEMPTS: Final = 5
"""Attempts in a row without a byte landed after which an upload that had begun is given up."""
_ON_THE_WAY: Final = frozenset(
    {"CHECKSUM_MISMATCH", "CHUNK_MISPLACED", "BYTES_MISSING", "BAD_MESSAGE", "UPLOAD_STALLED"}
)
"""Reasons that the service gives where bytes were lost or changed on the way: those of the data, or those around it."""
_MEMORY_GONE: Final = frozenset({"NO_SHARED_MEMORY", "SHARED_MEMORY_GONE"})
"""Reasons that the service gives where it cannot read what was shared with it, say after a lease ran out."""
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class PushResult:
    """What became of a pushed snapshot.

    Attributes:
        outcome: ``"accepted"``: stored; ``"duplicate"``: the same bytes were stored already; ``"superseded"``: a
            newer segment has begun, it was not stored.
        snapshots_held: weight snapshots now in the window.
    """

    outcome: Outcome
    snapshots_held: int


def result_of(message: snapshot_pb2.SnapshotResult | snapshot_pb2.PushGramRowResponse) -> PushResult:
    """What the service says became of a snapshot.

    Raises:
        InternalError: an outcome that this client does not know.
    """
    outcome = _OUTCOMES.get(message.outcome)
    if outcome is None:
        raise InternalError(f"the service gave an unknown outcome, {message.outcome}", reason="NO_RESULT")
    return PushResult(outcome, message.snapshots_held)


class Upload:
    """The upload of one snapshot."""

    def __init__(
        self,
        header: snapshot_pb2.SnapshotHeader,
        payload: Payload,
        held_digest: bytes | None = None,
        ring: SharedRing | None = None,
    ) -> None:
        """Take the bytes, and a header that says all but what concerns the upload itself.

        Args:
            header: of the snapshot.
            payload: its bytes.
            held_digest: what to commit with where the service says that it holds the step: that of other bytes that
                stand for the same snapshot. None: the payload's.
            ring: memory that the service has open, for this upload alone while it runs; None: there is none.
        """
        self._source = UploadSource(payload, ring)
        self._held_digest = held_digest
        self._header = snapshot_pb2.SnapshotHeader()
        self._header.CopyFrom(header)
        self._header.upload_id = secrets.token_bytes(16)
        if payload.reference is None and held_digest is None and self._source.is_short:
            # The service may then judge the snapshot before it lands.
            self._header.digest = self._source.digest()

    @property
    def bytes_sent(self) -> int:
        """Data sent, over all connections. Unit: bytes."""
        return self._source.bytes_sent

    @property
    def bytes_resent(self) -> int:
        """Of these, what had been sent before. Unit: bytes."""
        return self._source.bytes_resent

    def digest(self) -> bytes:
        """crc32c of the payload's bytes, big-endian."""
        return self._source.digest()

    def run(self, connection: Connection, timeout_seconds: float) -> PushResult:
        """Sends the snapshot and waits for its result. The payload is not read any more when this returns.

        Raises:
            KoopcastError: as the service answers; or what the last attempt met, where too many broke off.
        """
        deadline = time.monotonic() + timeout_seconds
        landed, fruitless = -1, 0
        while True:
            stream = _Stream(self._source, self._header, self._held_digest)
            try:
                return stream.run(connection, deadline - time.monotonic())
            except KoopcastError as error:
                if error.reason in _MEMORY_GONE:
                    self._source.close_ring()
                fruitless = 0 if stream.landed > landed else fruitless + 1
                landed = max(landed, stream.landed)
                # Where nothing was answered yet, a standing connection may have broken just now: once more, at once.
                pause = (
                    min(_FIRST_PAUSE_SECONDS * 2**fruitless, _LONGEST_PAUSE_SECONDS) if landed >= 0 else 0.0
                )
                most = _FRUITLESS_ATTEMPTS if landed >= 0 else 1
                if fruitless > most or not is_break(error) or time.monotonic() + pause >= deadline:
                    raise
            self._header.resume = True
            time.sleep(pause)


class _Stream:
    """One connection's part of an upload. gRPC pulls `_messages` on a thread of its own; `run` reads the answers.

    Attributes:
        landed: bytes that the service has, as it said last; -1 before it said anything.
        over: whether the stream has ended: nothing more is sent.
    """

    def __init__(
        self, source: UploadSource, header: snapshot_pb2.SnapshotHeader, held_digest: bytes | None
    ) -> None:
        self._source = source
        self._header = header
        self._held_digest = held_digest
        self._places = source.places()
        self._changed = threading.Condition()
        self._held = False
        self._limit = UNACKNOWLEDGED_BYTES
        self._failure: Exception | None = None
        self.landed = -1
        self.over = False

    def run(self, connection: Connection, timeout_seconds: float) -> PushResult:
        """Sends what the service has not got yet and waits for the result."""
        try:
            with connection.errors():
                push = push_snapshot(connection.channel())
                answers = push(self._messages(), timeout=timeout_seconds, metadata=connection.metadata)
                try:
                    return self._read(answers)
                finally:
                    answers.cancel()  # interrupted, say from the keyboard: the service need not wait for the rest
        except KoopcastError:
            if self._failure is not None:
                raise self._failure from None
            raise
        finally:
            self._note(over=True)
            self._source.leave()

    def _read(self, answers: Iterator[snapshot_pb2.PushSnapshotResponse]) -> PushResult:
        result: PushResult | None = None
        try:
            for answer in answers:
                kind = answer.WhichOneof("message")
                if kind == "result":
                    result = result_of(answer.result)
                elif kind == "ready":
                    self._limit = answer.ready.unacknowledged_bytes_limit or UNACKNOWLEDGED_BYTES
                    self._note(landed=answer.ready.offset, held=answer.ready.held)
                elif kind == "ack":
                    self._note(landed=answer.ack.committed_offset)
        except grpc.RpcError:
            if result is None:  # a connection that breaks after the result has done its work
                raise
        if result is None:
            raise InternalError("the service ended the upload without a result", reason="NO_RESULT")
        return result

    def _messages(self) -> Iterator[snapshot_pb2.PushSnapshotRequest | bytes]:
        try:
            yield from self._sent()
        except Exception as error:  # noqa: BLE001  # gRPC would only log it: `run` raises it on the caller's thread
            self._failure = error

    def _sent(self) -> Iterator[snapshot_pb2.PushSnapshotRequest | bytes]:
        yield snapshot_pb2.PushSnapshotRequest(header=self._header)
        for start, stop in self._source.ranges(self._first_byte()):
            position = self._place(start, stop)
            if not self._may_send(stop):
                break
            message = self._source.message(self, start, stop, position)
            if message is None:
                break
            yield message
        if not self.over:
            held = self._held_digest if self._held else None
            digest = self._source.digest() if held is None else held
            yield snapshot_pb2.PushSnapshotRequest(commit=snapshot_pb2.SnapshotCommit(digest=digest))

    def _first_byte(self) -> int:
        """0, without waiting, unless the upload goes on where another connection broke, or may be needless."""
        if not self._header.resume and self._held_digest is None:
            return 0
        with self._changed:
            self._changed.wait_for(lambda: self.landed >= 0 or self.over)
            return max(0, self.landed)

    def _may_send(self, stop: int) -> bool:
        """Waits until a chunk is within the limit; False where none is wanted any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.over or self._held or stop - max(0, self.landed) <= self._limit
            )
            return not (self.over or self._held)

    def _place(self, start: int, stop: int) -> int | None:
        """Where a chunk is to lie in shared memory, once there is room; None where it goes with its message."""
        places = self._places
        if places is None or stop - start < LEAST_CHUNK_BYTES:
            return None
        with self._changed:
            position = None
            while position is None and not (self.over or self._held):
                position = places.take(stop - start, stop, self.landed)
                if position is None:
                    self._changed.wait()
            return position

    def _note(self, *, landed: int = -1, held: bool = False, over: bool = False) -> None:
        with self._changed:
            self.landed = max(self.landed, landed)
            self._held |= held
            self.over |= over
            self._changed.notify_all()


def is_break(error: KoopcastError) -> bool:
    """Whether the connection is at fault: the service says so, or it is gRPC's own status, which has no reason."""
    broken = error.reason == error.code.name in {"UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED"}
    return broken or error.reason in _ON_THE_WAY | _MEMORY_GONE
