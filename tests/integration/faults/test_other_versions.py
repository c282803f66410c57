"""Clients of other versions: fields and values that this service does not know, and fields that they do not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message

from faulty import weights
from koopcast.channel import error_from_call
from koopcast.v1 import job_pb2, prediction_pb2, snapshot_pb2, tensor_pb2
from koopcast.wire import checksum
from nursery import ForkedService, Nursery
from raw import Stubs, spec_of, stubs

M = TypeVar("M", bound=Message)

ELEMENTS = 40_000
UNKNOWN = (
    b"\xf8\x7c\x2a"  # field 1999, varint
    b"\x82\x7d\x03new"  # field 2000, bytes
    b"\x89\x7d\x01\x02\x03\x04\x05\x06\x07\x08"  # field 2001, fixed64
    b"\x95\x7d\x01\x02\x03\x04"  # field 2002, fixed32
)
NOT_THERE = 77
"""An enum's value of a later version."""


@pytest.fixture(scope="module")
def service(cradle: Nursery) -> Iterator[ForkedService]:
    started = cradle.service("--memory-limit", "1GiB", "--http", "off", "--log-level", "warning")
    started.start()
    yield started
    started.kill()
    assert started.errors == []


@pytest.fixture
def raw(service: ForkedService, _clean: None) -> Iterator[Stubs]:
    with stubs(service.target) as made:
        yield made


def unchanged(message: M) -> M:
    return message


def foreign(message: M) -> M:
    """The message with fields of a later version, in it and in every message within."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                foreign(inner)
    message.MergeFromString(UNKNOWN)
    return message


def conversation(raw: Stubs, name: str, say: Callable[[Any], Any]) -> list[bytes]:
    """A job from its opening to its closing; the displacement's chunks."""
    push = snapshot_pb2.PushSnapshotRequest
    opened = raw.jobs.OpenJob(
        say(job_pb2.OpenJobRequest(name=name, spec=spec_of((ELEMENTS,)), protocol_version=9)), timeout=20
    )
    key: dict[str, Any] = {"job": name, "lease_id": opened.lease_id}
    for step in range(4):
        data = weights(step, ELEMENTS)["w"].tobytes()
        header = snapshot_pb2.SnapshotHeader(
            **key, segment=1, step=step, spec_digest=opened.spec_digest, total_bytes=len(data)
        )
        chunk = snapshot_pb2.SnapshotChunk(data=data, crc32c=checksum(data))
        commit = snapshot_pb2.SnapshotCommit(digest=checksum(data).to_bytes(4, "big"))
        messages = [push(header=header), push(chunk=chunk), push(commit=commit)]
        *_, last = raw.snapshots.PushSnapshot(iter([say(message) for message in messages]), timeout=20)
        assert last.result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED
    ask = prediction_pb2.PredictAheadRequest(**key, horizons=[3.0])
    answers = list(raw.predictions.PredictAhead(say(ask), timeout=20))
    told = prediction_pb2.ReportOutcomeRequest(
        **key, prediction_id=answers[0].report.prediction_id, accepted=True
    )
    assert raw.predictions.ReportOutcome(say(told), timeout=20).jumps_accepted == 1
    assert raw.jobs.GetJob(say(job_pb2.GetJobRequest(name=name)), timeout=20).job.snapshots_held == 4
    raw.jobs.RenewLease(say(job_pb2.RenewLeaseRequest(name=name, lease_id=opened.lease_id)), timeout=20)
    assert raw.jobs.ListJobs(say(job_pb2.ListJobsRequest()), timeout=20).jobs
    raw.jobs.CloseJob(say(job_pb2.CloseJobRequest(name=name, lease_id=opened.lease_id)), timeout=20)
    return [answer.chunk.data for answer in answers[1:]]


def test_fields_of_a_later_version_change_nothing(raw: Stubs) -> None:
    assert conversation(raw, "later", foreign) == conversation(raw, "this", unchanged) != []


def test_gram_rows_of_a_later_version_count(raw: Stubs) -> None:
    spec = spec_of((ELEMENTS,))
    spec.window_holder = job_pb2.WINDOW_HOLDER_TRAINER
    lease_id = raw.open("rows", spec).lease_id
    row = snapshot_pb2.PushGramRowRequest(
        job="rows", lease_id=lease_id, segment=1, step=1, weights_squared=[1.0]
    )
    assert raw.snapshots.PushGramRow(foreign(row), timeout=20).snapshots_held == 1


