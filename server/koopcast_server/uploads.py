"""One snapshot on its way in: what a header may say, where chunks land, when a snapshot counts.

A snapshot touches nothing but the spare slot until its last byte was checked; only `commit` changes the window.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from koopcast.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, LeaseLost
from koopcast.wire import checksum
from koopcast_server.engine import Engine, finished
from koopcast_server.job import Job

__all__ = ["SnapshotIdentity", "Upload", "Verdict", "judge"]

Verdict = Literal["new", "duplicate", "superseded"]
_LAST_NUMBER: Final = 2**53
_LARGEST_CHUNK_BYTES: Final = 2 << 20


@dataclass(frozen=True)
class SnapshotIdentity:
    """What a header says of its snapshot.

    Attributes:
        segment: at least 1.
        step: trainer step.
        digest: crc32c of all bytes, big-endian.
        averaging: mean of so many last steps.
        clock: the snapshot's clock; the step where none was given.
    """

    segment: int
    step: int
    digest: bytes
    averaging: int
    clock: float


def judge(job: Job, snapshot: SnapshotIdentity) -> Verdict:
    """What is to become of a snapshot: the rules of segments and steps.

    Raises:
        InvalidArgument: segment 0, a step off the stride, another averaging length within a segment, a clock that
            does not rise, numbers beyond 2**53.
        FailedPrecondition: a step that does not rise.
        AlreadyExists: the step is held with other bytes.
    """
    for field, number, least in (("segment", snapshot.segment, 1), ("step", snapshot.step, 0)):
        if not least <= number <= _LAST_NUMBER:
            raise InvalidArgument(f"{field} must lie in {least}..2**53, not {number}", field=field)
    if snapshot.segment < job.segment:
        return "superseded"
    if snapshot.segment > job.segment or not job.window.snapshots_held:
        return "new"
    held = job.digest_of(snapshot.step)
    if held is not None:
        if held == snapshot.digest:
            return "duplicate"
        raise AlreadyExists(
            f"step {snapshot.step} of segment {snapshot.segment} is held with other bytes",
            reason="OTHER_BYTES",
            step=snapshot.step,
            segment=snapshot.segment,
        )
    expected = job.step + job.spec.stride
    if snapshot.step <= job.step:
        raise FailedPrecondition(
            f"step {snapshot.step} does not rise: the newest snapshot of segment {job.segment} is of step {job.step}; "
            "start a new segment to go back",
            reason="STEP_BACKWARDS",
            field="step",
            step=snapshot.step,
            newest=job.step,
        )
    if snapshot.step != expected:
        raise InvalidArgument(
            f"step {snapshot.step} breaks the stride: after step {job.step} comes {expected} (stride "
            f"{job.spec.stride}); start a new segment where snapshots were dropped",
            reason="NON_UNIFORM_STRIDE",
            field="step",
            step=snapshot.step,
            expected=expected,
            stride=job.spec.stride,
        )
    _refuse_other_time(job, snapshot)
    return "new"


def _refuse_other_time(job: Job, snapshot: SnapshotIdentity) -> None:
    """Within a segment, averages are of one length and the clock rises."""
    if snapshot.averaging != job.averaging:
        raise InvalidArgument(
            f"averaging is {snapshot.averaging}, but the segment's snapshots have {job.averaging}",
            field="averaging",
        )
    if snapshot.clock <= job.clocks[-1]:
        raise InvalidArgument(
            f"the clock must rise within a segment: {snapshot.clock} follows {job.clocks[-1]}; give every snapshot a "
            "clock, or none",
            field="clock",
            newest=job.clocks[-1],
        )


class Upload:
    """A snapshot under way. A newer upload of the same job, or the loss of the lease, ends it."""

    def __init__(self, job: Job, lease_id: str, snapshot: SnapshotIdentity, engine: Engine) -> None:
        """Take the job's spare slot."""
        self._job = job
        self._lease_id = lease_id
        self._snapshot = snapshot
        self._engine = engine
        self._crc32c = 0
        self.received_bytes = 0
        job.upload = self

    @property
    def segment(self) -> int:
        """Segment of the snapshot under way."""
        return self._snapshot.segment

    async def land(self, offset: int, data: bytes, crc32c: int) -> None:
        """Checks a chunk and writes it where it belongs.

        Raises:
            InvalidArgument: it is empty, out of order or too long, crosses element types, or is not finite.
            DataLoss: its checksum does not match.
            LeaseLost: the job was taken over, closed, or a newer upload began.
        """
        if offset != self.received_bytes or not data:
            raise InvalidArgument(
                f"chunks come in order and are not empty: expected byte {self.received_bytes}, got {len(data)} bytes "
                f"at {offset}",
                field="offset",
                expected=self.received_bytes,
            )
        if len(data) > _LARGEST_CHUNK_BYTES:
            raise InvalidArgument(
                f"a chunk has at most {_LARGEST_CHUNK_BYTES} bytes, not {len(data)}",
                field="data",
                limit=_LARGEST_CHUNK_BYTES,
            )
        if offset + len(data) > self._job.layout.nbytes:
            raise InvalidArgument(
                f"the snapshot has {self._job.layout.nbytes} bytes; this chunk ends at {offset + len(data)}",
                field="offset",
                limit=self._job.layout.nbytes,
            )
        async with self._job.device_lock:
            self._check_current()
            await self._engine.run(self._land, offset, data, crc32c)
        self.received_bytes += len(data)

    async def commit(self) -> Verdict:
        """Publishes the snapshot, unless the upload that this one replaced did so in the meantime.

        Raises:
            InvalidArgument: bytes are missing.
            DataLoss: the digest does not match.
            LeaseLost: as `land`.
            KoopcastError: as `judge`, for what came in between.
        """
        job, snapshot = self._job, self._snapshot
        if self.received_bytes != job.layout.nbytes:
            raise InvalidArgument(
                f"commit after {self.received_bytes} of {job.layout.nbytes} bytes", field="commit"
            )
        if self._crc32c.to_bytes(4, "big") != snapshot.digest:
            raise DataLoss(
                "the bytes do not match the header's digest; push the snapshot again",
                reason="DIGEST_MISMATCH",
            )
        async with job.device_lock:
            self._check_current()
            verdict = judge(job, snapshot)
            if verdict == "new":  # once begun it ends, cancelled or not: window and notes must agree
                await finished(asyncio.ensure_future(self._publish()))
            return verdict

    def end(self) -> None:
        """Gives the spare slot back."""
        if self._job.upload is self:
            self._job.upload = None

    async def _publish(self) -> None:
        starts_segment = self._snapshot.segment > self._job.segment
        await self._engine.run(self._job.window.publish, starts_segment=starts_segment)
        self._note(starts_segment=starts_segment)

    def _land(self, offset: int, data: bytes, crc32c: int) -> None:
        self._job.window.land(offset, data, crc32c)
        self._crc32c = checksum(data, self._crc32c)

    def _note(self, *, starts_segment: bool) -> None:
        job, snapshot = self._job, self._snapshot
        if starts_segment:
            job.digests.clear()
            job.clocks.clear()
        job.segment, job.step = snapshot.segment, snapshot.step
        job.averaging = snapshot.averaging
        job.digests.append((snapshot.step, snapshot.digest))
        job.clocks.append(snapshot.clock)
        job.version += 1
        job.counters.snapshots_accepted += 1
        job.counters.bytes_received += self.received_bytes
        job.counters.pushed = datetime.now(UTC)

    def _check_current(self) -> None:
        if self._job.closed:
            raise LeaseLost(f"job {self._job.name!r} was closed during the upload", reason="JOB_CLOSED")
        if self._job.upload is not self:
            raise LeaseLost(f"a newer upload of job {self._job.name!r} began", reason="UPLOAD_REPLACED")
        self._job.lease.renew(self._job.name, self._lease_id)
