"""The gRPC services: decode, call the jobs, encode. Errors become status in the interceptor."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from koopcast.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, LeaseLost
from koopcast.messages import (
    DTYPE_NAMES,
    DTYPE_NUMBERS,
    operator_from_message,
    override_from_message,
    tensors_from_messages,
)
from koopcast.operator import Operator
from koopcast.prediction import block_to_message
from koopcast.status import status_to_message
from koopcast.v1 import (
    job_pb2,
    job_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    snapshot_pb2,
    snapshot_pb2_grpc,
    tensor_pb2,
)
from koopcast.version import PROTOCOL_VERSION, VERSION
from koopcast.wire import ACK_BYTES, ELEMENT_BYTES, UNACKNOWLEDGED_BYTES, TensorSpec, checksum, storage_dtype
from koopcast_server.held_window import Answer, narrowed_chunks
from koopcast_server.interceptor import caller
from koopcast_server.jobs import Job, Jobs, JobSpec, OpenMode
from koopcast_server.metrics import Metrics
from koopcast_server.uploads import SnapshotIdentity, Upload, judge

if TYPE_CHECKING:
    import grpc
    import torch

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["JobService", "PredictionService", "SnapshotService"]

_MAX_TENSORS: Final = 65_536
_MAX_HORIZONS: Final = 64
_MAX_OPERATORS: Final = 16
_MAX_PAGE: Final = 1000
_MAX_PAGE_TENSORS: Final = 4096
"""A page names every tensor of its jobs: so many keep it within a message, and the event loop free."""
_MAX_STRIDE: Final = 2**31
_LAST_STEP: Final = 2**53
_COMBINED_BYTES: Final = 64 << 20
"""Displacements combined before they are read: small answers keep no push waiting for a slow reader."""
_IF_EXISTS: Final = {
    job_pb2.IF_EXISTS_UNSPECIFIED: "resume",
    job_pb2.IF_EXISTS_RESUME: "resume",
    job_pb2.IF_EXISTS_REPLACE: "replace",
    job_pb2.IF_EXISTS_ERROR: "error",
}
_RAW: Final = (tensor_pb2.ENCODING_UNSPECIFIED, tensor_pb2.ENCODING_RAW)


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
            _spec_from_message(request.spec),
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
        blocks = await job.reports(self._jobs.engine)
        return job_pb2.GetJobResponse(job=status_to_message(job.describe(blocks)))

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
        snapshot = _identity_from_header(header, job)
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


class PredictionService(prediction_pb2_grpc.PredictionServiceServicer):
    """Answers with the weights of the future."""

    def __init__(self, jobs: Jobs, metrics: Metrics) -> None:
        """Serve these jobs."""
        self._jobs = jobs
        self._metrics = metrics

    async def PredictAhead(  # noqa: N802
        self, request: prediction_pb2.PredictAheadRequest, context: Context
    ) -> AsyncIterator[prediction_pb2.PredictAheadResponse]:
        """For each operator, for each horizon: one report, then chunks of displacement."""
        started = time.perf_counter()
        engine, job = self._jobs.engine, self._asked(request)
        operators = _operators_of(request, job)
        wire_dtype = _dtype_name(request.wire_dtype, "wire_dtype") or job.spec.wire_dtype
        async with job.answer_lock, contextlib.AsyncExitStack() as ring:
            await ring.enter_async_context(job.device_lock)  # no turning while its snapshots are combined
            if job.closed:
                raise LeaseLost(f"job {job.name!r} was closed before its answer", reason="JOB_CLOSED")
            offset_steps = _offset_of(request, job)
            solved = await engine.run(job.window.solve, operators, list(request.horizons), offset_steps)
            job.counters.last_prediction_seconds = time.perf_counter() - started
            base = await engine.run(job.window.base) if request.include_base else None
            base_step = job.step
            answers = [(index, answer) for index, batch in enumerate(solved) for answer in batch]
            answer_bytes = job.layout.elements * ELEMENT_BYTES[job.window.storage_dtype]
            together = max(1, _COMBINED_BYTES // answer_bytes)
            for first in range(0, len(answers), together):
                part = answers[first : first + together]
                flats = [await self._displacement(job, answer) for _, answer in part]
                reports = [self._report(request, job, index, answer, wire_dtype) for index, answer in part]
                if first + together >= len(answers):
                    await ring.aclose()  # pushes need not wait for whoever reads these
                if base is not None:
                    async for message in self._base(job, base, base_step):
                        yield message
                    base = None
                while reports:
                    yield reports.pop(0)
                    async for message in self._chunks(flats.pop(0), wire_dtype, job):
                        yield message

    async def ReportOutcome(  # noqa: N802
        self, request: prediction_pb2.ReportOutcomeRequest, context: Context
    ) -> prediction_pb2.ReportOutcomeResponse:
        """Notes what the trainer did with a prediction."""
        job = self._jobs.written(request.job, caller(), request.lease_id)
        if job.report_outcome(request.prediction_id, accepted=request.accepted):
            self._metrics.jumps.labels("accepted" if request.accepted else "rejected").inc()
        return prediction_pb2.ReportOutcomeResponse(
            jumps_accepted=job.counters.jumps_accepted, jumps_rejected=job.counters.jumps_rejected
        )

    def _asked(self, request: prediction_pb2.PredictAheadRequest) -> Job:
        """The job of a request, from its writer or, without a lease, from a reader."""
        if request.lease_id:
            return self._jobs.written(request.job, caller(), request.lease_id)
        self._jobs.refuse_when_draining()
        return self._jobs.get(request.job, caller())

    def _report(
        self,
        request: prediction_pb2.PredictAheadRequest,
        job: Job,
        operator_index: int,
        answer: Answer,
        wire_dtype: str,
    ) -> prediction_pb2.PredictAheadResponse:
        prediction_id = secrets.token_hex(8)
        job.remember_prediction(prediction_id)
        job.counters.predictions += 1
        self._metrics.predictions.labels(str(answer.moved).lower()).inc()
        report = prediction_pb2.PredictionReport(
            prediction_id=prediction_id,
            base_step=job.step,
            from_step=request.from_step if request.HasField("from_step") else job.step,
            steps=answer.horizon_steps,
            segment=job.segment,
            operator_index=operator_index,
            moved=answer.moved,
            blocks=[block_to_message(block) for block in answer.blocks],
            total_bytes=job.layout.elements * ELEMENT_BYTES[wire_dtype] if answer.moved else 0,
            dtype=DTYPE_NUMBERS[wire_dtype],
        )
        return prediction_pb2.PredictAheadResponse(report=report)

    async def _base(
        self, job: Job, flat: torch.Tensor, step: int
    ) -> AsyncIterator[prediction_pb2.PredictAheadResponse]:
        dtype = job.window.storage_dtype
        base = prediction_pb2.BaseSnapshot(
            step=step, total_bytes=job.layout.elements * ELEMENT_BYTES[dtype], dtype=DTYPE_NUMBERS[dtype]
        )
        yield prediction_pb2.PredictAheadResponse(base=base)
        async for message in self._chunks(flat, dtype, job):
            yield message

    async def _displacement(self, job: Job, answer: Answer) -> torch.Tensor | None:
        return await self._jobs.engine.run(job.window.displacement, answer) if answer.moved else None

    async def _chunks(
        self, flat: torch.Tensor | None, dtype: str, job: Job
    ) -> AsyncIterator[prediction_pb2.PredictAheadResponse]:
        chunks = narrowed_chunks(flat, dtype) if flat is not None else iter(())
        while (piece := await self._jobs.engine.run(next, chunks, None)) is not None:
            offset, data = piece
            job.counters.bytes_sent += len(data)
            self._metrics.sent_bytes.inc(len(data))
            chunk = prediction_pb2.DisplacementChunk(offset=offset, data=data, crc32c=checksum(data))
            yield prediction_pb2.PredictAheadResponse(chunk=chunk)


def _spec_from_message(message: job_pb2.JobSpec) -> JobSpec:
    if not 1 <= len(message.tensors) <= _MAX_TENSORS:
        raise InvalidArgument(
            f"a job has 1 to {_MAX_TENSORS} tensors, not {len(message.tensors)}",
            field="tensors",
            limit=_MAX_TENSORS,
        )
    if not 1 <= message.stride <= _MAX_STRIDE:
        raise InvalidArgument(f"stride must lie in 1..2**31 steps, not {message.stride}", field="stride")
    if message.window_holder == job_pb2.WINDOW_HOLDER_TRAINER or message.shard_count > 1:
        raise InvalidArgument(
            "this service does not implement trainer-held windows and sharded jobs", field="window_holder"
        )
    if message.encoding not in _RAW:
        raise InvalidArgument("this service takes raw snapshots only", field="encoding")
    tensors = tensors_from_messages(message.tensors)
    stored = storage_dtype([spec.dtype for spec in tensors.values()])
    return JobSpec(
        tensors=tuple(tensors.items()),
        stride=message.stride,
        operator=operator_from_message(message.operator),
        window_dtype=_dtype_name(message.window_dtype, "window_dtype") or stored,
        wire_dtype=_dtype_name(message.wire_dtype, "wire_dtype") or stored,
    )


def _identity_from_header(header: snapshot_pb2.SnapshotHeader, job: Job) -> SnapshotIdentity:
    if header.encoding not in _RAW or header.shard_index or header.resume:
        raise InvalidArgument(
            "this service takes whole, raw snapshots from their first byte", field="encoding"
        )
    tensors = tensors_from_messages(header.tensors)
    if tuple(tensors.items()) != job.spec.tensors:
        raise InvalidArgument(_tensor_difference(tensors, job), field="tensors")
    if header.total_bytes != job.layout.nbytes:
        raise InvalidArgument(
            f"total_bytes is {header.total_bytes}; the job's tensors have {job.layout.nbytes}",
            field="total_bytes",
        )
    if len(header.digest) != 4:
        raise InvalidArgument("digest is the 4 bytes of a crc32c", field="digest")
    if header.HasField("clock") and not math.isfinite(header.clock):
        raise InvalidArgument("clock must be finite", field="clock")
    clock = header.clock if header.HasField("clock") else None
    return SnapshotIdentity(header.segment, header.step, header.digest, max(1, header.averaging), clock)


def _tensor_difference(tensors: Mapping[str, TensorSpec], job: Job) -> str:
    expected = dict(job.spec.tensors)
    for name in {**expected, **tensors}:
        if tensors.get(name) != expected.get(name):
            return f"tensor {name!r}: the snapshot has {tensors.get(name)}, the job {expected.get(name)}"
    return "the snapshot's tensors are in another order than the job's"


def _operators_of(request: prediction_pb2.PredictAheadRequest, job: Job) -> list[Operator]:
    if not 1 <= len(request.horizons) <= _MAX_HORIZONS:
        raise InvalidArgument(
            f"1 to {_MAX_HORIZONS} horizons, not {len(request.horizons)}",
            field="horizons",
            limit=_MAX_HORIZONS,
        )
    for horizon in request.horizons:
        if not (math.isfinite(horizon) and horizon > 0):
            raise InvalidArgument(
                f"a horizon must be finite and > 0 trainer steps, not {horizon}", field="horizons"
            )
    if len(request.operators) > _MAX_OPERATORS:
        raise InvalidArgument(f"at most {_MAX_OPERATORS} operators", field="operators", limit=_MAX_OPERATORS)
    if request.clock_intervals or request.coefficients_only or request.shard_index or request.modes:
        raise InvalidArgument(
            "this service does not implement clock_intervals, coefficients_only, shard_index and modes",
            field="clock_intervals",
        )
    base = job.spec.operator
    return [override_from_message(message, base) for message in request.operators] or [base]


def _offset_of(request: prediction_pb2.PredictAheadRequest, job: Job) -> float:
    """Trainer steps from the time of the last snapshot (an average's is earlier) to where the answer starts."""
    held, needed = job.window.snapshots_held, job.spec.operator.minimum_snapshots
    if held < needed:
        raise FailedPrecondition(
            f"job {job.name!r} holds {held} snapshots; the {job.spec.operator.observable} operator needs {needed}",
            reason="TOO_FEW_SNAPSHOTS",
            held=held,
            needed=needed,
        )
    from_step = request.from_step if request.HasField("from_step") else job.step
    if from_step < job.step:
        raise InvalidArgument(
            f"from_step {from_step} lies before the last snapshot, step {job.step}",
            field="from_step",
            newest=job.step,
        )
    if from_step > _LAST_STEP:
        raise InvalidArgument(f"from_step must be at most 2**53, not {from_step}", field="from_step")
    return from_step - job.step + (job.averaging - 1) / 2


def _dtype_name(number: int, field: str) -> str | None:
    if number == tensor_pb2.ELEMENT_TYPE_UNSPECIFIED:
        return None
    if number not in DTYPE_NAMES:
        raise InvalidArgument(f"unknown {field} number {number}", field=field)
    return DTYPE_NAMES[number]