@pytest.mark.parametrize(("spoken", "chosen"), [(1, 1), (2, 1), (2**32 - 1, 1)])
def test_the_older_protocol_of_the_two_is_chosen(raw: Stubs, spoken: int, chosen: int) -> None:
    request = job_pb2.OpenJobRequest(name=f"speaks-{spoken}", spec=spec_of((4,)), protocol_version=spoken)
    assert raw.jobs.OpenJob(request, timeout=20).protocol_version == chosen


TENSORS = [tensor_pb2.TensorSpec(name="t0", dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32, shape=(4,))]
OF_NO_TYPE = [tensor_pb2.TensorSpec(name="t0", dtype=NOT_THERE, shape=(4,))]  # type: ignore[arg-type]  # no such number yet


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("protocol_version", {"protocol_version": 0}),
        ("if_exists", {"if_exists": NOT_THERE}),
        ("window_dtype", {"spec": {"tensors": TENSORS, "stride": 1, "window_dtype": NOT_THERE}}),
        ("wire_dtype", {"spec": {"tensors": TENSORS, "stride": 1, "wire_dtype": NOT_THERE}}),
        ("window_holder", {"spec": {"tensors": TENSORS, "stride": 1, "window_holder": NOT_THERE}}),
        ("encoding", {"spec": {"tensors": TENSORS, "stride": 1, "encoding": NOT_THERE}}),
        ("t0", {"spec": {"tensors": OF_NO_TYPE, "stride": 1}}),
    ],
)
def test_a_job_that_is_not_understood_is_refused_by_name(
    raw: Stubs, job_name: str, field: str, fields: dict[str, Any]
) -> None:
    request = job_pb2.OpenJobRequest(
        **{"name": job_name, "spec": {"tensors": TENSORS, "stride": 1}, "protocol_version": 1, **fields}
    )
    with pytest.raises(grpc.RpcError) as caught:
        raw.jobs.OpenJob(request, timeout=20)
    assert_refused(caught.value, field)
    raw.open(job_name, spec_of((5,)))  # the name is still free


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("encoding", {"tensors": TENSORS, "encoding": NOT_THERE}),
        ("tensors", {}),
        ("spec_digest", {"spec_digest": b"of another one"}),
    ],
)
def test_a_snapshot_that_is_not_understood_is_refused_by_name(
    raw: Stubs, job_name: str, field: str, fields: dict[str, Any]
) -> None:
    opened = raw.open(job_name, spec_of((4,)))
    key: dict[str, Any] = {
        "job": job_name,
        "lease_id": opened.lease_id,
        "segment": 1,
        "step": 1,
        "total_bytes": 16,
    }
    request = snapshot_pb2.PushSnapshotRequest(header=snapshot_pb2.SnapshotHeader(**{**key, **fields}))
    with pytest.raises(grpc.RpcError) as caught:
        list(raw.snapshots.PushSnapshot(iter([request]), timeout=20))
    assert_refused(caught.value, field)


def test_a_question_that_is_not_understood_is_refused_by_name(raw: Stubs, job_name: str) -> None:
    opened = raw.open(job_name, spec_of((4,)))
    request = prediction_pb2.PredictAheadRequest(
        job=job_name, lease_id=opened.lease_id, horizons=[1.0], wire_dtype=NOT_THERE  # type: ignore[arg-type]  # no such number yet
    )  # fmt: skip
    with pytest.raises(grpc.RpcError) as caught:
        list(raw.predictions.PredictAhead(request, timeout=20))
    assert_refused(caught.value, "wire_dtype")


def assert_refused(error: grpc.RpcError, field: str) -> None:
    told = error_from_call(error, "")
    assert told.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in told.details["field"]


def test_a_kind_of_message_that_is_not_known_is_refused(raw: Stubs) -> None:
    later = snapshot_pb2.PushSnapshotRequest()
    later.MergeFromString(UNKNOWN)
    with pytest.raises(grpc.RpcError) as caught:
        list(raw.snapshots.PushSnapshot(iter([later]), timeout=20))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_call_that_is_not_known_is_unimplemented(raw: Stubs) -> None:
    call: Callable[..., Any] = raw.channel.unary_unary("/koopcast.v1.JobService/MoveJob")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
