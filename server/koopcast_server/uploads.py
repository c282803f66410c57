"""One snapshot on its way in: where chunks land, and when it counts.

::

    UploadStream ── land ──> Upload ── commit ──> window
      one connection           the spare slot: how far it is filled

A snapshot touches nothing but the spare slot until its last byte was checked; only `commit` changes the window. When
its connection breaks, an upload that has an id stays in the slot, and another connection may go on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from koopcast.codec import AnyChunk, SharedChunk
from koopcast.errors import DataLoss, InvalidArgument, KoopcastError, LeaseLost
from koopcast.wire import ACK_BYTES, combine
from koopcast_server.engine import Engine
from koopcast_server.job import Job
from koopcast_server.judging import SnapshotIdentity, Verdict, judge
from koopcast_server.shared_memory import reader_of

__all__ = ["Upload", "UploadStream", "resumed"]

_LARGEST_CHUNK_BYTES: Final = 2 << 20
_LARGEST_SHARED_BYTES: Final = 16 << 20
_TOGETHER_BYTES: Final = 4 << 20
"""Chunks land together from this on: a hop to a worker costs a tenth of what landing 2 MiB does."""
_WAITING_BYTES: Final = 8 << 20
"""Chunks that may wait while others land; no more are read then."""
_SHORT_BYTES: Final = 64 << 10
"""A chunk up to this lands at once: that takes less than the hop to a worker."""


def resumed(job: Job, lease_id: str, snapshot: SnapshotIdentity) -> Upload | None:
    """The upload that broke off and is to go on; None where the job has none of this id.

    Raises:
        InvalidArgument: the id is that of another snapshot.
    """
    upload = job.upload
    if upload is None or upload.lease_id != lease_id or upload.snapshot.upload_id != snapshot.upload_id:
        return None
    if upload.snapshot != snapshot:
        raise InvalidArgument(
            f"upload_id {snapshot.upload_id.hex()} is that of step {upload.snapshot.step} of segment {upload.segment}, "
            "and its header said other things: resume with the same header, or choose another id",
            field="upload_id",
            reason="OTHER_UPLOAD",
        )
    return upload


class Upload:
    """A snapshot under way. A newer upload of the same job, or the loss of the lease, ends it.

    Attributes:
        job: whose spare slot it fills.
        lease_id: the writer's.
        snapshot: what it is.
        stream: the connection that fills it now, or did last.
        received_bytes: how far the slot is filled.
        crc32c: of these bytes.
        code: what they are decoded with; None: they are raw.
        memory: where chunks may lie that are not sent; None: nowhere.
    """

    def __init__(self, job: Job, lease_id: str, snapshot: SnapshotIdentity, engine: Engine) -> None:
        """Take the job's spare slot."""
        self.job = job
        self.lease_id = lease_id
        self.snapshot = snapshot
        self.stream: UploadStream | None = None
        self.received_bytes = 0
        self.crc32c = 0
        self.code = job.code if snapshot.encoding != "raw" else None
        self.memory = job.lease.memory
        self.engine = engine
        job.upload = self

    @property
    def segment(self) -> int:
        """Segment of the snapshot under way."""
        return self.snapshot.segment

    def check_current(self, stream: UploadStream) -> None:
        """Raises LeaseLost where the job was taken over or closed, or another upload or connection took the slot."""
        if self.job.closed:
            raise LeaseLost(f"job {self.job.name!r} was closed during the upload", reason="JOB_CLOSED")
        if self.job.upload is not self or self.stream is not stream:
            raise LeaseLost(f"a newer upload of job {self.job.name!r} began", reason="UPLOAD_REPLACED")
        self.job.lease.renew(self.job.name, self.lease_id)

    def write(self, chunks: list[AnyChunk]) -> None:
        """Puts chunks into the slot; blocks. Those before one that is refused count."""
        for chunk in chunks:
            if isinstance(chunk, SharedChunk):
                self.job.ring.land_from(
                    reader_of(self.memory, chunk.position, chunk.nbytes),
                    chunk.offset,
                    chunk.nbytes,
                    chunk.crc32c,
                    self.code,
                )
            else:
                self.job.ring.land(chunk.offset, chunk.data, chunk.crc32c, self.code)
            self.crc32c = combine(self.crc32c, chunk.crc32c, chunk.nbytes)
            self.received_bytes += chunk.nbytes

    def lands_at_once(self, byte_count: int) -> bool:
        """Whether so many bytes land in less time than a hop to a worker takes, and nobody holds the window."""
        return (
            byte_count <= _SHORT_BYTES and not self.job.device_lock.locked() and self.job.ring.takes_at_once
        )

    def give_up(self) -> None:
        """Leaves the slot to others."""
        if self.job.upload is self:
            self.job.upload = None


