"""Snapshots that travel as differences, through a real service: both sides hold the same bits, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import koopcast
import raw
from koopcast.client import Encoding
from koopcast.codec import Chunk
from koopcast.delta import FlatArrays
from koopcast.encoding import DifferenceCode
from koopcast.payload import RawPayload
from koopcast.v1 import prediction_pb2, snapshot_pb2, tensor_pb2
from koopcast.wire import checksum, widen
from linear import LinearTrajectory, relative_error
from services import RunningService, running_service

STRIDE = 10
CODES: list[tuple[Encoding, str]] = [("delta", "bfloat16"), ("delta", "float16"), ("delta-int8", "float32")]
Tensors = dict[str, np.ndarray]


def weights(number: int, *, long: int = 901, wide: Any = np.float32) -> Tensors:
    """The snapshots of a run: three runs of element types, more than a chunk of them."""
    start, moves = np.random.default_rng(1), np.random.default_rng(2)
    shapes = {"half": ((3, 50), np.float16), "long": ((700, long), wide), "short": ((7,), np.float32)}
    return {
        name: (start.standard_normal(shape) + 0.01 * number * moves.standard_normal(shape)).astype(dtype)
        for name, (shape, dtype) in shapes.items()
    }


def small(number: int) -> Tensors:
    return weights(number, long=3)


def held_by(service: RunningService, job: koopcast.Job) -> bytes:
    """The newest snapshot as the service holds it, flat, in the type it is kept in."""
    request = prediction_pb2.PredictAheadRequest(job=job.name, horizons=[STRIDE], include_base=True)
    found = b""
    with raw.stubs(service.target) as stubs:
        for answer in stubs.predictions.PredictAhead(request, timeout=20):
            if answer.WhichOneof("message") == "report":
                return found
            found += answer.chunk.data
    return found


def reference_of(job: koopcast.Job) -> bytes:
    """The same as the client knows it."""
    assert job._differences is not None
    base = job._differences.base()
    return b"" if base is None else base.tobytes()


def code_of(job: koopcast.Job) -> DifferenceCode:
    assert job._differences is not None
    return job._differences._code


@pytest.fixture
def service_of_its_own() -> Iterator[RunningService]:
    with running_service("--http", "off") as running:
        yield running


@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize(("encoding", "wire"), CODES)
def test_both_sides_hold_the_same_bits(
    service: RunningService,
    client: koopcast.Client,
    job_name: str,
    encoding: Encoding,
    wire: str,
    wide: Any,
) -> None:
    job = client.open_job(
        job_name,
        weights(0, wide=wide),
        stride=STRIDE,
        encoding=encoding,
        wire_dtype=wire,
        operator=koopcast.Operator(window=4, always_move=True),
    )
    assert job.push(0, weights(0, wide=wide)).outcome == "accepted"
    whole = job.bytes_sent
    assert whole == job._layout.nbytes
    for number in range(1, 8):
        if number == 5:
            job.start_segment()  # the snapshot before it is still the reference
        assert job.push(STRIDE * number, weights(number, wide=wide)).outcome == "accepted"
        if job.snapshots_held >= 3:
            held = held_by(service, job)
            assert held == reference_of(job)
            exact = FlatArrays(job._layout, RawPayload(job._layout, weights(number, wide=wide)))
            error = np.frombuffer(held, job._layout.storage_dtype) - exact.read(0, job._layout.elements)
            assert 0 < np.abs(error).max() < 4e-4
    assert job.bytes_sent == whole + 7 * code_of(job).nbytes
    assert job.bytes_resent == 0
    status = job.status()
    assert status.encoding == encoding
    assert status.bytes_received == job.bytes_sent
    prediction = job.predict_ahead(STRIDE)
    assert prediction.moved
    base = np.frombuffer(held_by(service, job), job._layout.storage_dtype)
    moved = np.concatenate([part.ravel() for part in prediction.displacement.values()])
    given = np.concatenate([part.ravel() for part in prediction.weights.values()])
    np.testing.assert_allclose(given, base + moved, rtol=1e-6, atol=1e-6)
    job.close()


@pytest.mark.parametrize("window", [12, "segment"])
@pytest.mark.parametrize(("encoding", "wire"), CODES)
def test_predictions_are_nearly_those_of_raw_snapshots(
    service: RunningService,
    client: koopcast.Client,
    job_name: str,
    encoding: Encoding,
    wire: str,
    window: Any,
) -> None:
    path = LinearTrajectory(600, seed=3)
    operator = koopcast.Operator(window=window, partition="tensor")
    first = {"w": path.at(0).astype(np.float32)}
    job = client.open_job(
        job_name, first, stride=STRIDE, operator=operator, encoding=encoding, wire_dtype=wire
    )
    for number in range(12):
        job.push(STRIDE * number, {"w": path.at(number).astype(np.float32)})
    prediction = job.predict_ahead(4 * STRIDE)
    assert relative_error(prediction.displacement["w"], path.displacement(11, 15)) < 0.03
    assert held_by(service, job) == reference_of(job)


@pytest.mark.parametrize(("encoding", "wire"), CODES)
def test_the_same_snapshot_again_is_a_duplicate_and_others_are_not(
    service: RunningService, client: koopcast.Client, job_name: str, encoding: Encoding, wire: str
) -> None:
    job = client.open_job(job_name, small(0), stride=STRIDE, encoding=encoding, wire_dtype=wire)
    for number in range(5):
        job.push(STRIDE * number, small(number))
    sent, reference = job.bytes_sent, reference_of(job)
    for number in (4, 2, 0, 4):
        again = job.push(STRIDE * number, small(number))
        assert (again.outcome, again.snapshots_held) == ("duplicate", 5)
    assert job.bytes_sent == sent  # the digest alone decided
    for number in (4, 2, 0):
        with pytest.raises(koopcast.AlreadyExists, match="other bytes"):
            job.push(STRIDE * number, small(9))
    assert job.push(50, small(5)).outcome == "accepted"
    assert held_by(service, job) == reference_of(job) != reference


def test_a_result_that_was_lost_is_a_duplicate(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, small(0), stride=STRIDE, encoding="delta-int8")
    for number in range(3):
        job.push(STRIDE * number, small(number))
    with raw.stubs(service.target) as stubs:
        by_hand(stubs, job, 30, small(3))
    again = job.push(30, small(3))
    assert (again.outcome, again.snapshots_held) == ("duplicate", 4)
    assert held_by(service, job) == reference_of(job)
    assert job.push(40, small(4)).outcome == "accepted"
    assert held_by(service, job) == reference_of(job)


def test_a_snapshot_whose_reference_is_not_held_goes_raw(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, weights(0), stride=STRIDE, encoding="delta-int8")
    for number in range(3):
        job.push(STRIDE * number, weights(number))
    with raw.stubs(service.target) as stubs:
        by_hand(stubs, job, 30, weights(3))  # of which the job hears nothing
    assert job.push(40, weights(4)).outcome == "accepted"
    assert held_by(service, job) == reference_of(job)
    whole = FlatArrays(job._layout, RawPayload(job._layout, weights(4))).read(0, job._layout.elements)
    assert reference_of(job) == whole.tobytes()
    sent = job.bytes_sent
    assert job.push(50, weights(5)).outcome == "accepted"
    assert job.bytes_sent == sent + code_of(job).nbytes
    assert held_by(service, job) == reference_of(job)


def test_a_deadline_passed_leaves_both_sides_fit_to_go_on(service_of_its_own: RunningService) -> None:
    service = service_of_its_own
    with koopcast.connect(service.target) as client:
        job = client.open_job("paused", small(0), stride=STRIDE, encoding="delta-int8")
        for number in range(3):
            job.push(STRIDE * number, small(number))
        reference = reference_of(job)
        service.pause()
        with pytest.raises(koopcast.DeadlineExceeded):
            job.push(30, small(3), timeout_seconds=0.2)
        service.resume()
        assert reference_of(job) == reference
        assert job.push(30, small(3)).outcome in {"accepted", "duplicate"}
        assert job.push(40, small(4)).outcome == "accepted"
        assert held_by(service, job) == reference_of(job)


def test_a_service_that_lost_its_memory_gets_a_whole_snapshot_first(
    service_of_its_own: RunningService,
) -> None:
    service = service_of_its_own
    with koopcast.connect(service.target) as client:
        job = client.open_job("lost", small(0), stride=STRIDE, encoding="delta-int8")
        for number in range(3):
            job.push(STRIDE * number, small(number))
        service.restart()
        with pytest.raises(koopcast.NotFound):
            job.push(30, small(3), timeout_seconds=20)
        job = client.open_job("lost", small(0), stride=STRIDE, encoding="delta-int8")
        for number in range(3, 7):
            assert job.push(STRIDE * number, small(number)).outcome == "accepted"
        assert job.bytes_sent == job._layout.nbytes + 3 * code_of(job).nbytes
        assert held_by(service, job) == reference_of(job)


def test_whoever_takes_a_job_over_begins_with_a_whole_snapshot(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    settings: dict[str, Any] = {"stride": STRIDE, "encoding": "delta", "wire_dtype": "bfloat16"}
    job = client.open_job(job_name, small(0), **settings)
    for number in range(3):
        job.push(STRIDE * number, small(number))
    with koopcast.connect(service.target) as other:
        taken = other.open_job(job_name, small(0), take_over=True, **settings)
        assert taken.resumed
        with pytest.raises(koopcast.LeaseLost):
            job.push(30, small(3))
        for number in range(5, 9):
            assert taken.push(STRIDE * number, small(number)).outcome == "accepted"
        assert taken.bytes_sent == taken._layout.nbytes + 3 * code_of(taken).nbytes
        assert held_by(service, taken) == reference_of(taken)


def test_a_superseded_snapshot_changes_no_reference(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, small(0), stride=STRIDE, encoding="delta-int8")
    job.push(0, small(0))
    job.start_segment()
    for number in range(1, 4):
        job.push(STRIDE * number, small(number))
    job.segment -= 1
    assert job.push(40, small(4)).outcome == "superseded"
    job.segment += 1
    assert job.push(40, small(4)).outcome == "accepted"
    assert held_by(service, job) == reference_of(job)


def test_an_encoding_is_part_of_what_a_job_is(client: koopcast.Client, job_name: str) -> None:
    client.open_job(job_name, small(0), stride=STRIDE, encoding="delta-int8").close(keep=True)
    with pytest.raises(koopcast.AlreadyExists, match="encoding is delta-int8, asked for raw"):
        client.open_job(job_name, small(0), stride=STRIDE)
    client.open_job(job_name, small(0), stride=STRIDE, encoding="delta-int8").close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding": "zip"}, "encoding must be one of raw, delta, delta-int8, not 'zip'"),
        ({"encoding": "delta"}, 'saves nothing.*wire_dtype="bfloat16" or encoding="delta-int8"'),
        ({"encoding": "delta", "wire_dtype": "float64"}, "saves nothing"),
        ({"encoding": "delta-int8", "window_holder": "trainer"}, "window_holder"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_call(
    client: koopcast.Client, job_name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(koopcast.ArgumentValueError, match=message) as caught:
        client.open_job(job_name, small(0), stride=STRIDE, **settings)
    assert caught.value.details["field"] == "encoding"


@pytest.mark.parametrize(("encoding", "wire"), CODES)
def test_values_that_are_not_finite_are_refused_and_cost_nothing(
    service: RunningService, client: koopcast.Client, job_name: str, encoding: Encoding, wire: str
) -> None:
    job = client.open_job(job_name, small(0), stride=STRIDE, encoding=encoding, wire_dtype=wire)
    for number in range(3):
        bad = small(number)
        bad["short"][4] = np.nan if number % 2 else np.inf
        with pytest.raises(
            koopcast.InvalidArgument, match=r"'short' holds (nan|inf) at flat index 4"
        ) as caught:
            job.push(STRIDE * number, bad)
        assert caught.value.reason == "NON_FINITE"
        job.push(STRIDE * number, small(number))
    assert held_by(service, job) == reference_of(job)


@pytest.mark.parametrize(("encoding", "wire"), CODES)
def test_the_largest_numbers_there_are_stay_finite(
    service: RunningService, client: koopcast.Client, job_name: str, encoding: Encoding, wire: str
) -> None:
    generator = np.random.default_rng(0)
    job = client.open_job(
        job_name, {"w": np.zeros(600, np.float32)}, stride=STRIDE, encoding=encoding, wire_dtype=wire
    )
    for number in range(4):
        values = np.where(generator.random(600) < 0.5, -3.4e38, 3.4e38) * generator.choice([1.0, 1e-30], 600)
        assert job.push(STRIDE * number, {"w": values.astype(np.float32)}).outcome == "accepted"
    assert held_by(service, job) == reference_of(job)
    assert np.isfinite(np.frombuffer(reference_of(job), np.float32)).all()


# What no client of ours would send.


def by_hand(
    stubs: raw.Stubs,
    job: koopcast.Job,
    step: int,
    tensors: Tensors,
    chunks: list[Chunk] | None = None,
    **changes: Any,
) -> int:
    """Pushes the differences that the job would push, or other chunks; returns the outcome."""
    assert job._differences is not None
    payload = job._differences.payload(FlatArrays(job._layout, RawPayload(job._layout, tensors)))
    assert payload is not None
    assert payload.reference is not None
    made = [(start, payload.read(start, stop)) for start, stop in payload.ranges(0)]
    sent = [Chunk(start, data, checksum(data)) for start, data in made] if chunks is None else chunks
    fields: dict[str, Any] = {
        "job": job.name,
        "lease_id": job._lease_id,
        "segment": job.segment,
        "step": step,
        "spec_digest": job._spec_digest,
        "total_bytes": payload.nbytes,
        "encoding": payload.encoding,
        "reference_segment": payload.reference[0],
        "reference_step": payload.reference[1],
    }
    header = snapshot_pb2.SnapshotHeader(**{**fields, **changes})
    request = snapshot_pb2.PushSnapshotRequest
    messages = [request(header=header)]
    for offset, data, crc in sent:
        chunk = snapshot_pb2.SnapshotChunk(offset=offset, data=bytes(data), crc32c=crc)
        messages.append(request(chunk=chunk))
    digest = checksum(b"".join(bytes(data) for _, data, _ in sent)).to_bytes(4, "big")
    messages.append(request(commit=snapshot_pb2.SnapshotCommit(digest=digest)))
    *_, last = stubs.snapshots.PushSnapshot(iter(messages), timeout=20)
    outcome: int = last.result.outcome
    return outcome


def refused(
    service: RunningService, job: koopcast.Job, *, chunks: list[Chunk] | None = None, **changes: Any
) -> tuple[grpc.StatusCode, str]:
    """Code and message of what the service says to such a push."""
    with raw.stubs(service.target) as stubs, pytest.raises(grpc.RpcError) as caught:
        by_hand(stubs, job, 30, small(3), chunks, **changes)
    return caught.value.code(), caught.value.details() or ""


@pytest.fixture
def job(client: koopcast.Client, job_name: str) -> koopcast.Job:
    opened = client.open_job(job_name, small(0), stride=STRIDE, encoding="delta-int8")
    for number in range(3):
        opened.push(STRIDE * number, small(number))
    return opened


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"encoding": tensor_pb2.ENCODING_DELTA}, "INVALID_ARGUMENT", "is not the job's"),
        ({"encoding": 77}, "INVALID_ARGUMENT", "encoding number 77"),
        ({"total_bytes": 7}, "INVALID_ARGUMENT", "total_bytes is 7"),
        ({"digest": b"four"}, "INVALID_ARGUMENT", "comes with the commit"),
        ({"reference_step": 10}, "FAILED_PRECONDITION", "differences are from step 10"),
        ({"reference_segment": 9}, "FAILED_PRECONDITION", "push the snapshot raw"),
        ({"reference_segment": 9, "segment": 9}, "FAILED_PRECONDITION", "push the snapshot raw"),
    ],
)
def test_headers_that_do_not_fit_are_refused(
    service: RunningService, job: koopcast.Job, changes: dict[str, Any], code: str, message: str
) -> None:
    status, details = refused(service, job, **changes)
    assert status.name == code
    assert message in details
    assert job.push(30, small(3)).outcome == "accepted"
    assert held_by(service, job) == reference_of(job)


def test_differences_need_a_snapshot_to_be_from(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, small(0), stride=STRIDE, encoding="delta-int8")
    assert job._differences is not None
    raw_payload = RawPayload(job._layout, small(0))
    job._differences._take(FlatArrays(job._layout, raw_payload))
    job._differences._stands_for = (0, 0)  # what an empty job answers when it is opened
    assert job.push(0, small(0)).outcome == "accepted"
    for number in range(1, 4):
        job.push(STRIDE * number, small(number))
    assert held_by(service, job) == reference_of(job)


def chunk(offset: int, data: bytes) -> Chunk:
    return Chunk(offset, memoryview(data), checksum(data))


@pytest.mark.parametrize(
    ("cut", "reason"),
    [(100, "whole blocks"), (261, "whole blocks"), (259, "whole blocks")],
)
def test_chunks_that_split_a_block_are_refused(
    service: RunningService, job: koopcast.Job, cut: int, reason: str
) -> None:
    data = bytes(code_of(job).nbytes)
    status, details = refused(service, job, chunks=[chunk(0, data[:cut]), chunk(cut, data[cut:])])
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in details
    assert job.push(30, small(3)).outcome == "accepted"
    assert held_by(service, job) == reference_of(job)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_are_refused_by_the_tensor_they_are_of(
    service: RunningService, job: koopcast.Job, scale: float
) -> None:
    data = bytearray(code_of(job).nbytes)
    blocks = -(-len(data) // 260)
    data[4:8] = np.float32(scale).tobytes()
    data[4 * blocks :] = bytes([1]) * (len(data) - 4 * blocks)
    status, details = refused(service, job, chunks=[chunk(0, bytes(data))])
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert f"tensor 'long' holds {scale} at flat index 106" in details
    assert job.push(30, small(3)).outcome == "accepted"
    assert held_by(service, job) == reference_of(job)


def test_differences_that_are_not_finite_are_refused_by_the_tensor_they_are_of(
    service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, small(0), stride=STRIDE, encoding="delta", wire_dtype="bfloat16")
    for number in range(3):
        job.push(STRIDE * number, small(number))
    data = np.zeros(code_of(job).nbytes // 2, "<u2")
    data[-2] = 0x7F80
    assert np.isinf(widen(data[-2:-1].tobytes(), "bfloat16")).all()
    status, details = refused(service, job, chunks=[chunk(0, data.tobytes())])
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert "tensor 'short' holds inf at flat index 5" in details
