"""The gRPC service that answers with the weights of the future."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

from koopcast.errors import LeaseLost
from koopcast.messages import (
    DTYPE_NUMBERS,
)
from koopcast.prediction import block_to_message, summary_to_message
from koopcast.v1 import (
    prediction_pb2,
    prediction_pb2_grpc,
)
from koopcast.wire import ELEMENT_BYTES, checksum
from koopcast_server.grpc_decoding import (
    dtype_name,
    operators_of,
    question_of,
)
from koopcast_server.held_window import Answer, narrowed_chunks
from koopcast_server.interceptor import caller
from koopcast_server.job import Job
from koopcast_server.jobs import Jobs
from koopcast_server.metrics import Metrics

if TYPE_CHECKING:
    import grpc
    import torch

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["PredictionService"]

_Response = prediction_pb2.PredictAheadResponse | bytes
"""A response, or one that is serialised already."""

_COMBINED_BYTES: Final = 64 << 20
"""Displacements combined before they are read: small answers keep no push waiting for a slow reader."""


class PredictionService(prediction_pb2_grpc.PredictionServiceServicer):
    """Answers with the weights of the future."""

    def __init__(self, jobs: Jobs, metrics: Metrics) -> None:
        """Serve these jobs."""
        self._jobs = jobs
        self._metrics = metrics

    async def PredictAhead(  # type: ignore[override]  # noqa: N802  # some responses come serialised
        self, request: prediction_pb2.PredictAheadRequest, context: Context
    ) -> AsyncIterator[_Response]:
        """For each operator, for each horizon: one report, then chunks of displacement."""
        started = time.perf_counter()
        engine, job = self._jobs.engine, self._asked(request)
        operators = operators_of(request, job)
        wire_dtype = dtype_name(request.wire_dtype, "wire_dtype") or job.spec.wire_dtype
        async with job.answer_lock, contextlib.AsyncExitStack() as ring:
            await ring.enter_async_context(job.device_lock)  # no turning while its snapshots are combined
            if job.closed:
                raise LeaseLost(f"job {job.name!r} was closed before its answer", reason="JOB_CLOSED")
            question = question_of(request, job)
            solved = await engine.run(job.window.solve, operators, question)
            job.note_answer(max(solved[0], key=lambda answer: answer.horizon_steps))
            job.counters.last_prediction_seconds = time.perf_counter() - started
            base = await engine.run(job.window.base) if request.include_base else None
            base_step = job.step
            answers = [(index, answer) for index, batch in enumerate(solved) for answer in batch]
            answer_bytes = job.layout.elements * ELEMENT_BYTES[job.layout.storage_dtype]
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
            jumps_accepted=job.counters.jumps_accepted,
            jumps_rejected=job.counters.jumps_rejected,
            trusted_horizon_steps=job.trusted.steps,
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
        job.remember_prediction(prediction_id, answer.horizon_steps)
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
            summary=summary_to_message(answer.summary),
        )
        return prediction_pb2.PredictAheadResponse(report=report)

    async def _base(self, job: Job, flat: torch.Tensor, step: int) -> AsyncIterator[_Response]:
        dtype = job.layout.storage_dtype
        base = prediction_pb2.BaseSnapshot(
            step=step, total_bytes=job.layout.elements * ELEMENT_BYTES[dtype], dtype=DTYPE_NUMBERS[dtype]
        )
        yield prediction_pb2.PredictAheadResponse(base=base)
        async for message in self._chunks(flat, dtype, job):
            yield message

    async def _displacement(self, job: Job, answer: Answer) -> torch.Tensor | None:
        return await self._jobs.engine.run(job.window.displacement, answer) if answer.moved else None

    async def _chunks(self, flat: torch.Tensor | None, dtype: str, job: Job) -> AsyncIterator[_Response]:
        chunks = narrowed_chunks(flat, dtype) if flat is not None else iter(())
        while (piece := await self._jobs.engine.run(_next_chunk, chunks)) is not None:
            byte_count, message = piece
            job.counters.bytes_sent += byte_count
            self._metrics.sent_bytes.inc(byte_count)
            yield message


def _next_chunk(chunks: Iterator[tuple[int, bytes]]) -> tuple[int, bytes] | None:
    """Bytes of data, and the whole response serialised: a megabyte is copied on a worker, not on the event loop."""
    piece = next(chunks, None)
    if piece is None:
        return None
    offset, data = piece
    response = prediction_pb2.PredictAheadResponse()
    response.chunk.offset, response.chunk.crc32c, response.chunk.data = offset, checksum(data), data
    return len(data), response.SerializeToString()
