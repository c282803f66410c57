"""What the service says of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from koopcast.encoding import EncodingName
from koopcast.gram import WindowHolder
from koopcast.messages import (
    DTYPE_NAMES,
    DTYPE_NUMBERS,
    ENCODING_NAMES,
    ENCODING_NUMBERS,
    tensors_from_messages,
    tensors_to_messages,
)
from koopcast.operator import Operator
from koopcast.operator_messages import operator_from_message, operator_to_message
from koopcast.prediction import (
    Block,
    Summary,
    block_from_message,
    block_to_message,
    summary_from_message,
    summary_to_message,
)
from koopcast.v1 import job_pb2
from koopcast.wire import TensorSpec

__all__ = ["HistoryPoint", "JobStatus", "Lease", "status_from_message", "status_to_message"]


@dataclass(frozen=True, slots=True)
class Lease:
    """Who writes to a job.

    Attributes:
        held: whether somebody does now.
        expires_in_seconds: time until the lease expires without a call; 0 where nobody holds it.
        holder: version string of the holder.
    """

    held: bool
    expires_in_seconds: float
    holder: str


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """What one answer said of the operators, for plots over time.

    Attributes:
        step: step of the newest snapshot then.
        spectral_radius: largest of all blocks, per stride, before eigenvalues are stabilised.
        backtest_error: of all blocks together; NaN where there was none.
        backtest_error_linear: the same for linear extrapolation.
        horizon_steps: trainer steps asked for, the longest where several horizons were.
        predicted_error: predicted relative error at that horizon; NaN where there was no back-test.
        moved: whether any block moved.
    """

    step: int
    spectral_radius: float
    backtest_error: float
    backtest_error_linear: float
    horizon_steps: float
    predicted_error: float
    moved: bool


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The state of a job.

    Attributes:
        name: the job's name.
        owner: identity that opened it.
        tensors: name to TensorSpec, in order.
        stride: trainer steps between snapshots.
        operator: its operator settings.
        window_dtype: element type of the stored velocities.
        wire_dtype: element type of answers.
        encoding: how snapshots may travel, besides raw.
        segment: segment of the newest snapshot, 0 before the first.
        step: step of the newest snapshot, None before the first.
        snapshots_held: weight snapshots in the window.
        snapshots_accepted: accepted since the job was made.
        parameters: number of parameters.
        memory_bytes: memory held on the device.
        bytes_received: snapshot bytes accepted since the job was made.
        bytes_sent: displacement bytes sent since the job was made.
        predictions: predictions answered.
        jumps_accepted: jumps reported as accepted.
        jumps_rejected: jumps reported as rejected.
        last_prediction_seconds: time from the last prediction's request to its first report.
        created: when the job was made.
        pushed: when the newest snapshot was accepted, None before the first.
        lease: who writes to it.
        blocks: operators of the window as it is now, their errors predicted for the trusted horizon; empty while the
            window holds too few snapshots. At most 256 of them unless asked otherwise: a node partition has a hundred
            thousand.
        summary: all blocks together, those that `blocks` leaves out too; None while there is no operator.
        trusted_horizon_steps: trainer steps that the job is trusted to look ahead: more after accepted jumps, fewer
            after rejected ones.
        history: what earlier answers said, oldest first: the newest 512.
        window_holder: ``"server"`` or ``"trainer"``: where the snapshots are.
        shard_count: trainers that hold a part of the window each.
        predictability: share of the squared displacement that the operators foretold, 0 to 1 (see
            `Summary.predictability`), as it was last found, by an answer or by a look at the job: it outlasts the window
            that it was found in. Near 1 jumps pay, near 0 noise moves the weights. None before the first back-test, and
            from services that do not tell it.
    """

    name: str
    owner: str
    tensors: Mapping[str, TensorSpec]
    stride: int
    operator: Operator
    window_dtype: str
    wire_dtype: str
    segment: int
    step: int | None
    snapshots_held: int
    snapshots_accepted: int
    parameters: int
    memory_bytes: int
    bytes_received: int
    bytes_sent: int
    predictions: int
    jumps_accepted: int
    jumps_rejected: int
    last_prediction_seconds: float
    created: datetime
    pushed: datetime | None
    lease: Lease
    blocks: tuple[Block, ...]
    summary: Summary | None = None
    trusted_horizon_steps: float = 0.0
    history: tuple[HistoryPoint, ...] = ()
    encoding: EncodingName = "raw"
    window_holder: WindowHolder = "server"
    shard_count: int = 1
    predictability: float | None = None


