"""Messages that no honest client sends: each gets a precise error, and the service serves on, silently."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import koopcast
from koopcast.channel import error_from_call
from koopcast.v1 import job_pb2, prediction_pb2, snapshot_pb2, tensor_pb2
from koopcast.wire import checksum
from raw import Stubs, spec_of, stubs, upload
from services import RunningService, running_service

FAULTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
WEIGHTS = {"w": np.arange(6.0)}


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service that must have had nothing to say on standard error when the module is over."""
    with running_service("--memory-limit", "1GiB", "--http", "off", "--log-level", "warning") as running:
        yield running
    assert running.errors == []


@pytest.fixture(scope="module")
def raw(service: RunningService) -> Iterator[Stubs]:
    with stubs(service.target) as made:
        yield made


@pytest.fixture
def job(client: koopcast.Client, job_name: str) -> koopcast.Job:
    opened = client.open_job(job_name, WEIGHTS, stride=1)
    for step in range(5):
        opened.push(step, {"w": WEIGHTS["w"] * 0.9**step})
    return opened


def outcome(call: Any, data: bytes, *, streams: bool) -> tuple[grpc.StatusCode, str]:
    """Code and text with which a call of these bytes ends."""
    answers = call(iter([data]) if streams else data, timeout=10)
    with contextlib.suppress(grpc.RpcError):
        list(answers)
    return answers.code(), answers.details()


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("JobService/OpenJob", "unary_stream"),  # to a client it is the same
        ("JobService/GetJob", "unary_stream"),
        ("SnapshotService/PushSnapshot", "stream_stream"),
        ("SnapshotService/PushShortSnapshot", "unary_stream"),
        ("PredictionService/PredictAhead", "unary_stream"),
    ],
)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["garbage", "no UTF-8"])
def test_bytes_that_are_no_message(raw: Stubs, method: str, kind: str, data: bytes) -> None:
    code, text = outcome(
        getattr(raw.channel, kind)(f"/koopcast.v1.{method}"), data, streams=kind == "stream_stream"
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message of this call" in text


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (spec_of(*[(2**62,)] * 4), grpc.StatusCode.RESOURCE_EXHAUSTED),  # 2**64 elements, 0 in 64 bits
        (spec_of(*[(2**62,)] * 4, (10,)), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (spec_of((2**63,)), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (spec_of((2**63 + 1,)), grpc.StatusCode.INVALID_ARGUMENT),
        (spec_of((2**64 - 1,) * 16), grpc.StatusCode.INVALID_ARGUMENT),
        (spec_of((1,) * 100_000), grpc.StatusCode.INVALID_ARGUMENT),
        (spec_of((3,), stride=2**64 - 1), grpc.StatusCode.INVALID_ARGUMENT),
        (spec_of(*[(1,)] * 65_537), grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["wraps to 0", "wraps to 10", "2**63", "2**63+1", "2**1024", "dimensions", "stride", "tensors"],
)
def test_absurd_sizes(raw: Stubs, spec: job_pb2.JobSpec, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw.open("absurd", spec)
    assert caught.value.code() is code


def test_an_error_about_a_giant_string_arrives_whole(raw: Stubs, job: koopcast.Job) -> None:
    """Status travels in headers, which hold 8 KiB: what is quoted is cut, not the error lost."""
    tensor = tensor_pb2.TensorSpec(name="\N{SNOWMAN}" * 512, shape=[0], dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32)
    with pytest.raises(grpc.RpcError) as caught:
        raw.open("giant", job_pb2.JobSpec(tensors=[tensor], stride=1))
    assert isinstance(error_from_call(caught.value, ""), koopcast.InvalidArgument)
    request = prediction_pb2.ReportOutcomeRequest(
        job=job.name, lease_id=job._lease_id, prediction_id="p" * 3_000_000
    )
    with pytest.raises(grpc.RpcError) as caught:
        raw.predictions.ReportOutcome(request)
    error = error_from_call(caught.value, "")
    assert isinstance(error, koopcast.NotFound)
    assert error.reason == "UNKNOWN_PREDICTION"
    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [("segment", 0), ("segment", 2**64 - 1), ("step", 2**64 - 1), ("total_bytes", 47), ("digest", b"")],
)
def test_header_numbers_out_of_range(raw: Stubs, job: koopcast.Job, field: str, value: object) -> None:
    messages = upload(job, WEIGHTS, 5)
    setattr(messages[0].header, field, value)
    with pytest.raises(grpc.RpcError) as caught:
        list(raw.snapshots.PushSnapshot(iter(messages), timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in str(caught.value.details())
    assert job.push(5, WEIGHTS).outcome == "accepted"


@pytest.mark.parametrize(
    "message",
    [
        snapshot_pb2.PushSnapshotRequest(),
        snapshot_pb2.PushSnapshotRequest(header=snapshot_pb2.SnapshotHeader()),
        snapshot_pb2.PushSnapshotRequest(
            chunk=snapshot_pb2.SnapshotChunk(data=b"\0" * (3 << 20), crc32c=checksum(b"\0" * (3 << 20)))
        ),
        snapshot_pb2.PushSnapshotRequest(chunk=snapshot_pb2.SnapshotChunk(offset=2**64 - 1, data=b"\0")),
        snapshot_pb2.PushSnapshotRequest(chunk=snapshot_pb2.SnapshotChunk()),
    ],
    ids=["empty", "second header", "3 MiB", "far offset", "no bytes"],
)
def test_messages_out_of_place(
    raw: Stubs, job: koopcast.Job, message: snapshot_pb2.PushSnapshotRequest
) -> None:
    messages = upload(job, WEIGHTS, 5)
    messages[1] = message
    with pytest.raises(grpc.RpcError) as caught:
        list(raw.snapshots.PushSnapshot(iter(messages), timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert job.push(5, WEIGHTS).outcome == "accepted"


def test_far_steps_and_horizons(raw: Stubs, job: koopcast.Job) -> None:
    for from_step in (2**64 - 1, 2**53 + 1):
        request = prediction_pb2.PredictAheadRequest(job=job.name, horizons=[1.0], from_step=from_step)
        with pytest.raises(grpc.RpcError) as caught:
            list(raw.predictions.PredictAhead(request, timeout=10))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for prediction in job.predict_ahead([2.0**53, 1e-308, 1e15], from_step=2**53):
        assert all(np.isfinite(array).all() for array in prediction.displacement.values())


def test_a_huge_average_is_only_a_number(client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    for step in range(5):
        job.push(step, {"w": WEIGHTS["w"] * 0.9**step}, averaging=2**32 - 1)
    assert np.isfinite(job.predict_ahead(1).displacement["w"]).all()
    with pytest.raises(koopcast.ArgumentValueError, match="averaging must lie in"):
        job.push(5, WEIGHTS, averaging=2**32)


def test_65536_tensors_open_push_and_answer(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    weights = {f"t{index}": np.full(1, 1.0, np.float32) for index in range(65_536)}
    with client.open_job(job_name, weights, stride=1, operator=koopcast.Operator(observable="state")) as job:
        for step in range(2):
            job.push(step, {name: array * 0.9**step for name, array in weights.items()})
        assert job.predict_ahead(2).moved
        assert job_name in [status.name for status in client.jobs()]


def test_a_page_of_jobs_is_never_longer_than_a_message(
    raw: Stubs, client: koopcast.Client, job_name: str
) -> None:
    """Ten jobs of a thousand long-named tensors make 5 MB; 4 MiB is what a client takes by default."""
    tensors = {f"{index:0500d}": koopcast.TensorSpec("float32", (1,)) for index in range(1000)}
    for index in range(10):
        client.open_job(f"{job_name}-{index}", tensors, stride=1)
    response = raw.jobs.ListJobs(job_pb2.ListJobsRequest(), timeout=20)
    assert response.next_page_token
    names = [status.name for status in client.jobs()]
    assert names == sorted(set(names))
    assert {f"{job_name}-{index}" for index in range(10)} <= set(names)


def test_random_bytes_never_make_a_fault(raw: Stubs, job: koopcast.Job) -> None:
    """Valid messages with bytes changed: refused precisely, or harmless."""
    generator = random.Random(7)
    predict = prediction_pb2.PredictAheadRequest(
        job=job.name, horizons=[1.0, 2.0], from_step=9, operators=[{"rank_rule": 2, "rank": 2, "ridge": 0.1}]
    ).SerializeToString()
    opening = job_pb2.OpenJobRequest(
        name="fuzzed",
        spec=spec_of((3,), (2, 2)),
        if_exists=job_pb2.IF_EXISTS_REPLACE,
        take_over=True,
        protocol_version=1,
    ).SerializeToString()
    header = upload(job, WEIGHTS, 5)[0].SerializeToString()
    calls = [
        (raw.channel.unary_stream("/koopcast.v1.PredictionService/PredictAhead"), predict, False),
        (raw.channel.unary_stream("/koopcast.v1.JobService/OpenJob"), opening, False),
        (raw.channel.stream_stream("/koopcast.v1.SnapshotService/PushSnapshot"), header, True),
    ]
    deadline = time.monotonic() + 5
    for _ in range(200):
        for call, valid, streams in calls:
            data = bytearray(valid)
            for _ in range(generator.randint(1, 4)):
                data[generator.randrange(len(data))] = generator.randrange(256)
            code, text = outcome(call, bytes(data), streams=streams)
            assert code not in FAULTS, (bytes(data), text)
        if time.monotonic() > deadline:
            break
