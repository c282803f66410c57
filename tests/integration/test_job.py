"""A job through the public client against a real service: segments, leases, idempotent pushes, answers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import koopcast
from linear import LinearTrajectory, relative_error
from services import RunningService

STRIDE = 10
SIZE = 600


@pytest.fixture
def path() -> LinearTrajectory:
    return LinearTrajectory(SIZE, seed=3)


def snapshot(path: LinearTrajectory, index: int) -> dict[str, np.ndarray]:
    weights = path.at(index)
    return {"layer.weight": weights[:500].reshape(20, 25), "layer.bias": weights[500:]}


def filled(client: koopcast.Client, name: str, path: LinearTrajectory, **settings: Any) -> koopcast.Job:
    job = client.open_job(name, snapshot(path, 0), stride=STRIDE, **settings)
    for index in range(job.operator.snapshots_wanted):
        job.push(STRIDE * index, snapshot(path, index))
    return job


def flat(tensors: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(tensors["layer.weight"]), np.ravel(tensors["layer.bias"])])


def test_predicts_the_future_of_a_linear_system(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    prediction = job.predict_ahead(5 * STRIDE)
    assert prediction.moved
    assert (prediction.base_step, prediction.from_step, prediction.steps) == (110, 110, 50)
    assert prediction.displacement["layer.weight"].shape == (20, 25)
    assert relative_error(flat(prediction.displacement), path.displacement(11, 16)) < 1e-5
    assert relative_error(flat(prediction.weights) - path.at(11), path.displacement(11, 16)) < 1e-5
    (block,) = prediction.blocks
    assert block.rank == 3
    assert block.backtest_error < 1e-3 < block.backtest_error_linear
    assert block.backtest_steps == 3 * STRIDE
    assert block.extrapolated
    assert not job.predict_ahead(2 * STRIDE).blocks[0].extrapolated


def test_a_list_of_horizons_is_answered_in_order(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    predictions = job.predict_ahead([40, 10, 25])
    assert [prediction.steps for prediction in predictions] == [40, 10, 25]
    assert len({prediction.id for prediction in predictions}) == 3
    assert relative_error(flat(predictions[1].displacement), path.displacement(11, 12)) < 1e-5
    (only,) = job.predict_ahead([40])
    np.testing.assert_array_equal(only.displacement["layer.bias"], predictions[0].displacement["layer.bias"])


def test_operators_of_a_call_are_answered_operator_by_operator(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    operators = [koopcast.Operator(rank=1, ridge=0.0), koopcast.Operator(rank=3, ridge=0.0, stabilize=False)]
    predictions = job.predict_ahead([10, 20], operators=operators)
    assert [(p.operator_index, p.steps) for p in predictions] == [(0, 10), (0, 20), (1, 10), (1, 20)]
    assert [p.blocks[0].rank for p in predictions] == [1, 1, 3, 3]
    assert relative_error(flat(predictions[3].displacement), path.displacement(11, 13)) < 1e-6


def test_from_step_answers_with_the_displacement_from_there(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path, operator=koopcast.Operator(ridge=0.0))
    prediction = job.predict_ahead(3 * STRIDE, from_step=110 + 2 * STRIDE)
    assert prediction.from_step == 130
    assert relative_error(flat(prediction.displacement), path.displacement(13, 16)) < 1e-5


def test_an_averaged_window_is_answered_for_the_step_not_for_the_average(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    """The mean of the last three snapshots' steps stands one snapshot earlier; the answer starts at the step."""
    job = client.open_job(job_name, snapshot(path, 0), stride=1, operator=koopcast.Operator(ridge=0.0))
    for index in range(2, 14):
        mean = {
            key: np.mean([snapshot(path, index - lag)[key] for lag in range(3)], axis=0)
            for key in snapshot(path, 0)
        }
        job.push(index, mean, averaging=3)
    truth = np.mean([path.displacement(13 + lag, 18 + lag) for lag in (-1, 0, 1)], axis=0)
    prediction = job.predict_ahead(5)
    assert relative_error(flat(prediction.displacement), truth) < 1e-5
    with pytest.raises(koopcast.InvalidArgument, match="averaging"):
        job.push(14, snapshot(path, 14))


