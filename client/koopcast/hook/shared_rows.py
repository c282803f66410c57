"""One process's part of a job that several hold together: no part begins a segment before all have agreed to.

A snapshot counts when all parts have come, each of the same segment and step. A part that misses one (it was dropped, a
row was refused, the service was lost) has fallen out: it sends nothing more until the ranks meet at the next jump step,
where the first rank says which segment comes next, from which step on, and under which lease.
"""

from __future__ import annotations

from dataclasses import dataclass

from koopcast.errors import FailedPrecondition, Unavailable
from koopcast.hook.held_job import Snapshot
from koopcast.hook.held_rows import RowsJob
from koopcast.job import Job

__all__ = ["Agreement", "SharedRowsJob"]


@dataclass(
    frozen=True, slots=True, eq=False
)  # each is itself only: what was served before is not served again
class Agreement:
    """What all parts do next.

    Attributes:
        lease_id: of the job; empty: the first rank does not hold it, and nothing is sent.
        segment: the segment that begins.
        first_step: step of its first snapshot.
    """

    lease_id: str = ""
    segment: int = 0
    first_step: int = 0

    def next(self, first_step: int) -> Agreement:
        """The segment after this one, where all parts know by themselves that it begins."""
        return Agreement(self.lease_id, self.segment + 1, first_step)


class SharedRowsJob(RowsJob):
    """Calls on such a job. `adopt` and `proposal` are for the training thread, the rest for the other one."""

    _agreed = Agreement()
    _served: Agreement | None = None
    _fallen_out_of: Agreement | None = None

    @property
    def fallen_out(self) -> bool:
        """Whether this part can send nothing before the next agreement."""
        agreed = self._agreed
        return not agreed.lease_id or self._fallen_out_of is agreed

    @property
    def agreed(self) -> Agreement:
        """The last agreement."""
        return self._agreed

    def proposal(self, first_step: int) -> Agreement:
        """On the first rank: what can be done next, as far as it knows."""
        job, before = self._job, self._agreed
        if job is None:
            return Agreement("", before.segment, first_step)
        return Agreement(job.lease_id, max(job.segment, before.segment) + 1, first_step)

    def adopt(self, agreed: Agreement) -> None:
        """Do this from the next snapshot on."""
        self._agreed = agreed

    def break_off(self) -> None:
        """A snapshot of what is served is missing."""
        super().break_off()
        self._fallen_out_of = self._served

    def push(self, snapshot: Snapshot) -> None:
        """Push a snapshot's row, if it is the one that is due."""
        agreed = self._agreed
        if self._is_due(snapshot, agreed):
            self._serve(agreed)
            super().push(snapshot)
            return
        snapshot.buffer.wait()
        self._counters.dropped()
        if snapshot.step >= agreed.first_step:
            self._fallen_out_of = agreed

    def _is_due(self, snapshot: Snapshot, agreed: Agreement) -> bool:
        if not agreed.lease_id or self._fallen_out_of is agreed:
            return False
        if self._served is not agreed:
            return snapshot.step == agreed.first_step
        newest = self._newest
        return (
            newest is not None and not snapshot.fresh and snapshot.step == newest[1] + self._settings.stride
        )

    def _serve(self, agreed: Agreement) -> None:
        """Begin the segment that was agreed on, in the job under its lease."""
        if self._served is agreed:
            return
        self._served = agreed
        if self._job is not None and self._job.lease_id != agreed.lease_id:
            if not self._shards.index:
                self._fallen_out_of = agreed
                raise FailedPrecondition(
                    "the first rank opened its job anew in the meantime", reason="OTHER_LEASE"
                )
            self._forget(self._job)
        if self._job is None:
            self._job = self._open_job()
        self._job.segment = agreed.segment
        self._used_segment = self._ring_segment = 0
        self._fresh = False
        self._newest = None

    def _open_job(self) -> Job:
        if not self._shards.index:
            return super()._open_job()
        if not self._agreed.lease_id:
            raise Unavailable("the first rank does not hold the job yet", reason="NO_LEASE")
        return self._join(self._agreed.lease_id)

    def _join(self, lease_id: str) -> Job:
        settings, shards = self._settings, self._shards
        return self._client.open_job(
            settings.name,
            settings.tensors,
            stride=settings.stride,
            operator=settings.operator,
            window_holder="trainer",
            shard_count=shards.count,
            shard_index=shards.index,
            shared_lease_id=lease_id,
        )
