"""All jobs: who may open and use them, what memory they take together, and when they end.

Everything here runs on the event loop, so that state changes need no locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from koopcast.errors import AlreadyExists, NotFound, PermissionDenied, ResourceExhausted, Unavailable
from koopcast.names import check_job_name
from koopcast.wire import Layout
from koopcast_server.engine import Engine
from koopcast_server.gram_rows import GramRows
from koopcast_server.job import Job, JobSpec, difference
from koopcast_server.leases import WriterLease
from koopcast_server.shared_memory import MOST_OPEN, Offer, OfferedMemory
from koopcast_server.window_shape import JobShape

__all__ = ["Jobs", "OpenMode", "Opened"]

_MEBIBYTE: Final = 2**20


@dataclass(frozen=True)
class OpenMode:
    """How a name that is taken is dealt with: ``resume``, ``replace`` or ``error``; and whether a live lease counts."""

    if_exists: str
    take_over: bool


@dataclass(frozen=True)
class Opened:
    """A job and the lease on it.

    Attributes:
        job: the job.
        lease_id: the lease.
        resumed: whether the job was there before.
        segment: its newest segment when the lease was granted: all who share the lease begin above it.
    """

    job: Job
    lease_id: str
    resumed: bool
    segment: int


class Jobs:
    """All jobs of the service, within one memory limit.

    Attributes:
        memory_limit_bytes: device memory for all jobs together.
        draining: set when the service is about to stop: no new work is taken.
    """

    def __init__(
        self, engine: Engine, memory_limit_bytes: int, lease_seconds: float, job_ttl_seconds: float
    ) -> None:
        """Begin with no jobs."""
        self.engine = engine
        self.memory_limit_bytes = memory_limit_bytes
        self.lease_seconds = lease_seconds
        self.job_ttl_seconds = job_ttl_seconds
        self.draining = False
        self._jobs: dict[str, Job] = {}
        self._reserved_bytes = 0

    @property
    def memory_bytes(self) -> int:
        """Device memory of all jobs."""
        return self._reserved_bytes

    def __len__(self) -> int:
        """Number of jobs."""
        return len(self._jobs)

    def all(self) -> Iterator[Job]:
        """All jobs, by name."""
        return iter([self._jobs[name] for name in sorted(self._jobs)])

    def get(self, name: str, owner: str) -> Job:
        """The job of this name.

        Raises:
            NotFound: no such job.
            PermissionDenied: it belongs to another identity.
        """
        job = self._jobs.get(check_job_name(name))
        if job is None:
            raise NotFound(
                f"there is no job {name!r}: it was never opened, was closed, or expired; open it again",
                reason="JOB_NOT_FOUND",
                job=name,
            )
        if job.owner != owner:
            raise PermissionDenied(
                f"job {name!r} belongs to another identity", reason="NOT_THE_OWNER", job=name
            )
        return job

    def written(self, name: str, owner: str, lease_id: str) -> Job:
        """The job of this name, for its writer; renews the lease.

        Raises:
            NotFound, PermissionDenied: as `get`.
            LeaseLost: another writer holds it.
            Unavailable: the service is draining.
        """
        self.refuse_when_draining()
        job = self.get(name, owner)
        job.lease.renew(name, lease_id)
        return job

    def refuse_when_draining(self) -> None:
        """Raises Unavailable once the service is about to stop."""
        if self.draining:
            raise Unavailable(
                "the service is draining: it is about to stop and takes no new work", reason="DRAINING"
            )

    async def open(self, name: str, owner: str, spec: JobSpec, mode: OpenMode, holder: str) -> Opened:
        """Makes a job, resumes one, or replaces one.

        Raises:
            AlreadyExists: another spec under this name, a live lease, or ``error`` was asked for.
            PermissionDenied: the name belongs to another identity.
            ResourceExhausted: it does not fit the memory limit.
            InvalidArgument: its blocks are too large, too many, or none.
            Unavailable: the service is draining.
        """
        self.refuse_when_draining()
        check_job_name(name)
        layout, shape = await self.engine.run(_planned, spec)
        existing = self._jobs.get(name)
        if existing is not None:
            self._refuse_taken(existing, owner, spec, mode)
            if mode.if_exists == "resume":
                return self._granted(existing, holder, resumed=True)
        needed = shape.bytes_needed
        self._refuse_oversized(name, needed, existing.memory_bytes if existing is not None else 0)
        if existing is not None:
            await self._replace(existing, owner, spec, mode)
            self._refuse_oversized(name, needed, 0)  # others may have opened jobs while this one waited
        self._reserved_bytes += needed
        lease = WriterLease(self.lease_seconds)
        try:
            window = await self.engine.run(self.engine.new_window, shape)
            if name in self._jobs:  # opened by somebody else while the window was being made
                raise AlreadyExists(
                    f"job {name!r} was opened by another writer just now", reason="LIVE_LEASE", job=name
                )
        except BaseException:
            self._reserved_bytes -= needed
            raise
        remembered = spec.operator.snapshots_wanted
        job = Job(
            name,
            owner,
            spec,
            layout,
            window,
            needed,
            lease,
            digests=deque(maxlen=remembered),
            clocks=deque(maxlen=remembered),
            rows=_rows_of(spec),
        )
        self._jobs[name] = job
        return self._granted(job, holder, resumed=False)

    def join(self, name: str, owner: str, spec: JobSpec, lease_id: str) -> Opened:
        """Another shard of a job that is open, under the lease that its first one got.

        Raises:
            NotFound, PermissionDenied, Unavailable: as `written`.
            LeaseLost: that is not its lease (any more).
            AlreadyExists: the job is of another spec.
        """
        job = self.written(name, owner, lease_id)
        if not job.spec.same_as(spec):
            raise AlreadyExists(
                f"job {name!r} was opened with another spec ({difference(job.spec, spec)}); all its shards must give the "
                "same",
                reason="OTHER_SPEC",
                job=name,
            )
        return Opened(job, lease_id, resumed=job.lease.resumed, segment=job.granted_segment)

    def _granted(self, job: Job, holder: str, *, resumed: bool) -> Opened:
        job.granted_segment = job.newest_segment
        return Opened(job, job.lease.grant(holder, resumed=resumed), resumed, job.granted_segment)

    async def close(self, job: Job, lease_id: str) -> int:
        """Frees a job's memory and name for its writer, when work on its window is over; returns the bytes.

        Raises:
            LeaseLost: another writer holds it.
        """
        async with job.device_lock:
            if job.closed:
                return 0
            job.lease.renew(job.name, lease_id)
            return self._free(job)

    def open_memory(self, opened: Opened, offer: Offer) -> bool:
        """Opens what the holder of a new lease shares; whether it could be, and may be used.

        It is the client's memory: no limit of this service counts it, but one on how many are open.
        """
        lease = opened.job.lease
        open_already = sum(job.lease.memory is not None for job in self._jobs.values())
        if open_already >= MOST_OPEN or opened.job.spec.trainer_held or lease.lease_id != opened.lease_id:
            return False
        lease.close_memory()
        lease.memory = OfferedMemory.open_offered(offer)
        return lease.memory is not None

    def close_memory(self) -> None:
        """Gives back the memory that clients share, when the service stops."""
        for job in self._jobs.values():
            job.lease.close_memory()

    def expire(self) -> list[str]:
        """Closes jobs that had no writer for longer than the time to live; returns their names.

        Memory of a writer that was silent for the time of its lease is given back already: it may be dead.
        """
        for job in self._jobs.values():
            if not job.lease.held:
                job.lease.close_memory()
        idle = [
            job
            for job in self._jobs.values()
            if not job.lease.held and job.lease.idle_seconds > self.job_ttl_seconds
            if not job.device_lock.locked()  # a reader is at work: the next round
        ]
        for job in idle:
            self._free(job)
        return [job.name for job in idle]

    async def _replace(self, job: Job, owner: str, spec: JobSpec, mode: OpenMode) -> None:
        async with job.device_lock:
            if not job.closed:
                self._refuse_taken(job, owner, spec, mode)  # it may have got a writer while this one waited
                self._free(job)

    def _free(self, job: Job) -> int:
        job.closed = True
        job.lease.release()
        job.window.free()
        del self._jobs[job.name]
        self._reserved_bytes -= job.memory_bytes
        return job.memory_bytes

    def _refuse_taken(self, job: Job, owner: str, spec: JobSpec, mode: OpenMode) -> None:
        name = job.name
        if job.owner != owner:
            raise PermissionDenied(
                f"job {name!r} belongs to another identity", reason="NOT_THE_OWNER", job=name
            )
        if mode.if_exists == "error":
            raise AlreadyExists(
                f'job {name!r} exists; if_exists="resume" attaches to it, "replace" frees it',
                reason="JOB_EXISTS",
                job=name,
            )
        if job.lease.held and not mode.take_over:
            left = job.lease.describe().expires_in_seconds
            joining = (
                "; shards of the same trainer join with its shared_lease_id"
                if job.spec.shard_count > 1
                else ""
            )
            raise AlreadyExists(
                f"job {name!r} has a writer ({job.lease.holder}) whose lease expires in {left:.0f} s unless it "
                f"calls; wait, close it there, use another name, or take_over=True{joining}",
                reason="LIVE_LEASE",
                job=name,
                expires_in_seconds=f"{left:.3f}",
            )
        if mode.if_exists == "resume" and not job.spec.same_as(spec):
            raise AlreadyExists(
                f"job {name!r} exists with another spec ({difference(job.spec, spec)}); use another name, or "
                'if_exists="replace"',
                reason="OTHER_SPEC",
                job=name,
            )

    def _refuse_oversized(self, name: str, needed: int, freed: int) -> None:
        used = self._reserved_bytes - freed
        if used + needed > self.memory_limit_bytes:
            raise ResourceExhausted(
                f"job {name!r} needs {needed / _MEBIBYTE:.1f} MiB on the device; {used / _MEBIBYTE:.1f} of the limit of "
                f"{self.memory_limit_bytes / _MEBIBYTE:.1f} MiB are taken: use a smaller window, a half-precision "
                "window_dtype, or a service with a higher --memory-limit",
                reason="MEMORY_LIMIT",
                needed_bytes=needed,
                used_bytes=used,
                limit_bytes=self.memory_limit_bytes,
            )


def _planned(spec: JobSpec) -> tuple[Layout, JobShape]:
    """Layout and shape of a job's windows, for a worker: of 65,536 tensors they take a while."""
    layout = Layout(dict(spec.tensors))
    return layout, JobShape.of(layout, spec.operator, spec.stride, spec.window_dtype, spec.holders)


def _rows_of(spec: JobSpec) -> GramRows | None:
    if not spec.trainer_held:
        return None
    return GramRows(shards=spec.shard_count, length=int(spec.operator.window), stride=spec.stride)
