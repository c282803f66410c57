"""Requests of the gRPC API, checked and turned into what the jobs understand. Pure functions."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Mapping
from typing import Final

from koopcast.channel import is_local
from koopcast.encoding import EncodingName
from koopcast.errors import FailedPrecondition, InvalidArgument
from koopcast.gram import MAX_SHARDS
from koopcast.messages import DTYPE_NAMES, ENCODING_NAMES, tensors_from_messages
from koopcast.operator import Operator
from koopcast.operator_messages import operator_from_message, override_from_message
from koopcast.v1 import (
    job_pb2,
    prediction_pb2,
    snapshot_pb2,
    tensor_pb2,
)
from koopcast.wire import TensorSpec, storage_dtype
from koopcast_server.answering import Question
from koopcast_server.job import Job, JobSpec
from koopcast_server.judging import SnapshotIdentity
from koopcast_server.shared_memory import Offer

__all__ = [
    "asks_for_one",
    "dtype_name",
    "identity_from_header",
    "is_on_this_host",
    "most_blocks",
    "offer_of",
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
_UPLOAD_ID_BYTES: Final = 16


def is_on_this_host(peer: str) -> bool:
    """Whether gRPC's name for the other end of a connection is a Unix socket's or a loopback address."""
    kind, _, address = urllib.parse.unquote(peer).partition(":")
    return kind == "unix" or (kind in {"ipv4", "ipv6"} and is_local(address))


def offer_of(message: job_pb2.SharedMemory) -> Offer:
    """The memory that a client offers, not yet checked."""
    return Offer(message.name, message.size_bytes, message.nonce)


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
    operator = operator_from_message(message.operator)
    trainer_held = _is_trainer_held(message, operator)
    tensors = tensors_from_messages(message.tensors)
    stored = storage_dtype([spec.dtype for spec in tensors.values()])
    return JobSpec(
        tensors=tuple(tensors.items()),
        stride=message.stride,
        operator=operator,
        window_dtype=dtype_name(message.window_dtype, "window_dtype") or stored,
        wire_dtype=dtype_name(message.wire_dtype, "wire_dtype") or stored,
        trainer_held=trainer_held,
        shard_count=max(1, message.shard_count),
        encoding=_encoding_of(message, trainer_held=trainer_held),
    )


def _encoding_of(message: job_pb2.JobSpec, *, trainer_held: bool) -> EncodingName:
    encoding = ENCODING_NAMES.get(message.encoding)
    if encoding is None:
        raise InvalidArgument(f"unknown encoding number {message.encoding}", field="encoding")
    if encoding != "raw" and trainer_held:
        raise InvalidArgument(
            f"encoding {encoding} is for snapshots that travel: of a window that the trainer holds none does",
            field="encoding",
        )
    return encoding


def _is_trainer_held(message: job_pb2.JobSpec, operator: Operator) -> bool:
    """Whether the trainer holds the window, if it can, in so many shards."""
    if message.window_holder not in job_pb2.WindowHolder.values():
        raise InvalidArgument(f"unknown window_holder number {message.window_holder}", field="window_holder")
    if message.window_holder != job_pb2.WINDOW_HOLDER_TRAINER:
        if message.shard_count > 1:
            raise InvalidArgument(
                "shard_count above 1 is for windows that the trainer holds (window_holder)",
                field="shard_count",
            )
        return False
    if message.shard_count > MAX_SHARDS:
        raise InvalidArgument(
            f"at most {MAX_SHARDS} shards, not {message.shard_count}", field="shard_count", limit=MAX_SHARDS
        )
    if operator.window == "segment":
        raise InvalidArgument(
            'window="segment" accumulates whole snapshots at the service: a window that the trainer holds is of so many '
            "snapshots",
            field="window",
        )
    if message.shard_count > 1 and operator.partition not in ("network", "tensor"):
        raise InvalidArgument(
            f"partition={operator.partition!r} has operators of units, which must be whole where they live: with "
            'shards use partition="tensor" or "network"',
            field="partition",
        )
    return True


def identity_from_header(
    header: snapshot_pb2.SnapshotHeader, job: Job, *, comes_whole: bool = False
) -> SnapshotIdentity:
    """Which snapshot a header speaks of, for this job.

    Args:
        header: what the writer says of it.
        job: the job it names.
        comes_whole: all bytes come with the header, which must say their digest.

    Raises:
        InvalidArgument: a value out of range, or one this service does not implement.
    """
    encoding = ENCODING_NAMES.get(header.encoding)
    if encoding is None or encoding not in ("raw", job.spec.encoding):
        raise InvalidArgument(
            f"encoding number {header.encoding} is not the job's, which is {job.spec.encoding}, nor raw",
            field="encoding",
        )
    code = None if encoding == "raw" else job.code
    if header.shard_index:
        raise InvalidArgument("this service holds no window in shards", field="shard_index")
    _refuse_other_tensors(header, job)
    total_bytes = job.layout.nbytes if code is None else code.nbytes
    if header.total_bytes != total_bytes:
        raise InvalidArgument(
            f"total_bytes is {header.total_bytes}; the job's tensors have {total_bytes}, {encoding}",
            field="total_bytes",
        )
    if len(header.digest) not in (0, 4):
        raise InvalidArgument("digest is the 4 bytes of a crc32c", field="digest")
    if comes_whole and not header.digest:
        raise InvalidArgument("the header gives no digest", field="digest")
    if header.digest and code is not None and not comes_whole:
        raise InvalidArgument(
            f"the digest of a snapshot with encoding {encoding} comes with the commit", field="digest"
        )
    if len(header.upload_id) > _UPLOAD_ID_BYTES or (header.resume and not header.upload_id):
        raise InvalidArgument(
            f"upload_id has at most {_UPLOAD_ID_BYTES} bytes, and at least one where resume is set",
            field="upload_id",
        )
    if header.HasField("clock") and not math.isfinite(header.clock):
        raise InvalidArgument("clock must be finite", field="clock")
    return SnapshotIdentity(
        segment=header.segment,
        step=header.step,
        digest=header.digest,
        averaging=max(1, header.averaging),
        clock=header.clock if header.HasField("clock") else float(header.step),
        total_bytes=header.total_bytes,
        encoding=encoding,
        reference=None if code is None else (header.reference_segment, header.reference_step),
        upload_id=header.upload_id,
    )


def _refuse_other_tensors(header: snapshot_pb2.SnapshotHeader, job: Job) -> None:
    """Compares what a header says of its tensors, in full or by their digest."""
    if header.spec_digest:
        if header.spec_digest != job.spec.tensors_digest:
            raise InvalidArgument(
                "spec_digest is not that of the job's tensors: it is the one that OpenJob answered with",
                field="spec_digest",
            )
        if not header.tensors:
            return
    tensors = tensors_from_messages(header.tensors)
    if tuple(tensors.items()) != job.spec.tensors:
        raise InvalidArgument(_tensor_difference(tensors, job), field="tensors")


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
    if request.shard_index or request.modes:
        raise InvalidArgument("this service does not implement shard_index and modes", field="shard_index")
    base = job.spec.operator
    return [override_from_message(message, base) for message in request.operators] or [base]


def asks_for_one(request: prediction_pb2.PredictAheadRequest) -> bool:
    """Whether a request asks for one prediction of the last answers, by its id.

    Raises:
        InvalidArgument: it does, and asks for something new as well.
    """
    if not request.prediction_id:
        return False
    new = ("horizons", "operators", "clock_intervals", "from_step", "from_clock")
    given = [descriptor.name for descriptor, _ in request.ListFields() if descriptor.name in new]
    if given:
        raise InvalidArgument(
            f"prediction_id asks for a prediction that was made: leave out {', '.join(given)}", field=given[0]
        )
    return True


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
