"""The gRPC services of jobs and snapshots: decode, call the jobs, encode. Errors become status in the interceptor."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from koopcast.errors import DeadlineExceeded, InvalidArgument
from koopcast.status import status_to_message
from koopcast.v1 import (
    job_pb2,
    job_pb2_grpc,
    snapshot_pb2,
    snapshot_pb2_grpc,
)
from koopcast.version import PROTOCOL_VERSION, VERSION
from koopcast.wire import ACK_BYTES, UNACKNOWLEDGED_BYTES
from koopcast_server.grpc_decoding import (
    identity_from_header,
    most_blocks,
    spec_from_message,
)
from koopcast_server.interceptor import caller
from koopcast_server.job import Job
from koopcast_server.jobs import Jobs, OpenMode
from koopcast_server.metrics import Metrics
from koopcast_server.uploads import Upload, judge

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["JobService", "SnapshotService"]

_MAX_PAGE: Final = 1000
_MAX_PAGE_TENSORS: Final = 4096
"""A page names every tensor of its jobs: so many keep it within a message, and the event loop free."""
_IF_EXISTS: Final = {
    job_pb2.IF_EXISTS_UNSPECIFIED: "resume",
    job_pb2.IF_EXISTS_RESUME: "resume",
    job_pb2.IF_EXISTS_REPLACE: "replace",
    job_pb2.IF_EXISTS_ERROR: "error",
}


class JobService(job_pb2_grpc.JobServiceServicer):
    """Opens, shows and closes jobs."""

    def __init__(self, jobs: Jobs) -> None:
        """Serve these jobs."""
        self._jobs = jobs

    async def OpenJob(  # noqa: N802  # gRPC's names
        self, request: job_pb2.OpenJobRequest, context: Context
    ) -> job_pb2.OpenJobResponse:
        """Makes, resumes or replaces a job."""
        if request.protocol_version < 1:
            raise InvalidArgument("protocol_version must be at least 1", field="protocol_version")
        if request.if_exists not in _IF_EXISTS:
            raise InvalidArgument(f"unknown if_exists number {request.if_exists}", field="if_exists")
        if request.shard_index or request.shared_lease_id:
            raise InvalidArgument("this service does not implement sharded jobs", field="shard_index")
        opened = await self._jobs.open(
            request.name,
            caller(),
            spec_from_message(request.spec),
            OpenMode(_IF_EXISTS[request.if_exists], request.take_over),
            request.client_version[:256],
        )
        job = opened.job
        return job_pb2.OpenJobResponse(
            lease_id=opened.lease_id,
            lease_seconds=job.lease.seconds,
            memory_bytes=job.memory_bytes,
            segment=job.newest_segment,
            step=job.step,
            snapshots_held=job.window.snapshots_held,
            resumed=opened.resumed,
            protocol_version=min(PROTOCOL_VERSION, request.protocol_version),
            server_version=f"koopcast/{VERSION}",
        )

    async def GetJob(  # noqa: N802
        self, request: job_pb2.GetJobRequest, context: Context
    ) -> job_pb2.GetJobResponse:
        """Shows one job."""
        job = self._jobs.get(request.name, caller())
        count = most_blocks(request.max_blocks)
        blocks, summary = await job.reports(self._jobs.engine, request.first_block, count)
        return job_pb2.GetJobResponse(job=status_to_message(job.describe(blocks, summary)))

    async def ListJobs(  # noqa: N802
        self, request: job_pb2.ListJobsRequest, context: Context
    ) -> job_pb2.ListJobsResponse:
        """Lists the caller's jobs; the page token is the last name of the page before."""
        size = min(request.page_size or _MAX_PAGE, _MAX_PAGE)
        owned = [job for job in self._jobs.all() if job.owner == caller() and job.name > request.page_token]
        tensors = list(itertools.accumulate(len(job.spec.tensors) for job in owned))
        size = min(size, max(1, bisect.bisect_right(tensors, _MAX_PAGE_TENSORS)))
        page = owned[:size]
        return job_pb2.ListJobsResponse(
            jobs=[status_to_message(job.describe()) for job in page],
            next_page_token=page[-1].name if len(owned) > size else "",
        )

    async def RenewLease(  # noqa: N802
        self, request: job_pb2.RenewLeaseRequest, context: Context
    ) -> job_pb2.RenewLeaseResponse:
        """Keeps a lease alive."""
        job = self._jobs.get(request.name, caller())
        job.lease.renew(job.name, request.lease_id)
        return job_pb2.RenewLeaseResponse(lease_seconds=job.lease.seconds)

    async def CloseJob(  # noqa: N802
        self, request: job_pb2.CloseJobRequest, context: Context
    ) -> job_pb2.CloseJobResponse:
        """Releases the lease, and frees the job unless it is to be kept."""
        job = self._jobs.get(request.name, caller())
        job.lease.renew(job.name, request.lease_id)
        if request.keep:
            job.lease.release()
            return job_pb2.CloseJobResponse()
        return job_pb2.CloseJobResponse(freed_bytes=await self._jobs.close(job, request.lease_id))


