"""A job: one training run at the service, as its writer sees it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

from koopcast.answer_calls import AnswerCalls
from koopcast.arguments import check_finite, check_whole, loss_or_none
from koopcast.channel import Connection
from koopcast.delta import Differences
from koopcast.encoding import DifferenceCode
from koopcast.errors import (
    ArgumentTypeError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    KoopcastError,
    Unavailable,
)
from koopcast.gram import WindowHolder
from koopcast.gram_calls import GramCalls
from koopcast.messages import DTYPE_NAMES, ENCODING_NAMES, tensors_to_messages
from koopcast.operator import Operator
from koopcast.payload import Payload, RawPayload
from koopcast.prediction import Prediction
from koopcast.shared_memory import SharedRing
from koopcast.short_upload import SHORT_SNAPSHOT_BYTES, ShortUpload
from koopcast.status import JobStatus, status_from_message
from koopcast.upload import PushResult, Upload
from koopcast.v1 import (
    job_pb2,
    job_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    snapshot_pb2,
)
from koopcast.wire import Floats, Layout

__all__ = ["Job"]

SLOWEST_LINK_BYTES_PER_SECOND = 10e6
"""What a default deadline allows for the bytes of a snapshot or an answer."""


class Job(AnswerCalls, GramCalls):
    """One training run at the service. Made by `Client.open_job`; safe to use from several threads.

    The writer holds a lease: any call but `status` renews it, and the client's heartbeat does while nothing is
    called.

    Attributes:
        name: the job's name.
        stride: trainer steps between two snapshots of a segment.
        operator: its operator settings.
        window_holder: ``"server"`` or ``"trainer"``: where the snapshots are.
        shard_index: which shard this object speaks for.
        memory_bytes: memory the job holds on the service's device.
        resumed: whether an existing job, with its window, was resumed.
        segment: the current segment; the next push carries it.
        held_segment: segment of the newest snapshot in the window when the job was opened; 0: none.
        held_step: its step.
        held_averaging: of so many steps it is the mean.
        snapshots_held: weight snapshots in the window, as of the last answer.
        keep_weights: whether a copy of the last snapshot pushed is kept, from which `Prediction.weights` is made; else
            the service sends it when they are asked for.
        bytes_sent: snapshot bytes sent through this object, and messages of Gram rows.
        bytes_resent: of these, what had been sent before, over a connection that broke.
        bytes_received: displacement bytes received through this object, and messages of coefficients.
    """

    def __init__(
        self,
        connection: Connection,
        opened: job_pb2.OpenJobResponse,
        request: job_pb2.OpenJobRequest,
        layout: Layout,
        operator: Operator,
        timeout_seconds: float,
        ring: SharedRing | None = None,
    ) -> None:
        """Hold an opened job; use `Client.open_job`."""
        self._ring = ring
        self.name = request.name
        self.stride = request.spec.stride
        self.operator = operator
        trainer_held = request.spec.window_holder == job_pb2.WINDOW_HOLDER_TRAINER
        self.window_holder: WindowHolder = "trainer" if trainer_held else "server"
        self.shard_index = request.shard_index
        self._joined = bool(request.shared_lease_id)
        self.memory_bytes = opened.memory_bytes
        self.resumed = opened.resumed
        self.segment = opened.segment + 1
        self.snapshots_held = opened.snapshots_held
        self.keep_weights = True
        self.bytes_sent = 0
        self.bytes_resent = 0
        self.bytes_received = 0
        self.lease_seconds = opened.lease_seconds
        self.last_contact = time.monotonic()
        self._connection = connection
        self.held_segment, self.held_step = opened.segment, opened.step
        self.held_averaging = opened.averaging
        self._lease_id = opened.lease_id
        self._spec_digest = opened.spec_digest
        self._takes_short = bool(opened.spec_digest)  # until it says otherwise
        self._layout = layout
        self._timeout_seconds = timeout_seconds
        self._push_lock = threading.Lock()
        self._last: tuple[int, int, Callable[[], Floats]] | None = None
        self._wire_dtype = DTYPE_NAMES.get(request.spec.wire_dtype, layout.storage_dtype)
        code = DifferenceCode.of(layout, ENCODING_NAMES[request.spec.encoding], self._wire_dtype)
        self._differences = None if code is None else Differences(layout, code)
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
        """Sends a snapshot; returns when the service has accepted it. The arrays must not change before that.

        A connection that breaks on the way costs what was under way: the upload goes on where the service has it to,
        within its deadline.

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
            segment, encoded = self.segment, self._differences is not None
            raw = RawPayload(self._layout, tensors, keep=self.keep_weights and not encoded)
            header = snapshot_pb2.SnapshotHeader(segment=segment, step=step, averaging=averaging, clock=clock)
            deadline = time.monotonic() + self._deadline(timeout_seconds, raw.nbytes)
            send = partial(self._upload, header, deadline)
            if self._differences is None:
                result, _ = send(raw, None)
            else:
                result = self._differences.push((segment, step), raw, send)
            if self._is_newest(result, segment, step):
                self._last = self._kept(segment, step, raw) if self.keep_weights else None
            return result

    def _upload(
        self,
        header: snapshot_pb2.SnapshotHeader,
        deadline: float,
        payload: Payload,
        held_digest: bytes | None,
    ) -> tuple[PushResult, Upload | ShortUpload]:
        """Sends what the header names; adds to it what it has to say of the job and of the payload."""
        header.job, header.lease_id = self.name, self._lease_id
        header.total_bytes, header.encoding = payload.nbytes, payload.encoding
        header.reference_segment, header.reference_step = payload.reference or (0, 0)
        if self._spec_digest:
            header.spec_digest = self._spec_digest
        elif not header.tensors:  # a service of before the digest
            header.tensors.extend(tensors_to_messages(self._layout.specs))
        upload: Upload | ShortUpload
        if self._takes_short and held_digest is None and payload.nbytes <= SHORT_SNAPSHOT_BYTES:
            upload = ShortUpload(header, payload)
            try:
                return self._sent(upload, deadline), upload
            except InternalError as error:
                if error.reason != "UNIMPLEMENTED":
                    raise
            self._takes_short = False
        upload = Upload(header, payload, held_digest, self._ring)
        return self._sent(upload, deadline), upload

    def _sent(self, upload: Upload | ShortUpload, deadline: float) -> PushResult:
        try:
            result = upload.run(self._connection, deadline - time.monotonic())
        except (DeadlineExceeded, Unavailable, Cancelled, InternalError):
            self._last = None  # it may have been accepted: the next answer must bring its own base
            raise
        finally:
            self.bytes_sent += upload.bytes_sent
            self.bytes_resent += upload.bytes_resent
        self._touch()
        self.snapshots_held = result.snapshots_held
        return result

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

        A shard that joined with a `shared_lease_id` only lets go of it: the one that opened the job closes it.

        Args:
            keep: only release the lease: the job and its window stay for the next writer, until they expire.
            timeout_seconds: deadline; by default the client's.
        """
        if self._closed:
            return
        self._closed = True
        if self._ring is not None:
            self._ring.close()
        if self._joined:
            return
        request = job_pb2.CloseJobRequest(name=self.name, lease_id=self._lease_id, keep=keep)
        self._connection.call(
            lambda channel: job_pb2_grpc.JobServiceStub(channel).CloseJob,
            request,
            self._timeout_seconds if timeout_seconds is None else timeout_seconds,
        )

    @property
    def shares_memory(self) -> bool:
        """Whether snapshots go through memory shared with the service, and not through a socket."""
        return self._ring is not None and self._ring.usable

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

    def _is_newest(self, result: PushResult, segment: int, step: int) -> bool:
        if result.outcome == "superseded":
            return False
        return result.outcome == "accepted" or self._last is None or (segment, step) > self._last[:2]

    def _kept(self, segment: int, step: int, raw: RawPayload) -> tuple[int, int, Callable[[], Floats]] | None:
        """The snapshot pushed last as the service holds it, in memory of its own."""
        if self._differences is None:
            if raw.kept is None:
                return None
            return segment, step, partial(self._layout.unpack, raw.kept, self._layout.storage_dtype)
        base = self._differences.base() if self._differences.stands_for == (segment, step) else None
        return None if base is None else (segment, step, base.copy)

    def _deadline(self, timeout_seconds: float | None, transfer_bytes: int) -> float:
        if timeout_seconds is not None:
            return check_finite("timeout_seconds", timeout_seconds)
        return self._timeout_seconds + transfer_bytes / SLOWEST_LINK_BYTES_PER_SECOND

    def _touch(self) -> None:
        self.last_contact = time.monotonic()

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition(f"job {self.name!r} was closed here; open it again", reason="JOB_CLOSED")
