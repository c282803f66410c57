"""What is to become of a snapshot, by what its header says: the rules of segments, steps and references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from koopcast.encoding import EncodingName
from koopcast.errors import AlreadyExists, FailedPrecondition
from koopcast_server.job import Job
from koopcast_server.steps import Newest, check_follows, check_numbers

__all__ = ["SnapshotIdentity", "Verdict", "judge"]

Verdict = Literal["new", "held", "duplicate", "superseded"]


@dataclass(frozen=True)
class SnapshotIdentity:
    """What a header says of its snapshot.

    Attributes:
        segment: at least 1.
        step: trainer step.
        digest: crc32c of all bytes, big-endian; empty where the commit is to say it.
        averaging: mean of so many last steps.
        clock: the snapshot's clock; the step where none was given.
        total_bytes: of all chunks together, as encoded.
        encoding: of the chunks.
        reference: segment and step of the snapshot that differences are from; None for raw ones.
        upload_id: by which the upload can be resumed; empty: it cannot.
    """

    segment: int
    step: int
    digest: bytes
    averaging: int
    clock: float
    total_bytes: int
    encoding: EncodingName = "raw"
    reference: tuple[int, int] | None = None
    upload_id: bytes = b""


def judge(job: Job, snapshot: SnapshotIdentity) -> Verdict:
    """What is to become of a snapshot: the rules of segments and steps.

    A step that is held is a ``duplicate`` or an error where the digest is known, and ``held`` where it is not.

    Raises:
        InvalidArgument: segment 0, a step off the stride, another averaging length within a segment, a clock that
            does not rise, numbers beyond 2**53.
        FailedPrecondition: a step that does not rise, or differences from a snapshot that is not the newest one.
        AlreadyExists: the step is held with other bytes.
    """
    check_numbers(snapshot)
    if snapshot.segment < job.segment:
        return "superseded"
    if snapshot.segment > job.segment or not job.window.snapshots_held:
        _check_reference(job, snapshot)
        return "new"
    held = job.digest_of(snapshot.step)
    if held is not None:
        if not snapshot.digest:
            return "held"
        if held == snapshot.digest:
            return "duplicate"
        raise AlreadyExists(
            f"step {snapshot.step} of segment {snapshot.segment} is held with other bytes",
            reason="OTHER_BYTES",
            step=snapshot.step,
            segment=snapshot.segment,
        )
    newest = Newest(job.segment, job.step, job.averaging, job.clocks[-1])
    check_follows(newest, snapshot, job.spec.stride)
    _check_reference(job, snapshot)
    return "new"


def _check_reference(job: Job, snapshot: SnapshotIdentity) -> None:
    newest = (job.segment, job.step) if job.window.snapshots_held else None
    if snapshot.reference in (None, newest):
        return
    held = f"step {job.step} of segment {job.segment}" if newest else "none"
    raise FailedPrecondition(
        f"the differences are from step {snapshot.reference[1]} of segment {snapshot.reference[0]}, but the newest "
        f"snapshot held is {held}: push the snapshot raw",
        reason="REFERENCE_NOT_HELD",
        field="reference_step",
    )