class SnapshotService(snapshot_pb2_grpc.SnapshotServiceServicer):
    """Takes snapshots."""

    def __init__(self, jobs: Jobs, metrics: Metrics, stall_seconds: float) -> None:
        """Serve these jobs; give up uploads that stay silent for `stall_seconds`."""
        self._jobs = jobs
        self._metrics = metrics
        self._stall_seconds = stall_seconds

    async def PushSnapshot(  # noqa: N802
        self,
        request_iterator: AsyncIterator[snapshot_pb2.PushSnapshotRequest],
        context: Context,
    ) -> AsyncIterator[snapshot_pb2.PushSnapshotResponse]:
        """One snapshot: header, chunks, commit."""
        messages = aiter(request_iterator)
        first = await self._next(messages)
        if first is None or first.WhichOneof("message") != "header":
            raise InvalidArgument("the first message of an upload is its header", field="header")
        header = first.header
        job = self._jobs.written(header.job, caller(), header.lease_id)
        snapshot = identity_from_header(header, job)
        verdict = judge(job, snapshot)
        if verdict != "new":
            yield self._result(job, verdict)
            return
        upload = Upload(job, header.lease_id, snapshot, self._jobs.engine)
        try:
            ready = snapshot_pb2.SnapshotReady(offset=0, unacknowledged_bytes_limit=UNACKNOWLEDGED_BYTES)
            yield snapshot_pb2.PushSnapshotResponse(ready=ready)
            async for acknowledged in self._receive(messages, upload):
                ack = snapshot_pb2.SnapshotAck(committed_offset=acknowledged)
                yield snapshot_pb2.PushSnapshotResponse(ack=ack)
            verdict = await upload.commit()
        finally:
            upload.end()
        self._metrics.received_bytes.inc(upload.received_bytes)
        yield self._result(job, "accepted" if verdict == "new" else verdict)

    async def _receive(
        self, messages: AsyncIterator[snapshot_pb2.PushSnapshotRequest], upload: Upload
    ) -> AsyncIterator[int]:
        """Lands chunks until the commit; yields offsets to acknowledge."""
        acknowledged = 0
        while True:
            message = await self._next(messages)
            kind = message.WhichOneof("message") if message is not None else None
            if message is None:
                raise InvalidArgument("the upload ended without a commit", field="commit")
            if kind == "commit":
                return
            if kind != "chunk":
                raise InvalidArgument(
                    f"this service takes no {kind or 'empty'} message here", field="message"
                )
            chunk = message.chunk
            await upload.land(chunk.offset, chunk.data, chunk.crc32c)
            if upload.received_bytes - acknowledged >= ACK_BYTES:
                acknowledged = upload.received_bytes
                yield acknowledged

    async def _next(
        self, messages: AsyncIterator[snapshot_pb2.PushSnapshotRequest]
    ) -> snapshot_pb2.PushSnapshotRequest | None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await anext(messages, None)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the upload was silent for {self._stall_seconds:.0f} s", reason="UPLOAD_STALLED"
            ) from None

    def _result(self, job: Job, outcome: str) -> snapshot_pb2.PushSnapshotResponse:
        self._metrics.snapshots.labels(outcome).inc()
        number = {
            "accepted": snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED,
            "duplicate": snapshot_pb2.SNAPSHOT_OUTCOME_DUPLICATE,
            "superseded": snapshot_pb2.SNAPSHOT_OUTCOME_SUPERSEDED,
        }[outcome]
        result = snapshot_pb2.SnapshotResult(outcome=number, snapshots_held=job.window.snapshots_held)
        return snapshot_pb2.PushSnapshotResponse(result=result)
