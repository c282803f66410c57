"""The gRPC service of jobs: decode, call the jobs, encode. Errors become status in the interceptor."""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING, Any, Final

from koopcast.errors import InvalidArgument
from koopcast.status import status_to_message
from koopcast.v1 import job_pb2, job_pb2_grpc
from koopcast.version import PROTOCOL_VERSION, VERSION
from koopcast_server.grpc_decoding import is_on_this_host, most_blocks, offer_of, spec_from_message
from koopcast_server.interceptor import caller
from koopcast_server.job import JobSpec
from koopcast_server.jobs import Jobs, OpenMode

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["JobService"]

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
        spec = await self._jobs.engine.run(_spec_of, request.spec)
        if request.shard_index >= spec.shard_count:
            raise InvalidArgument(
                f"shard_index is {request.shard_index}; the job has {spec.shard_count} shards, counted from 0",
                field="shard_index",
            )
        opened = (
            self._jobs.join(request.name, caller(), spec, request.shared_lease_id)
            if request.shared_lease_id
            else await self._jobs.open(
                request.name,
                caller(),
                spec,
                OpenMode(_IF_EXISTS[request.if_exists], request.take_over),
                request.client_version[:256],
            )
        )
        job = opened.job
        has_memory = (
            request.HasField("shared_memory")
            and is_on_this_host(context.peer())
            and self._jobs.open_memory(opened, offer_of(request.shared_memory))
        )
        return job_pb2.OpenJobResponse(
            lease_id=opened.lease_id,
            lease_seconds=job.lease.seconds,
            memory_bytes=job.memory_bytes,
            segment=opened.segment,
            step=job.step,
            snapshots_held=job.window.snapshots_held,
            resumed=opened.resumed,
            protocol_version=min(PROTOCOL_VERSION, request.protocol_version),
            server_version=f"koopcast/{VERSION}",
            spec_digest=spec.tensors_digest,
            clock=job.clocks[-1] if job.window.snapshots_held else None,
            averaging=job.averaging if job.window.snapshots_held else 0,
            shared_memory=has_memory,
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


def _spec_of(message: job_pb2.JobSpec) -> JobSpec:
    """The spec and its digest, for a worker: of 65,536 tensors they take a while."""
    spec = spec_from_message(message)
    spec.tensors_digest  # noqa: B018  # kept where it was computed
    return spec
