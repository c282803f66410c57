"""Answers down the wire: all at once, or reports first and displacements one by one; in every type; to any client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import pytest

import koopcast
from koopcast.bulk import push_snapshot
from koopcast.v1 import operator_pb2, prediction_pb2
from koopcast.wire import widen
from linear import LinearTrajectory, relative_error
from raw import Stubs, stubs, upload
from services import RunningService

SIZE = 400
WINDOW = 12
BYTES = 4 * SIZE


@pytest.fixture
def path() -> LinearTrajectory:
    return LinearTrajectory(SIZE, seed=5)


@pytest.fixture
def raw(service: RunningService) -> Iterator[Stubs]:
    with stubs(service.target) as made:
        yield made


def snapshot(path: LinearTrajectory, index: int) -> dict[str, np.ndarray]:
    weights = path.at(index).astype(np.float32)
    return {"a": weights[:300].reshape(60, 5), "b": weights[300:]}


def filled(client: koopcast.Client, name: str, path: LinearTrajectory, **settings: Any) -> koopcast.Job:
    job = client.open_job(name, snapshot(path, 0), stride=1, **settings)
    for index in range(WINDOW):
        job.push(index, snapshot(path, index))
    return job


def same(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert list(given) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(given[name], array)


def test_reports_come_alone_and_displacements_when_they_are_looked_at(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    whole = job.predict_ahead([3, 7])
    received = job.bytes_received
    light = job.predict_ahead([3, 7], reports_only=True)
    assert job.bytes_received == received
    assert [(one.steps, one.moved, one.summary, one.blocks) for one in light] == [
        (one.steps, one.moved, one.summary, one.blocks) for one in whole
    ]
    same(light[1].displacement, whole[1].displacement)
    assert job.bytes_received == received + BYTES
    same(light[0].displacement, whole[0].displacement)
    same(light[0].weights, whole[0].weights)
    assert job.bytes_received == received + 3 * BYTES
    job.report(light[1], accepted=True)


def test_a_displacement_of_a_window_that_moved_is_refused(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    light = job.predict_ahead(3, reports_only=True)
    job.push(WINDOW, snapshot(path, WINDOW))
    with pytest.raises(koopcast.FailedPrecondition) as caught:
        _ = light.displacement
    assert caught.value.reason == "WINDOW_MOVED"
    assert caught.value.details["base_step"] == str(WINDOW - 1)
    assert np.isfinite(job.predict_ahead(3, reports_only=True).displacement["a"]).all()


def test_of_an_answer_before_the_last_nothing_is_left(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    older = job.predict_ahead(3, reports_only=True)
    job.predict_ahead(4, reports_only=True)
    with pytest.raises(koopcast.NotFound) as caught:
        _ = older.displacement
    assert caught.value.reason == "PREDICTION_NOT_FOUND"


def test_one_that_does_not_move_is_not_fetched(client: koopcast.Client, job_name: str) -> None:
    still = {"w": np.ones(50, np.float32)}
    job = client.open_job(job_name, still, stride=1, operator=koopcast.Operator(window=4))
    for step in range(4):
        job.push(step, still)
    light = job.predict_ahead(3, reports_only=True)
    assert not light.moved
    same(light.displacement, {"w": np.zeros(50, np.float32)})
    assert job.bytes_received == 0


@pytest.mark.parametrize("reports_only", [False, True])
def test_weights_that_are_not_kept_here_come_from_the_service_when_they_are_looked_at(
    client: koopcast.Client, job_name: str, path: LinearTrajectory, *, reports_only: bool
) -> None:
    job = filled(client, job_name, path, keep_weights=False)
    prediction = job.predict_ahead(3, reports_only=reports_only)
    assert job.bytes_received == (0 if reports_only else BYTES)
    displacement, last = prediction.displacement, snapshot(path, WINDOW - 1)
    received = job.bytes_received
    same(prediction.weights, {name: last[name] + displacement[name] for name in last})
    assert job.bytes_received == received + (2 if reports_only else 1) * BYTES


def test_solutions_too_large_to_keep_are_found_again(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    """Short blocks are answered with values, 8 bytes a weight and horizon: here 2 MB for 400 kB of weights."""
    wide = {"w": np.zeros((20_000, 5), np.float32)}
    operator = koopcast.Operator(window=8, partition="node", always_move=True)
    job = client.open_job(job_name, wide, stride=1, operator=operator)
    ramp = np.linspace(1.0, 2.0, 100_000).reshape(20_000, 5)
    for step in range(8):
        job.push(step, {"w": (ramp * 0.9**step + np.cos(ramp * step)).astype(np.float32)})
    whole = job.predict_ahead([1, 2, 3])
    light = job.predict_ahead([1, 2, 3], reports_only=True)
    for one, other in zip(light, whole, strict=True):
        same(one.displacement, other.displacement)


@pytest.mark.parametrize(
    "asked",
    [
        {"horizons": [3.0]},
        {"operators": [operator_pb2.OperatorOverride()]},
        {"clock_intervals": [1.0]},
        {"from_step": 0},
        {"from_clock": 0.0},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_a_prediction_by_its_id_is_asked_for_alone(
    raw: Stubs, client: koopcast.Client, job_name: str, path: LinearTrajectory, asked: dict[str, Any]
) -> None:
    job = filled(client, job_name, path)
    known = job.predict_ahead(3, reports_only=True).id
    with pytest.raises(grpc.RpcError) as caught:
        list(
            raw.predictions.PredictAhead(
                prediction_pb2.PredictAheadRequest(job=job_name, prediction_id=known, **asked), timeout=20
            )
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert next(iter(asked)) in str(caught.value.details())


def test_readers_do_not_put_the_writers_answers_away(
    raw: Stubs, client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    light = job.predict_ahead(3, reports_only=True)
    asked = prediction_pb2.PredictAheadRequest(job=job_name, horizons=[9.0], reports_only=True)
    (told,) = raw.predictions.PredictAhead(asked, timeout=20)
    assert (told.report.moved, told.report.total_bytes) == (True, 0)
    assert relative_error(light.displacement["b"], path.displacement(WINDOW - 1, WINDOW + 2)[300:]) < 1e-3
    again = prediction_pb2.PredictAheadRequest(job=job_name, prediction_id=told.report.prediction_id)
    report, *chunks = raw.predictions.PredictAhead(again, timeout=20)
    assert report.report.total_bytes == sum(len(one.chunk.data) for one in chunks) == BYTES


@pytest.mark.parametrize(
    ("wire_dtype", "error"), [("float64", 1e-5), ("float32", 1e-5), ("bfloat16", 1e-2), ("float16", 1e-3)]
)
def test_answers_come_in_any_type_and_are_arrays_to_compute_with(
    client: koopcast.Client, job_name: str, path: LinearTrajectory, wire_dtype: str, error: float
) -> None:
    plain = filled(client, job_name, path).predict_ahead(3)
    job = filled(client, f"{job_name}-{wire_dtype}", path, wire_dtype=wire_dtype)
    for prediction in (job.predict_ahead(3), job.predict_ahead(3, reports_only=True)):
        for name, array in prediction.displacement.items():
            assert array.dtype == (np.float64 if wire_dtype == "float64" else np.float32)
            assert array.flags.writeable
            assert relative_error(array, np.asarray(plain.displacement[name], np.float64)) < error


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
def test_answers_of_many_chunks_are_the_same_to_the_generated_code(
    raw: Stubs, client: koopcast.Client, job_name: str, wire_dtype: str
) -> None:
    """Of 3,000,001 weights, so that the last chunk is a short one."""
    ramp = np.linspace(-1.0, 1.0, 3_000_001, dtype=np.float32)
    operator = koopcast.Operator(window=3, rank=1, always_move=True)
    job = client.open_job(job_name, {"w": ramp}, stride=1, operator=operator, wire_dtype=wire_dtype)
    for step in range(3):
        job.push(step, {"w": ramp * np.float32(0.5**step)})
    ours = job.predict_ahead(1).displacement["w"]
    np.testing.assert_allclose(ours, ramp * (0.125 - 0.25), atol=2e-3 if wire_dtype == "bfloat16" else 1e-6)
    request = prediction_pb2.PredictAheadRequest(job=job_name, horizons=[1.0])
    report, *chunks = raw.predictions.PredictAhead(request, timeout=20)
    data = b"".join(one.chunk.data for one in chunks)
    assert len(data) == report.report.total_bytes
    np.testing.assert_array_equal(ours, widen(data, wire_dtype))


def test_chunks_that_are_not_in_the_canonical_form_are_taken_all_the_same(
    raw: Stubs, client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    """A newer client's unknown fields, and fields in another order: what the codec leaves to the generated code."""
    job = client.open_job(job_name, snapshot(path, 0), stride=1)
    unknown = b"\xf8\x07\x01"  # field 127, varint
    messages = [message.SerializeToString() + unknown for message in upload(job, snapshot(path, 0), 0)]
    *_, last = push_snapshot(raw.channel)(iter(messages), timeout=20)
    assert last.result.snapshots_held == 1