def status_from_message(message: job_pb2.JobStatus) -> JobStatus:
    """The state of a job from its message."""
    spec = message.spec
    pushed = message.pushed_unix_seconds
    return JobStatus(
        name=message.name,
        owner=message.owner,
        tensors=tensors_from_messages(spec.tensors),
        stride=spec.stride,
        operator=operator_from_message(spec.operator),
        window_dtype=DTYPE_NAMES.get(spec.window_dtype, "unknown"),
        wire_dtype=DTYPE_NAMES.get(spec.wire_dtype, "unknown"),
        segment=message.segment,
        step=message.step if message.snapshots_held else None,
        snapshots_held=message.snapshots_held,
        snapshots_accepted=message.snapshots_accepted,
        parameters=message.parameters,
        memory_bytes=message.memory_bytes,
        bytes_received=message.bytes_received,
        bytes_sent=message.bytes_sent,
        predictions=message.predictions,
        jumps_accepted=message.jumps_accepted,
        jumps_rejected=message.jumps_rejected,
        last_prediction_seconds=message.last_prediction_seconds,
        created=datetime.fromtimestamp(message.created_unix_seconds, UTC),
        pushed=datetime.fromtimestamp(pushed, UTC) if pushed else None,
        lease=Lease(message.lease.held, message.lease.expires_in_seconds, message.lease.holder),
        blocks=tuple(map(block_from_message, message.blocks)),
        summary=summary_from_message(message.summary) if message.HasField("summary") else None,
        trusted_horizon_steps=message.trusted_horizon_steps,
        history=tuple(map(_point_from_message, message.history)),
        encoding=ENCODING_NAMES.get(spec.encoding, "raw"),
        window_holder="trainer" if spec.window_holder == job_pb2.WINDOW_HOLDER_TRAINER else "server",
        shard_count=max(1, spec.shard_count),
        predictability=message.predictability if message.HasField("predictability") else None,
    )


def status_to_message(status: JobStatus) -> job_pb2.JobStatus:
    """The message of a job's state."""
    return job_pb2.JobStatus(
        name=status.name,
        owner=status.owner,
        spec=job_pb2.JobSpec(
            tensors=tensors_to_messages(status.tensors),
            stride=status.stride,
            operator=operator_to_message(status.operator),
            window_dtype=DTYPE_NUMBERS[status.window_dtype],
            wire_dtype=DTYPE_NUMBERS[status.wire_dtype],
            encoding=ENCODING_NUMBERS[status.encoding],
            window_holder=job_pb2.WINDOW_HOLDER_TRAINER
            if status.window_holder == "trainer"
            else job_pb2.WINDOW_HOLDER_SERVER,
            shard_count=status.shard_count if status.shard_count > 1 else 0,
        ),
        segment=status.segment,
        step=status.step,
        snapshots_held=status.snapshots_held,
        snapshots_accepted=status.snapshots_accepted,
        parameters=status.parameters,
        memory_bytes=status.memory_bytes,
        bytes_received=status.bytes_received,
        bytes_sent=status.bytes_sent,
        predictions=status.predictions,
        jumps_accepted=status.jumps_accepted,
        jumps_rejected=status.jumps_rejected,
        last_prediction_seconds=status.last_prediction_seconds,
        created_unix_seconds=status.created.timestamp(),
        pushed_unix_seconds=status.pushed.timestamp() if status.pushed else 0.0,
        lease=job_pb2.LeaseStatus(
            held=status.lease.held,
            expires_in_seconds=status.lease.expires_in_seconds,
            holder=status.lease.holder,
        ),
        blocks=list(map(block_to_message, status.blocks)),
        summary=None if status.summary is None else summary_to_message(status.summary),
        trusted_horizon_steps=status.trusted_horizon_steps,
        history=list(map(_point_to_message, status.history)),
        predictability=status.predictability,
    )


def _point_from_message(message: job_pb2.HistoryPoint) -> HistoryPoint:
    return HistoryPoint(
        step=message.step,
        spectral_radius=message.spectral_radius,
        backtest_error=message.backtest_error,
        backtest_error_linear=message.backtest_error_linear,
        horizon_steps=message.horizon_steps,
        predicted_error=message.predicted_error,
        moved=message.moved,
    )


def _point_to_message(point: HistoryPoint) -> job_pb2.HistoryPoint:
    return job_pb2.HistoryPoint(
        step=point.step,
        spectral_radius=point.spectral_radius,
        backtest_error=point.backtest_error,
        backtest_error_linear=point.backtest_error_linear,
        horizon_steps=point.horizon_steps,
        predicted_error=point.predicted_error,
        moved=point.moved,
    )
