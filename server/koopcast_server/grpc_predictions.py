"""The gRPC service that answers with the weights of the future."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from koopcast.errors import InvalidArgument, LeaseLost
from koopcast.gram_messages import coefficients_to_message
from koopcast.messages import (
    DTYPE_NUMBERS,
)
from koopcast.operator import Operator
from koopcast.prediction import block_to_message, summary_to_message
from koopcast.v1 import (
    prediction_pb2,
    prediction_pb2_grpc,
)
from koopcast.wire import ELEMENT_BYTES
from koopcast_server.answering import Answer
from koopcast_server.grpc_decoding import (
    asks_for_one,
    dtype_name,
    operators_of,
    question_of,
)
from koopcast_server.interceptor import caller
from koopcast_server.job import Job
from koopcast_server.jobs import Jobs
from koopcast_server.kept_answers import KeptAnswer, KeptAnswers
from koopcast_server.metrics import Metrics
from koopcast_server.outgoing import chunk_messages

if TYPE_CHECKING:
    import grpc
    import torch

    Context = grpc.aio.ServicerContext[Any, Any]

__all__ = ["PredictionService"]

_Response = prediction_pb2.PredictAheadResponse | bytes
"""A response, or one that is serialised already."""

_Message = prediction_pb2.PredictAheadResponse

_COMBINED_BYTES: Final = 64 << 20
"""Displacements combined before they are read: small answers keep no push waiting for a slow reader."""


@dataclass(frozen=True, slots=True)
class _Array:
    """What begins an array, the array, flat, or None where none follows, and its type on the wire."""

    begins: prediction_pb2.PredictAheadResponse
    flat: torch.Tensor | None
    dtype: str


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
        job = self._asked(request)
        if request.coefficients_only:
            for response in await self._coefficients(request, job, operators_of(request, job)):
                yield response
            return
        answer = self._kept_answer if asks_for_one(request) else self._new_answers
        async with contextlib.aclosing(answer(request, job)) as responses:
            async for response in responses:
                yield response

    async def _new_answers(
        self, request: prediction_pb2.PredictAheadRequest, job: Job
    ) -> AsyncGenerator[_Response]:
        """Solves, and sends what was asked for."""
        started = time.perf_counter()
        operators = operators_of(request, job)
        wire_dtype = dtype_name(request.wire_dtype, "wire_dtype") or job.spec.wire_dtype
        window = job.ring
        async with self._held_still(job) as ring:
            question = question_of(request, job)
            solved = await self._jobs.engine.run(window.solve, operators, question)
            job.note_answer(max(solved[0], key=lambda answer: answer.horizon_steps))
            job.counters.last_prediction_seconds = time.perf_counter() - started
            answers = [
                (self._report(request, job, index, answer, wire_dtype), answer)
                for index, batch in enumerate(solved)
                for answer in batch
            ]
            asked = ((operator, one) for operator in operators for one in question.each())
            kept = [
                KeptAnswer.of(report, operator, one, answer)
                for (report, answer), (operator, one) in zip(answers, asked, strict=True)
            ]
            job.kept_answers[bool(request.lease_id)] = KeptAnswers.of(job.version, kept)
            arrays = await self._base(request, job)
            answer_bytes = job.layout.elements * ELEMENT_BYTES[job.layout.storage_dtype]
            together = len(answers) if request.reports_only else max(1, _COMBINED_BYTES // answer_bytes)
            for first in range(0, len(answers), together):
                for report, answer in answers[first : first + together]:
                    flat = None if request.reports_only else await self._displacement(job, answer)
                    report.total_bytes = 0 if flat is None else report.total_bytes
                    arrays.append(_Array(_Message(report=report), flat, wire_dtype))
                if first + together >= len(answers):
                    await ring.aclose()  # pushes need not wait for whoever reads these
                async with contextlib.aclosing(self._sent(arrays, job)) as messages:
                    async for message in messages:
                        yield message

    async def _kept_answer(
        self, request: prediction_pb2.PredictAheadRequest, job: Job
    ) -> AsyncGenerator[_Response]:
        """Sends what is asked for of one prediction of the last answers."""
        wire_dtype = dtype_name(request.wire_dtype, "wire_dtype") or job.spec.wire_dtype
        window = job.ring
        async with self._held_still(job) as ring:
            kept = job.kept_answers[bool(request.lease_id)].find(request.prediction_id, job.version)
            arrays, flat = await self._base(request, job), None
            if not request.reports_only:
                answer = kept.answer
                if answer is None:
                    ((answer,),) = await self._jobs.engine.run(window.solve, [kept.operator], kept.question)
                flat = await self._displacement(job, answer)
            report = prediction_pb2.PredictionReport()
            report.CopyFrom(kept.report)
            report.dtype = DTYPE_NUMBERS[wire_dtype]
            report.total_bytes = 0 if flat is None else job.layout.elements * ELEMENT_BYTES[wire_dtype]
            arrays.append(_Array(_Message(report=report), flat, wire_dtype))
            await ring.aclose()
            async with contextlib.aclosing(self._sent(arrays, job)) as messages:
                async for message in messages:
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

    async def _coefficients(
        self, request: prediction_pb2.PredictAheadRequest, job: Job, operators: list[Operator]
    ) -> list[_Response]:
        """For each operator, for each horizon: one report with the coefficients on the trainer's window."""
        started = time.perf_counter()
        grams, _ = job.grams
        for field in ("include_base", "reports_only", "prediction_id"):
            if getattr(request, field):
                raise InvalidArgument(
                    f"the service has no snapshots of this job: {field} is not for coefficients_only",
                    field=field,
                )
        async with job.device_lock:
            if job.closed:
                raise LeaseLost(f"job {job.name!r} was closed before its answer", reason="JOB_CLOSED")
            solved = await self._jobs.engine.run(grams.solve, operators, question_of(request, job))
            job.note_answer(max(solved[0], key=lambda answer: answer.horizon_steps))
            job.counters.last_prediction_seconds = time.perf_counter() - started
            responses: list[_Response] = []
            for index, answer in ((index, answer) for index, batch in enumerate(solved) for answer in batch):
                report = self._report(request, job, index, answer, job.spec.wire_dtype)
                response = prediction_pb2.PredictAheadResponse(report=report)
                response.report.total_bytes = 0
                if answer.moved:
                    found = await self._jobs.engine.run(grams.coefficients, answer)
                    response.report.coefficients.CopyFrom(
                        coefficients_to_message(*found, answer.horizon_strides)
                    )
                job.counters.bytes_sent += response.ByteSize()
                self._metrics.sent_bytes.inc(response.ByteSize())
                responses.append(response)
        return responses

    def _asked(self, request: prediction_pb2.PredictAheadRequest) -> Job:
        """The job of a request, from its writer or, without a lease, from a reader."""
        if request.lease_id:
            return self._jobs.written(request.job, caller(), request.lease_id)
        self._jobs.refuse_when_draining()
        return self._jobs.get(request.job, caller())

    @contextlib.asynccontextmanager
    async def _held_still(self, job: Job) -> AsyncIterator[contextlib.AsyncExitStack]:
        """While an answer is made and read: the window does not turn until the stack that this gives is closed.

        Raises:
            LeaseLost: the job was closed in the meantime.
        """
        async with job.answer_lock, contextlib.AsyncExitStack() as ring:
            await ring.enter_async_context(job.device_lock)
            if job.closed:
                raise LeaseLost(f"job {job.name!r} was closed before its answer", reason="JOB_CLOSED")
            yield ring

    def _report(
        self,
        request: prediction_pb2.PredictAheadRequest,
        job: Job,
        operator_index: int,
        answer: Answer,
        wire_dtype: str,
    ) -> prediction_pb2.PredictionReport:
        prediction_id = secrets.token_hex(8)
        job.remember_prediction(prediction_id, answer.horizon_steps)
        job.counters.predictions += 1
        self._metrics.predictions.labels(str(answer.moved).lower()).inc()
        return prediction_pb2.PredictionReport(
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

    async def _base(self, request: prediction_pb2.PredictAheadRequest, job: Job) -> deque[_Array]:
        """The last snapshot, where it is asked for."""
        if not request.include_base:
            return deque()
        dtype = job.layout.storage_dtype
        total_bytes = job.layout.elements * ELEMENT_BYTES[dtype]
        base = prediction_pb2.BaseSnapshot(step=job.step, total_bytes=total_bytes, dtype=DTYPE_NUMBERS[dtype])
        flat = await self._jobs.engine.run(job.ring.base)
        return deque([_Array(_Message(base=base), flat, dtype)])

    async def _displacement(self, job: Job, answer: Answer) -> torch.Tensor | None:
        return await self._jobs.engine.run(job.ring.displacement, answer) if answer.moved else None

    async def _sent(self, arrays: deque[_Array], job: Job) -> AsyncGenerator[_Response]:
        """Each with its chunks; lets go of what was sent."""
        while arrays:
            array = arrays.popleft()
            yield array.begins
            if array.flat is None:
                continue
            chunks = chunk_messages(self._jobs.engine, array.flat.numpy(), array.dtype)
            async with contextlib.aclosing(chunks):
                async for byte_count, message in chunks:
                    job.counters.bytes_sent += byte_count
                    self._metrics.sent_bytes.inc(byte_count)
                    yield message