class UploadStream:
    """One connection's part of an upload: chunks land while the next ones are read.

    Attributes:
        landing: the chunks that are on their way into the slot, to be waited for by `landed`.
        ack_bytes: an ack is due after so many: in shared memory the sender has less room than on its way here.
    """

    def __init__(self, upload: Upload) -> None:
        """Take the upload from the connection that had it."""
        self._takes_over = upload.stream is not None
        upload.stream = self
        self._upload = upload
        self._next_byte = 0
        self._first_byte = 0
        self._waiting: list[AnyChunk] = []
        self._waiting_bytes = 0
        self.landing: asyncio.Task[None] | None = None
        self.ack_bytes = ACK_BYTES

    async def begin(self) -> int:
        """Where the upload is to go on, once nothing of an earlier connection lands any more."""
        if self._takes_over:
            async with self._upload.job.device_lock:
                self._upload.check_current(self)
        self._first_byte = self._next_byte = self._upload.received_bytes
        return self._next_byte

    @property
    def job(self) -> Job:
        """Whose snapshot it is."""
        return self._upload.job

    @property
    def landed_bytes(self) -> int:
        """Bytes that landed over this connection."""
        return self._upload.received_bytes - self._first_byte

    @property
    def committed_offset(self) -> int:
        """Everything below it has landed."""
        return self._upload.received_bytes

    async def take(self, chunk: AnyChunk) -> None:
        """Checks a chunk and lets it land; waits where too many do.

        Raises, for this chunk or an earlier one:
            InvalidArgument: it is empty, out of order or too long, crosses element types, or is not finite.
            DataLoss: its checksum does not match.
            LeaseLost: the job was taken over, closed, or a newer upload began.
        """
        self._refuse_misplaced(chunk)
        if isinstance(chunk, SharedChunk) and self._upload.memory is not None:
            self.ack_bytes = min(ACK_BYTES, self._upload.memory.nbytes // 5)
        self._waiting.append(chunk)
        self._waiting_bytes += chunk.nbytes
        self._next_byte += chunk.nbytes
        if self._lands_at_once():
            self._upload.check_current(self)
            self._upload.write(self._take_waiting())
            return
        if self.landing is not None and (self.landing.done() or self._waiting_bytes > _WAITING_BYTES):
            await self.landed()
        self._land_enough()

    async def landed(self) -> None:
        """Waits for the chunks that are landing; raises what they met, as `take`."""
        if self.landing is not None:
            try:
                await self.landing
            except BaseException:
                self._take_waiting()  # they would leave a gap
                raise
            finally:
                self.landing = None
        self._land_enough()

    async def commit(self, digest: bytes) -> Verdict:
        """Publishes the snapshot, unless the upload that this one replaced did so in the meantime.

        Args:
            digest: what the commit says; empty where the header said it.

        Raises:
            InvalidArgument: bytes are missing, or nobody gave a digest.
            DataLoss: the digest does not match.
            LeaseLost, DataLoss: as `take`.
            KoopcastError: as `judge`, for what came in between.
        """
        await self._all_landed()
        upload = self._upload
        snapshot, job = upload.snapshot, upload.job
        if upload.received_bytes != snapshot.total_bytes:
            raise InvalidArgument(
                f"commit after {upload.received_bytes} of {snapshot.total_bytes} bytes",
                field="commit",
                reason="BYTES_MISSING",
            )
        found = upload.crc32c.to_bytes(4, "big")
        if not (snapshot.digest or digest):
            raise InvalidArgument("neither header nor commit gave a digest", field="digest")
        if {snapshot.digest or found, digest or found} != {found}:
            upload.give_up()
            raise DataLoss(
                "the bytes do not match the upload's digest; push the snapshot again",
                reason="DIGEST_MISMATCH",
            )
        async with job.device_lock:
            upload.check_current(self)
            verdict = judge(job, replace(snapshot, digest=found))
            if verdict == "new":
                self._publish(replace(snapshot, digest=found))
        upload.give_up()
        return verdict

    async def end(self, *, resumable: bool) -> None:
        """Lets go of the upload, when nothing lands any more; gives it up unless it may be resumed.

        What may be resumed keeps all that arrived.
        """
        resumable = resumable and bool(self._upload.snapshot.upload_id)
        if self.landing is not None and not resumable:
            self.landing.cancel()
        # What ended the stream is what counts, not what its last chunks meet.
        with contextlib.suppress(KoopcastError, asyncio.CancelledError):
            if resumable:
                await self._all_landed()
            else:
                await self.landed()
        if self._upload.stream is self and not resumable:
            self._upload.give_up()

    def _refuse_misplaced(self, chunk: AnyChunk) -> None:
        end, total = chunk.offset + chunk.nbytes, self._upload.snapshot.total_bytes
        if chunk.offset != self._next_byte or not chunk.nbytes:
            raise InvalidArgument(
                f"chunks come in order and are not empty: expected byte {self._next_byte}, got {chunk.nbytes} bytes "
                f"at {chunk.offset}",
                field="offset",
                reason="CHUNK_MISPLACED",
                expected=self._next_byte,
            )
        most = _LARGEST_SHARED_BYTES if isinstance(chunk, SharedChunk) else _LARGEST_CHUNK_BYTES
        if chunk.nbytes > most:
            raise InvalidArgument(
                f"a chunk has at most {most} bytes, not {chunk.nbytes}",
                field="data",
                reason="CHUNK_MISPLACED",
                limit=most,
            )
        if end > total:
            raise InvalidArgument(
                f"the snapshot has {total} bytes; this chunk ends at {end}",
                field="offset",
                reason="CHUNK_MISPLACED",
                limit=total,
            )

    def _lands_at_once(self) -> bool:
        return (
            self.landing is None
            and self._upload.lands_at_once(self._waiting_bytes)
            and not any(isinstance(chunk, SharedChunk) for chunk in self._waiting)  # to read may take longer
        )

    def _take_waiting(self) -> list[AnyChunk]:
        chunks, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return chunks

    async def _land(self, chunks: list[AnyChunk]) -> None:
        async with self._upload.job.device_lock:
            self._upload.check_current(self)
            await self._upload.engine.run(self._upload.write, chunks)

    def _land_enough(self) -> None:
        if self.landing is None and self._waiting_bytes >= min(_TOGETHER_BYTES, self.ack_bytes):
            self.landing = asyncio.create_task(self._land(self._take_waiting()))

    async def _all_landed(self) -> None:
        while self.landing is not None:
            await self.landed()
        if self._waiting:
            await self._land(self._take_waiting())

    def _publish(self, snapshot: SnapshotIdentity) -> None:
        """Makes the snapshot count. Window and notes change together: nothing is awaited in between."""
        job = self._upload.job
        starts_segment = snapshot.segment > job.segment
        job.ring.publish(starts_segment=starts_segment)
        if starts_segment:
            job.digests.clear()
            job.clocks.clear()
        job.segment, job.step = snapshot.segment, snapshot.step
        job.averaging = snapshot.averaging
        job.digests.append((snapshot.step, snapshot.digest))
        job.clocks.append(snapshot.clock)
        job.stored_upload = self._upload.lease_id, self._upload.snapshot
        job.version += 1
        job.counters.snapshots_accepted += 1
        job.counters.bytes_received += snapshot.total_bytes
        job.counters.pushed = datetime.now(UTC)
        job.settle_soon(self._upload.engine)
