"""A job: one training run at the service, as its writer sees it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

from koopcast.answers import read_answers
from koopcast.arguments import check_finite, check_horizons, check_operators, check_whole, loss_or_none
from koopcast.channel import Connection
from koopcast.errors import (
    ArgumentTypeError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    KoopcastError,
    Unavailable,
)
from koopcast.messages import tensors_to_messages
from koopcast.operator import Operator
from koopcast.operator_messages import override_to_message
from koopcast.prediction import Prediction, Tensors
from koopcast.status import JobStatus, status_from_message
from koopcast.upload import PushResult, Upload
from koopcast.v1 import (
    job_pb2,
    job_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    snapshot_pb2,
)
from koopcast.wire import Bytes, Layout, checksum

__all__ = ["Job"]

SLOWEST_LINK_BYTES_PER_SECOND = 10e6
"""What a default deadline allows for the bytes of a snapshot or an answer."""


class Job:
    """One training run at the service. Made by `Client.open_job`; safe to use from several threads.

    The writer holds a lease: any call but `status` renews it, and the client's heartbeat does while nothing is
    called.

    Attributes:
        name: the job's name.
        stride: trainer steps between two snapshots of a segment.
        operator: its operator settings.
        memory_bytes: memory the job holds on the service's device.
        resumed: whether an existing job, with its window, was resumed.
        segment: the current segment; the next push carries it.
        snapshots_held: weight snapshots in the window, as of the last answer.
        bytes_sent: snapshot bytes sent through this object.
        bytes_received: displacement bytes received through this object.
    """

    def __init__(
        self,
        connection: Connection,
        opened: job_pb2.OpenJobResponse,
        request: job_pb2.OpenJobRequest,
        layout: Layout,
        operator: Operator,
        timeout_seconds: float,
    ) -> None:
        """Hold an opened job; use `Client.open_job`."""
        self.name = request.name
        self.stride = request.spec.stride
        self.operator = operator
        self.memory_bytes = opened.memory_bytes
        self.resumed = opened.resumed
        self.segment = opened.segment + 1
        self.snapshots_held = opened.snapshots_held
        self.bytes_sent = 0
        self.bytes_received = 0
        self.lease_seconds = opened.lease_seconds
        self.last_contact = time.monotonic()
        self._connection = connection
        self._lease_id = opened.lease_id
        self._layout = layout
        self._timeout_seconds = timeout_seconds
        self._push_lock = threading.Lock()
        self._last: tuple[int, int, Bytes] | None = None
        self._closed = False

    def push(
        self,
        step: int,
        tensors: Mapping[str, Any],
        *,
        averaging: int = 1,
        clock: float | None = None,
        timeout_seconds: float | None = None,
    ) -> PushResult:
        """Sends a snapshot; returns when the service has accepted it. The arrays are copied first.

        Args:
            step: the trainer's step, a whole number >= 0; within a segment it rises by exactly the stride.
            tensors: name to NumPy array or torch tensor, names, shapes and dtypes as when the job was opened.
            averaging: the arrays are the mean of the last `averaging` steps.
            clock: the snapshot's clock, e.g. the summed learning rate, for predictions with `clock_intervals`; rises
                within a segment. By default the step.
            timeout_seconds: deadline; by default the client's plus what the bytes need at 10 MB/s.

        Raises:
            ArgumentValueError, ArgumentTypeError: found before anything is sent.
            InvalidArgument: non-finite values, or a step off the stride.
            FailedPrecondition: a step that does not rise.
            AlreadyExists: the step is held with other bytes.
            LeaseLost, NotFound, Unavailable, DeadlineExceeded: as their names say.
        """
        self._check_open()
        step = check_whole("step", step, 0)
        averaging = check_whole("averaging", averaging, 1, 2**32 - 1)
        clock = None if clock is None else check_finite("clock", clock)
        with self._push_lock:
            packed = self._layout.pack(tensors)
            segment = self.segment
            header = snapshot_pb2.SnapshotHeader(
                job=self.name,
                lease_id=self._lease_id,
                segment=segment,
                step=step,
                tensors=tensors_to_messages(self._layout.specs),
                total_bytes=len(packed),
                digest=checksum(packed).to_bytes(4, "big"),
                averaging=averaging,
                clock=clock,
            )
            upload = Upload(header, packed, self._layout)
            try:
                result = upload.run(self._connection, self._deadline(timeout_seconds, len(packed)))
            except (DeadlineExceeded, Unavailable, Cancelled, InternalError):
                self._last = None  # it may have been accepted: the next answer must bring its own base
                raise
            finally:
                self.bytes_sent += upload.bytes_sent
            self._touch()
            self.snapshots_held = result.snapshots_held
            if self._is_newest(result, segment, step):
                self._last = (segment, step, packed)
            return result

    @overload
    def predict_ahead(
        self,
        horizon: float | None = None,
        *,
        from_step: int | None = None,
        operators: None = None,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 256,
        timeout_seconds: float | None = None,
    ) -> Prediction: ...

    @overload
    def predict_ahead(
        self,
        horizon: Sequence[float],
        *,
        from_step: int | None = None,
        operators: None = None,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 256,
        timeout_seconds: float | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict_ahead(
        self,
        horizon: Sequence[float] | float | None = None,
        *,
        from_step: int | None = None,
        operators: Sequence[Operator],
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 256,
        timeout_seconds: float | None = None,
    ) -> list[Prediction]: ...

    def predict_ahead(
        self,
        horizon: Sequence[float] | float | None = None,
        *,
        from_step: int | None = None,
        operators: Sequence[Operator] | None = None,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 256,
        timeout_seconds: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Asks for the weights' displacement `horizon` trainer steps ahead.

        Args:
            horizon: steps ahead of `from_step`, > 0 and at most 2**53; a sequence of them gives a list, in order. None:
                the job's trusted horizon, which grows with accepted and shrinks with rejected jumps (see `report`).
            from_step: where the trainer is; by default the step of the last snapshot.
            operators: answer with the rank, ridge, debiasing and stabilisation of each of these instead of the job's,
                on the same window; gives a list, all horizons of the first operator, then of the second, and so on.
            clock_intervals: the horizons on the clock that the snapshots were pushed with (e.g. summed learning rate),
                one for each: the snapshots are then resampled to a uniform clock, on which training under a
                schedule is more nearly autonomous.
            from_clock: with `clock_intervals`, the clock at `from_step`; by default the last snapshot's.
            max_blocks: blocks to report on at most, 1 to 4096; `Prediction.summary` speaks of all.
            timeout_seconds: deadline; by default the client's plus what the bytes need at 10 MB/s.

        Raises:
            ArgumentValueError, ArgumentTypeError: a horizon <= 0, NaN or infinite; no horizon.
            FailedPrecondition: too few snapshots (the details hold both numbers), or a clock too uneven to resample.
            InvalidArgument: `from_step` or `from_clock` before the last snapshot.
        """
        self._check_open()
        horizons = [] if horizon is None else check_horizons(horizon)
        from_step = None if from_step is None else check_whole("from_step", from_step, 0)
        overrides = check_operators(operators)
        request = prediction_pb2.PredictAheadRequest(
            job=self.name,
            lease_id=self._lease_id,
            horizons=horizons,
            from_step=from_step,
            operators=[override_to_message(operator) for operator in overrides],
            include_base=self._last is None,
            clock_intervals=[] if clock_intervals is None else check_horizons(clock_intervals),
            from_clock=None if from_clock is None else check_finite("from_clock", from_clock),
            max_blocks=check_whole("max_blocks", max_blocks, 1, 2**32 - 1),
        )
        answer_bytes = 8 * self._layout.elements * max(1, len(horizons)) * max(1, len(overrides))
        predictions = self._answers(request, self._deadline(timeout_seconds, answer_bytes))
        single = operators is None and not isinstance(horizon, Sequence)
        return predictions[0] if single else predictions

    def report(
        self,
        prediction: Prediction | str,
        *,
        accepted: bool,
        loss_before: float | None = None,
        loss_after: float | None = None,
    ) -> None:
        """Tells the service what became of a prediction, or of the prediction with that id.

        Raises:
            NotFound: the job, or the prediction, is not known.
        """
        self._check_open()
        prediction_id = prediction.id if isinstance(prediction, Prediction) else prediction
        if not isinstance(prediction_id, str):
            raise ArgumentTypeError(
                f"prediction must be a Prediction or its id, not {prediction!r}", field="prediction"
            )
        request = prediction_pb2.ReportOutcomeRequest(
            job=self.name,
            lease_id=self._lease_id,
            prediction_id=prediction_id,
            accepted=bool(accepted),
            loss_before=loss_or_none("loss_before", loss_before),
            loss_after=loss_or_none("loss_after", loss_after),
        )
        self._connection.call(
            lambda channel: prediction_pb2_grpc.PredictionServiceStub(channel).ReportOutcome,
            request,
            self._timeout_seconds,
        )
        self._touch()

    def start_segment(self) -> int:
        """Begins a new segment: the trajectory broke (a jump, a restart, another stride). Returns its number.

        The window is kept until the next push, which empties it and may carry any step.
        """
        self._check_open()
        with self._push_lock:
            self.segment += 1
            return self.segment

    def status(self, first_block: int = 0, max_blocks: int = 256) -> JobStatus:
        """The job's state, with the operators of the window as it is now.

        Args:
            first_block: number of the first block to tell of.
            max_blocks: blocks to tell of at most, 1 to 4096; `JobStatus.summary` speaks of all.
        """
        self._check_open()
        response = self._connection.call(
            lambda channel: job_pb2_grpc.JobServiceStub(channel).GetJob,
            job_pb2.GetJobRequest(
                name=self.name,
                first_block=check_whole("first_block", first_block, 0, 2**32 - 1),
                max_blocks=check_whole("max_blocks", max_blocks, 1, 2**32 - 1),
            ),
            self._timeout_seconds,
        )
        return status_from_message(response.job)

    def renew(self) -> None:
        """Renews the lease. The client's heartbeat calls this; LeaseLost where somebody took the job."""
        request = job_pb2.RenewLeaseRequest(name=self.name, lease_id=self._lease_id)
        self._connection.call(
            lambda channel: job_pb2_grpc.JobServiceStub(channel).RenewLease, request, self._timeout_seconds
        )
        self._touch()

    def close(self, *, keep: bool = False, timeout_seconds: float | None = None) -> None:
        """Gives the job up and frees its memory and name; does nothing the second time.

        Args:
            keep: only release the lease: the job and its window stay for the next writer, until they expire.
            timeout_seconds: deadline; by default the client's.
        """
        if self._closed:
            return
        self._closed = True
        request = job_pb2.CloseJobRequest(name=self.name, lease_id=self._lease_id, keep=keep)
        self._connection.call(
            lambda channel: job_pb2_grpc.JobServiceStub(channel).CloseJob,
            request,
            self._timeout_seconds if timeout_seconds is None else timeout_seconds,
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the job; after an exception keep it for the next writer, since the run may come back."""
        if kind is None:
            self.close()
            return
        with contextlib.suppress(KoopcastError):  # the block's own exception is the one to hear of
            self.close(keep=True)

    def _answers(
        self, request: prediction_pb2.PredictAheadRequest, deadline_seconds: float
    ) -> list[Prediction]:
        with self._connection.errors():
            stub = prediction_pb2_grpc.PredictionServiceStub(self._connection.channel())
            answers = stub.PredictAhead(request, timeout=deadline_seconds, metadata=self._connection.metadata)
            try:
                predictions, received = read_answers(answers, self._layout, self._base_lookup())
            finally:
                answers.cancel()  # an answer that is not read to its end must not keep the service waiting
        self.bytes_received += received
        self._touch()
        return predictions

    def _is_newest(self, result: PushResult, segment: int, step: int) -> bool:
        if result.outcome == "superseded":
            return False
        return result.outcome == "accepted" or self._last is None or (segment, step) > self._last[:2]

    def _base_lookup(self) -> Any:
        last, layout = self._last, self._layout

        def lookup(segment: int, step: int) -> Tensors:
            if last is None or last[:2] != (segment, step):
                raise FailedPrecondition(
                    f"the snapshot of step {step} was not pushed last through this Job: its weights are not here",
                    reason="BASE_NOT_HELD",
                    step=step,
                )
            return layout.split(layout.unpack(last[2], layout.storage_dtype))

        return lookup

    def _deadline(self, timeout_seconds: float | None, transfer_bytes: int) -> float:
        if timeout_seconds is not None:
            return check_finite("timeout_seconds", timeout_seconds)
        return self._timeout_seconds + transfer_bytes / SLOWEST_LINK_BYTES_PER_SECOND

    def _touch(self) -> None:
        self.last_contact = time.monotonic()

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition(f"job {self.name!r} was closed here; open it again", reason="JOB_CLOSED")
