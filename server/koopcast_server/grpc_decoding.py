"""Requests of the gRPC API, checked and turned into what the jobs understand. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from koopcast.errors import FailedPrecondition, InvalidArgument
from koopcast.messages import DTYPE_NAMES, tensors_from_messages
from koopcast.operator import Operator
from koopcast.operator_messages import operator_from_message, override_from_message
from koopcast.v1 import (
    job_pb2,
    prediction_pb2,
    snapshot_pb2,
    tensor_pb2,
)
from koopcast.wire import TensorSpec, storage_dtype
from koopcast_server.held_window import Question
from koopcast_server.job import Job, JobSpec
from koopcast_server.uploads import SnapshotIdentity

__all__ = [
    "dtype_name",
    "identity_from_header",
    "most_blocks",
    "operators_of",
    "question_of",
    "spec_from_message",
]

_MAX_TENSORS: Final = 65_536
_MAX_HORIZONS: Final = 64
_MAX_OPERATORS: Final = 16
_MAX_STRIDE: Final = 2**31
_LAST_STEP: Final = 2**53
_FARTHEST: Final = 2.0**53
_DEFAULT_BLOCKS: Final = 256
_MOST_BLOCKS: Final = 4096
_RAW: Final = (tensor_pb2.ENCODING_UNSPECIFIED, tensor_pb2.ENCODING_RAW)


def spec_from_message(message: job_pb2.JobSpec) -> JobSpec:
    """What a job is to be made of.

    Raises:
        InvalidArgument: a value out of range, or one this service does not implement.
    """
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
        window_dtype=dtype_name(message.window_dtype, "window_dtype") or stored,
        wire_dtype=dtype_name(message.wire_dtype, "wire_dtype") or stored,
    )


def identity_from_header(header: snapshot_pb2.SnapshotHeader, job: Job) -> SnapshotIdentity:
    """Which snapshot a header speaks of, for this job.

    Raises:
        InvalidArgument: a value out of range, or one this service does not implement.
    """
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
    clock = header.clock if header.HasField("clock") else float(header.step)
    return SnapshotIdentity(header.segment, header.step, header.digest, max(1, header.averaging), clock)


def _tensor_difference(tensors: Mapping[str, TensorSpec], job: Job) -> str:
    expected = dict(job.spec.tensors)
    for name in {**expected, **tensors}:
        if tensors.get(name) != expected.get(name):
            return f"tensor {name!r}: the snapshot has {tensors.get(name)}, the job {expected.get(name)}"
    return "the snapshot's tensors are in another order than the job's"


def operators_of(request: prediction_pb2.PredictAheadRequest, job: Job) -> list[Operator]:
    """The operators a request asks for; the job's own where it names none.

    Raises:
        InvalidArgument: a value out of range, or one this service does not implement.
    """
    if len(request.operators) > _MAX_OPERATORS:
        raise InvalidArgument(f"at most {_MAX_OPERATORS} operators", field="operators", limit=_MAX_OPERATORS)
    if request.coefficients_only or request.shard_index or request.modes:
        raise InvalidArgument(
            "this service does not implement coefficients_only, shard_index and modes",
            field="coefficients_only",
        )
    base = job.spec.operator
    return [override_from_message(message, base) for message in request.operators] or [base]


def question_of(request: prediction_pb2.PredictAheadRequest, job: Job) -> Question:
    """What is asked of the window as it is now.

    Raises:
        FailedPrecondition: the window holds too few snapshots, or none that could be resampled.
        InvalidArgument: horizons that are none, or `from_step` before the last snapshot.
    """
    horizons = tuple(request.horizons) or (job.trusted.steps,)
    _refuse_no_horizons("horizons", horizons)
    offset_steps = _offset_of(request, job)
    blocks = most_blocks(request.max_blocks)
    if not request.clock_intervals:
        return Question(horizons, offset_steps, most_blocks=blocks)
    intervals = tuple(request.clock_intervals)
    _refuse_no_horizons("clock_intervals", intervals)
    if len(intervals) != len(horizons):
        raise InvalidArgument(
            f"{len(intervals)} clock_intervals for {len(horizons)} horizons", field="clock_intervals"
        )
    if job.spec.operator.window == "segment":
        raise FailedPrecondition(
            'window="segment" stores no snapshots that could be resampled to a uniform clock; ask in steps',
            reason="UNEVEN_CLOCK",
        )
    newest = job.clocks[-1]
    offset = request.from_clock - newest if request.HasField("from_clock") else 0.0
    if not (math.isfinite(offset) and offset >= 0):
        raise InvalidArgument(
            f"from_clock {request.from_clock} lies before the last snapshot's, {newest}",
            field="from_clock",
            newest=newest,
        )
    return Question(horizons, offset_steps, tuple(job.clocks), intervals, offset, blocks)


def most_blocks(asked: int) -> int:
    """Blocks to report on: 256 unless asked otherwise, at most 4096."""
    return min(asked or _DEFAULT_BLOCKS, _MOST_BLOCKS)


def _refuse_no_horizons(field: str, horizons: tuple[float, ...]) -> None:
    if len(horizons) > _MAX_HORIZONS:
        raise InvalidArgument(
            f"at most {_MAX_HORIZONS} {field}, not {len(horizons)}", field=field, limit=_MAX_HORIZONS
        )
    for horizon in horizons:
        if not (0 < horizon <= _FARTHEST):
            raise InvalidArgument(f"{field} must be > 0 and at most 2**53, not {horizon}", field=field)


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


def dtype_name(number: int, field: str) -> str | None:
    """Name of an element type; None where it is unspecified.

    Raises:
        InvalidArgument: a value out of range, or one this service does not implement.
    """
    if number == tensor_pb2.ELEMENT_TYPE_UNSPECIFIED:
        return None
    if number not in DTYPE_NAMES:
        raise InvalidArgument(f"unknown {field} number {number}", field=field)
    return DTYPE_NAMES[number]