def test_tensor_partition_reports_one_block_a_tensor(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path, operator=koopcast.Operator(partition="tensor"))
    prediction = job.predict_ahead(10)
    assert [block.name for block in prediction.blocks] == ["layer.weight", "layer.bias"]
    assert [block.parameters for block in prediction.blocks] == [500, 100]
    assert relative_error(flat(prediction.displacement), path.displacement(11, 12)) < 1e-5


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_every_numpy_dtype_travels(
    client: koopcast.Client, job_name: str, dtype: str, path: LinearTrajectory
) -> None:
    def typed(index: int) -> dict[str, np.ndarray]:
        return {key: array.astype(dtype) for key, array in snapshot(path, index).items()}

    job = client.open_job(job_name, typed(0), stride=STRIDE)
    for index in range(12):
        job.push(STRIDE * index, typed(index))
    expected = np.float64 if dtype == "float64" else np.float32
    prediction = job.predict_ahead(10)
    assert prediction.displacement["layer.bias"].dtype == expected
    tolerance = {"float64": 1e-6, "float32": 1e-5, "float16": 0.2}[dtype]
    assert relative_error(flat(prediction.displacement), path.displacement(11, 12)) < tolerance


def test_mixed_dtypes_and_bfloat16_travel(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    torch = pytest.importorskip("torch")

    def mixed(index: int) -> dict[str, Any]:
        weights = torch.from_numpy(path.at(index))
        return {
            "half": weights[:33].to(torch.bfloat16),
            "single": weights[33:99].float().reshape(2, 33),
            "odd": weights[99:102].to(torch.float16),
            "double": weights[102:],
        }

    job = client.open_job(job_name, mixed(0), stride=STRIDE)
    for index in range(12):
        job.push(STRIDE * index, mixed(index))
    prediction = job.predict_ahead(10)
    np.testing.assert_array_equal(
        job.predict_ahead(1e-9).weights["half"].astype(np.float32), mixed(11)["half"].float().numpy()
    )
    assert relative_error(prediction.displacement["double"], path.displacement(11, 12)[102:]) < 0.02


def test_wire_dtype_bounds_what_an_answer_costs(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path, wire_dtype="bfloat16")
    prediction = job.predict_ahead(10)
    assert job.bytes_received == 2 * SIZE
    assert prediction.displacement["layer.bias"].dtype == np.float32
    assert relative_error(flat(prediction.displacement), path.displacement(11, 12)) < 4e-3


def test_the_same_snapshot_again_is_a_no_op(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = client.open_job(job_name, snapshot(path, 0), stride=STRIDE)
    assert job.push(0, snapshot(path, 0)).outcome == "accepted"
    assert job.push(0, snapshot(path, 0)) == koopcast.PushResult("duplicate", 1)
    assert job.status().snapshots_accepted == 1


def test_a_segment_starts_at_any_step_and_only_its_first_push_empties_the_window(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    assert job.start_segment() == 2
    assert job.predict_ahead(10).segment == 1
    assert job.push(7, snapshot(path, 0)) == koopcast.PushResult("accepted", 1)
    status = job.status()
    assert (status.segment, status.step, status.snapshots_held) == (2, 7, 1)


def test_a_late_push_of_an_older_segment_is_superseded(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = client.open_job(job_name, snapshot(path, 0), stride=STRIDE)
    job.push(0, snapshot(path, 0))
    job.start_segment()
    job.push(3, snapshot(path, 1))
    job.segment = 1
    assert job.push(10, snapshot(path, 2)) == koopcast.PushResult("superseded", 1)
    assert job.status().step == 3


def test_a_released_job_is_resumed_with_its_window(
    client: koopcast.Client, service: RunningService, job_name: str, path: LinearTrajectory
) -> None:
    first = filled(client, job_name, path)
    first.close(keep=True)
    with koopcast.connect(service.target) as other:
        second = other.open_job(job_name, snapshot(path, 0), stride=STRIDE)
        assert second.resumed
        assert second.segment == 2
        assert second.snapshots_held == 12
        prediction = second.predict_ahead(50)
        assert relative_error(flat(prediction.weights) - path.at(11), path.displacement(11, 16)) < 1e-5


def test_take_over_ends_the_old_lease(
    client: koopcast.Client, service: RunningService, job_name: str, path: LinearTrajectory
) -> None:
    old = filled(client, job_name, path)
    with koopcast.connect(service.target) as other:
        new = other.open_job(job_name, snapshot(path, 0), stride=STRIDE, take_over=True)
        with pytest.raises(koopcast.LeaseLost, match="took it over"):
            old.push(120, snapshot(path, 12))
        assert new.push(0, snapshot(path, 0)).outcome == "accepted"


def test_outcomes_are_counted_once(client: koopcast.Client, job_name: str, path: LinearTrajectory) -> None:
    job = filled(client, job_name, path)
    taken, refused = job.predict_ahead([10, 20])
    job.report(taken, accepted=True, loss_before=2.0, loss_after=1.0)
    job.report(taken, accepted=True)
    job.report(refused, accepted=False)
    status = job.status()
    assert (status.jumps_accepted, status.jumps_rejected, status.predictions) == (1, 1, 2)


def test_status_tells_what_the_job_is_and_does(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    job.predict_ahead(10)
    status = job.status()
    assert status.operator == koopcast.Operator()
    assert list(status.tensors) == ["layer.weight", "layer.bias"]
    assert (status.stride, status.parameters) == (STRIDE, SIZE)
    assert status.memory_bytes == job.memory_bytes > 13 * 8 * SIZE
    assert status.bytes_received == 12 * 8 * SIZE
    assert status.bytes_sent == 8 * SIZE
    assert status.lease.held
    assert 0 < status.lease.expires_in_seconds <= 60
    assert status.last_prediction_seconds > 0
    assert abs(status.blocks[0].eigenvalues[0]) == pytest.approx(0.97, abs=1e-3)
    assert job_name in [listed.name for listed in client.jobs()]


def test_close_frees_name_and_memory(client: koopcast.Client, job_name: str, path: LinearTrajectory) -> None:
    with client.open_job(job_name, snapshot(path, 0), stride=STRIDE) as job:
        job.push(0, snapshot(path, 0))
    with pytest.raises(koopcast.NotFound):
        client.job_status(job_name)
    assert not client.open_job(job_name, snapshot(path, 0), stride=STRIDE + 1).resumed


def test_push_does_not_alias_the_caller(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = client.open_job(job_name, snapshot(path, 0), stride=STRIDE)
    buffer = snapshot(path, 0)
    for index in range(12):
        for key, array in snapshot(path, index).items():
            buffer[key][...] = array
        job.push(STRIDE * index, buffer)
    buffer["layer.bias"][...] = np.nan
    prediction = job.predict_ahead(10)
    assert relative_error(flat(prediction.displacement), path.displacement(11, 12)) < 1e-5
    assert np.isfinite(prediction.weights["layer.bias"]).all()


def test_a_job_may_be_used_from_several_threads(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    job = filled(client, job_name, path)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(10):
                job.predict_ahead([10, 20])
        except BaseException as error:  # noqa: BLE001  # shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for index in range(12, 30):
        job.push(STRIDE * index, snapshot(path, index))
    for thread in threads:
        thread.join()
    assert not failures
    assert job.status().step == 290


def test_state_observable_predicts_too(
    client: koopcast.Client, job_name: str, path: LinearTrajectory
) -> None:
    operator = koopcast.Operator(observable="state", rank=4, ridge=0.0)
    job = filled(client, job_name, path, operator=operator)
    prediction = job.predict_ahead(20)
    assert relative_error(flat(prediction.displacement), path.displacement(11, 13)) < 1e-3


def test_a_still_window_declines(client: koopcast.Client, job_name: str, path: LinearTrajectory) -> None:
    job = client.open_job(job_name, snapshot(path, 0), stride=STRIDE)
    for index in range(5):
        job.push(STRIDE * index, snapshot(path, 0))
    prediction = job.predict_ahead(100)
    assert not prediction.moved
    assert not any(array.any() for array in prediction.displacement.values())
    assert prediction.blocks[0].rank == 0
