"""The gRPC service that takes snapshots: decode, let them land, encode. Errors become status in the interceptor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from koopcast.codec import AnyChunk, ShortPush
from koopcast.errors import DeadlineExceeded, InvalidArgument, KoopcastError, LeaseLost
from koopcast.v1 import snapshot_pb2, snapshot_pb2_grpc
from koopcast.wire import UNACKNOWLEDGED_BYTES
from koopcast_server.grpc_decoding import identity_from_header
from koopcast_server.interceptor import caller
from koopcast_server.job import Job
from koopcast_server.jobs import Jobs
from koopcast_server.judging import SnapshotIdentity, Verdict, judge
from koopcast_server.metrics import Metrics
from koopcast_server.row_intake import take_row
from koopcast_server.short_uploads import land_whole
from koopcast_server.uploads import Upload, UploadStream, resumed

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["SnapshotService"]

_Message = AnyChunk | snapshot_pb2.PushSnapshotRequest
_Response = snapshot_pb2.PushSnapshotResponse

_OUTCOMES: Final = {
    "accepted": snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED,
    "duplicate": snapshot_pb2.SNAPSHOT_OUTCOME_DUPLICATE,
    "superseded": snapshot_pb2.SNAPSHOT_OUTCOME_SUPERSEDED,
}
_LARGEST_SHORT_BYTES: Final = 2 << 20
_BROKEN_ON_THE_WAY: Final = frozenset(
    {
        "CHECKSUM_MISMATCH",
        "CHUNK_MISPLACED",
        "BYTES_MISSING",
        "BAD_MESSAGE",
        "UPLOAD_STALLED",
        "NO_COMMIT",
        "NO_SHARED_MEMORY",
        "SHARED_MEMORY_GONE",
    }
)
"""Reasons to end a connection's part of an upload that say nothing against the snapshot. A call that was cancelled may
be seen to end without a commit first."""


class SnapshotService(snapshot_pb2_grpc.SnapshotServiceServicer):
    """Takes snapshots."""

    def __init__(self, jobs: Jobs, metrics: Metrics, stall_seconds: float) -> None:
        """Serve these jobs; give up connections that stay silent for `stall_seconds`."""
        self._jobs = jobs
        self._metrics = metrics
        self._stall_seconds = stall_seconds

    async def PushSnapshot(  # noqa: N802
        self, request_iterator: AsyncIterator[_Message], context: Context
    ) -> AsyncIterator[_Response]:
        """One snapshot: header, chunks, commit."""
        inbox = _Inbox(request_iterator, self._stall_seconds)
        first = await inbox.next()
        if first is None or isinstance(first, AnyChunk) or first.WhichOneof("message") != "header":
            raise InvalidArgument("the first message of an upload is its header", field="header")
        header = first.header
        job = self._job_of(header)
        snapshot = identity_from_header(header, job)
        if _is_stored(job, header, snapshot):
            yield self._told(job, "accepted")
            return
        verdict = judge(job, snapshot)
        if verdict == "held":
            yield _ready(0, held=True)
            verdict = await self._judge_held(inbox, job, snapshot)
        if verdict != "new":
            yield self._told(job, verdict)
            return
        upload = resumed(job, header.lease_id, snapshot) if header.resume else None
        upload = upload or Upload(job, header.lease_id, snapshot, self._jobs.engine)
        async with aclosing(self._received(inbox, UploadStream(upload))) as responses:
            async for response in responses:
                yield response

    async def PushShortSnapshot(  # noqa: N802
        self, request: ShortPush | snapshot_pb2.PushShortSnapshotRequest, context: Context
    ) -> snapshot_pb2.PushShortSnapshotResponse:
        """A short snapshot, in one message."""
        header, data = request.header, memoryview(request.data)
        job = self._job_of(header)
        snapshot = identity_from_header(header, job, comes_whole=True)
        _refuse_other_length(snapshot, data)
        verdict: Verdict = "new"
        if not _is_stored(job, header, snapshot):
            verdict = judge(job, snapshot)
            if verdict == "new":
                verdict = await land_whole(Upload(job, header.lease_id, snapshot, self._jobs.engine), data)
                self._metrics.received_bytes.inc(len(data))
        result = self._result(job, "accepted" if verdict == "new" else verdict)
        return snapshot_pb2.PushShortSnapshotResponse(result=result)

    async def PushGramRow(  # noqa: N802
        self, request: snapshot_pb2.PushGramRowRequest, context: Context
    ) -> snapshot_pb2.PushGramRowResponse:
        """What the operators need to know of a snapshot that stays with its trainer."""
        job = self._jobs.written(request.job, caller(), request.lease_id)
        outcome = await take_row(job, request, self._jobs.engine)
        if outcome == "accepted":
            self._metrics.received_bytes.inc(request.ByteSize())
        self._metrics.snapshots.labels(outcome).inc()
        return snapshot_pb2.PushGramRowResponse(
            outcome=_OUTCOMES[outcome], snapshots_held=job.window.snapshots_held
        )

    async def _received(self, inbox: _Inbox, stream: UploadStream) -> AsyncGenerator[_Response, None]:
        """Lands chunks until the commit; answers with where to begin, with acks, and with the result."""
        resumable, message = False, None
        try:
            acknowledged = await stream.begin()
            yield _ready(acknowledged)
            while True:
                if stream.landing is not None and not await inbox.hears_before(stream.landing):
                    await stream.landed()
                elif isinstance(message := await inbox.next(), AnyChunk):
                    await stream.take(message)
                else:
                    break
                if stream.committed_offset - acknowledged >= stream.ack_bytes:
                    acknowledged = stream.committed_offset
                    yield _Response(ack=snapshot_pb2.SnapshotAck(committed_offset=acknowledged))
            verdict = await stream.commit(_digest_of(message))
        except BaseException as error:
            resumable = not isinstance(error, KoopcastError) or error.reason in _BROKEN_ON_THE_WAY
            raise
        finally:
            await inbox.close()
            await stream.end(resumable=resumable)
            self._metrics.received_bytes.inc(stream.landed_bytes)
        yield self._told(stream.job, "accepted" if verdict == "new" else verdict)

    async def _judge_held(self, inbox: _Inbox, job: Job, snapshot: SnapshotIdentity) -> Verdict:
        """Lets the bytes of a step that is held pass, and judges it by the commit's digest.

        Raises:
            AlreadyExists: other bytes are held.
            InvalidArgument: more bytes than the snapshot has, or no digest.
            LeaseLost: the step is not held any more.
        """
        passed = 0
        while isinstance(message := await inbox.next(), AnyChunk):
            passed += message.nbytes
            if passed > snapshot.total_bytes:
                raise InvalidArgument(
                    f"the snapshot has {snapshot.total_bytes} bytes; more than these came",
                    field="offset",
                    limit=snapshot.total_bytes,
                )
        digest = _digest_of(message)
        if not digest:
            raise InvalidArgument("neither header nor commit gave a digest", field="digest")
        verdict = judge(job, replace(snapshot, digest=digest))
        if verdict == "new":
            raise LeaseLost(
                f"step {snapshot.step} was held when this upload began, and is not any more",
                reason="UPLOAD_REPLACED",
            )
        return verdict

    def _job_of(self, header: snapshot_pb2.SnapshotHeader) -> Job:
        """The job that a header names, for its writer; its window is held here."""
        job = self._jobs.written(header.job, caller(), header.lease_id)
        job.ring  # noqa: B018  # refuses jobs whose window the trainer holds
        return job

    def _told(self, job: Job, outcome: str) -> _Response:
        return _Response(result=self._result(job, outcome))

    def _result(self, job: Job, outcome: str) -> snapshot_pb2.SnapshotResult:
        self._metrics.snapshots.labels(outcome).inc()
        return snapshot_pb2.SnapshotResult(
            outcome=_OUTCOMES[outcome], snapshots_held=job.window.snapshots_held
        )


class _Inbox:
    """The messages of one stream, none of which may be long in coming."""

    def __init__(self, messages: AsyncIterator[_Message], stall_seconds: float) -> None:
        self._messages = aiter(messages)
        self._stall_seconds = stall_seconds
        self._reading: asyncio.Task[_Message | None] | None = None

    async def next(self) -> _Message | None:
        """The next message; None at the end.

        Raises:
            DeadlineExceeded: none came in time.
        """
        if self._reading is None:
            return await self._read()
        try:
            return await self._reading
        finally:
            self._reading = None

    async def hears_before(self, landing: asyncio.Task[None]) -> bool:
        """Waits for the next message or for the end of `landing`; whether the message is there."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        await asyncio.wait((self._reading, landing), return_when=asyncio.FIRST_COMPLETED)
        return self._reading.done()

    async def close(self) -> None:
        """Reads no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
            if not self._reading.cancelled():
                self._reading.exception()  # looked at: the stream has ended for another reason

    async def _read(self) -> _Message | None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await anext(self._messages, None)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the upload was silent for {self._stall_seconds:.0f} s", reason="UPLOAD_STALLED"
            ) from None


def _is_stored(job: Job, header: snapshot_pb2.SnapshotHeader, snapshot: SnapshotIdentity) -> bool:
    """Whether an upload that goes on has ended already: its result was lost with its connection."""
    return header.resume and job.stored_upload == (header.lease_id, snapshot)


def _refuse_other_length(snapshot: SnapshotIdentity, data: memoryview) -> None:
    """Raises InvalidArgument where the bytes are not those of a short snapshot that the header speaks of."""
    if len(data) > _LARGEST_SHORT_BYTES:
        raise InvalidArgument(
            f"a snapshot in one message has at most {_LARGEST_SHORT_BYTES} bytes, not {len(data)}: push it as a stream",
            field="data",
            limit=_LARGEST_SHORT_BYTES,
        )
    if len(data) != snapshot.total_bytes:
        raise InvalidArgument(
            f"the snapshot has {snapshot.total_bytes} bytes; {len(data)} came", field="data"
        )


def _ready(offset: int, *, held: bool = False) -> _Response:
    ready = snapshot_pb2.SnapshotReady(
        offset=offset, unacknowledged_bytes_limit=UNACKNOWLEDGED_BYTES, held=held
    )
    return _Response(ready=ready)


def _digest_of(message: snapshot_pb2.PushSnapshotRequest | None) -> bytes:
    """The digest in a commit, which is what must follow the chunks; empty where it has none."""
    if message is None:
        raise InvalidArgument("the upload ended without a commit", field="commit", reason="NO_COMMIT")
    kind = message.WhichOneof("message")
    if kind != "commit":
        raise InvalidArgument(
            f"this service takes no {kind or 'empty'} message here", field="message", reason="BAD_MESSAGE"
        )
    if len(message.commit.digest) not in (0, 4):
        raise InvalidArgument("digest is the 4 bytes of a crc32c", field="digest")
    return message.commit.digest
