"""One snapshot up the wire: header, chunks under a window of unacknowledged bytes, commit, result."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from koopcast.channel import Connection
from koopcast.errors import InternalError
from koopcast.v1 import snapshot_pb2, snapshot_pb2_grpc
from koopcast.wire import UNACKNOWLEDGED_BYTES, Bytes, Layout, checksum

__all__ = ["PushResult", "Upload"]

Outcome = Literal["accepted", "duplicate", "superseded"]
_OUTCOMES: Final[dict[int, Outcome]] = {
    snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED: "accepted",
    snapshot_pb2.SNAPSHOT_OUTCOME_DUPLICATE: "duplicate",
    snapshot_pb2.SNAPSHOT_OUTCOME_SUPERSEDED: "superseded",
}


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


class Upload:
    """The upload of one packed snapshot. gRPC pulls `_messages` on a thread of its own; `run` reads the answers."""

    def __init__(self, header: snapshot_pb2.SnapshotHeader, packed: Bytes, layout: Layout) -> None:
        """Take a header and the bytes it speaks of."""
        self._header = header
        self._packed = packed
        self._layout = layout
        self._changed = threading.Condition()
        self._ready = False
        self._over = False
        self._acknowledged = 0
        self._limit = UNACKNOWLEDGED_BYTES
        self.bytes_sent = 0

    def run(self, connection: Connection, timeout_seconds: float) -> PushResult:
        """Sends the snapshot and waits for its result.

        Raises:
            KoopcastError: as the service answers.
        """
        try:
            with connection.errors():
                stub = snapshot_pb2_grpc.SnapshotServiceStub(connection.channel())
                answers = stub.PushSnapshot(
                    self._messages(), timeout=timeout_seconds, metadata=connection.metadata
                )
                try:
                    return self._read(answers)
                finally:
                    answers.cancel()  # interrupted, say from the keyboard: the service need not wait for the rest
        finally:
            self._finish()

    def _read(self, answers: Iterator[snapshot_pb2.PushSnapshotResponse]) -> PushResult:
        result: PushResult | None = None
        for answer in answers:
            kind = answer.WhichOneof("message")
            if kind == "result":
                outcome = _OUTCOMES.get(answer.result.outcome)
                if outcome is not None:
                    result = PushResult(outcome, answer.result.snapshots_held)
            elif kind == "ready":
                self._begin(answer.ready.unacknowledged_bytes_limit)
            elif kind == "ack":
                self._acknowledge(answer.ack.committed_offset)
        if result is None:
            raise InternalError("the service ended the upload without a result", reason="NO_RESULT")
        return result

    def _messages(self) -> Iterator[snapshot_pb2.PushSnapshotRequest]:
        yield snapshot_pb2.PushSnapshotRequest(header=self._header)
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._over)
        for start, stop in self._layout.chunk_ranges():
            if not self._may_send(stop):
                return
            data = self._packed[start:stop].tobytes()
            self.bytes_sent += len(data)
            yield snapshot_pb2.PushSnapshotRequest(
                chunk=snapshot_pb2.SnapshotChunk(offset=start, data=data, crc32c=checksum(data))
            )
        if not self._over:
            yield snapshot_pb2.PushSnapshotRequest(commit=snapshot_pb2.SnapshotCommit())

    def _may_send(self, stop: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._over or stop - self._acknowledged <= self._limit)
            return not self._over

    def _begin(self, limit: int) -> None:
        with self._changed:
            self._ready = True
            self._limit = limit or UNACKNOWLEDGED_BYTES
            self._changed.notify_all()

    def _acknowledge(self, offset: int) -> None:
        with self._changed:
            self._acknowledged = max(self._acknowledged, offset)
            self._changed.notify_all()

    def _finish(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
