"""The error table of the design, each entry through the real client; after each the job still answers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

import koopcast
import koopcast.channel
import koopcast.messages
from koopcast.v1 import (
    job_pb2,
    job_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    snapshot_pb2,
    snapshot_pb2_grpc,
)
from koopcast.wire import checksum
from linear import LinearTrajectory, relative_error
from services import RunningService, free_port, running_service

STRIDE = 10
PATH = LinearTrajectory(300, seed=5)


def snapshot(index: int) -> dict[str, np.ndarray]:
    weights = PATH.at(index)
    return {"a": weights[:200].reshape(10, 20), "b": weights[200:]}


@pytest.fixture
def job(client: koopcast.Client, job_name: str) -> Iterator[koopcast.Job]:
    """A job with a full window, that must still answer correctly when the test is over."""
    opened = client.open_job(job_name, snapshot(0), stride=STRIDE)
    for index in range(12):
        opened.push(STRIDE * index, snapshot(index))
    yield opened
    assert opened.push(STRIDE * 12, snapshot(12)).outcome in {"accepted", "duplicate"}
    prediction = opened.predict_ahead(20)
    moved = np.concatenate([np.ravel(prediction.displacement[key]) for key in ("a", "b")])
    assert relative_error(moved, PATH.displacement(12, 14)) < 1e-4


def changed(index: int, key: str, array: object) -> dict[str, object]:
    return {**snapshot(index), key: array}


def with_value(index: int, value: float) -> dict[str, object]:
    array = snapshot(index)["a"]
    array[3, 7] = value
    return changed(index, "a", array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_name_tensor_and_place(job: koopcast.Job, value: float) -> None:
    with pytest.raises(koopcast.InvalidArgument, match="'a' holds") as caught:
        job.push(120, with_value(12, value))
    assert caught.value.reason == "NON_FINITE"
    assert caught.value.details["field"] == "a"
    assert caught.value.details["index"] == "67"
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_wrong_shape(job: koopcast.Job) -> None:
    with pytest.raises(koopcast.ArgumentValueError, match=r"'a' has shape \(20, 10\).*\(10, 20\)"):
        job.push(120, changed(12, "a", snapshot(12)["a"].T))


def test_wrong_dtype(job: koopcast.Job) -> None:
    with pytest.raises(
        koopcast.ArgumentValueError, match="'b' has dtype float32; the job was opened with float64"
    ):
        job.push(120, changed(12, "b", snapshot(12)["b"].astype(np.float32)))


def test_unknown_dtype(client: koopcast.Client, job: koopcast.Job) -> None:
    with pytest.raises(
        koopcast.ArgumentValueError, match="'b' has dtype int64; koopcast takes float64, float32"
    ):
        job.push(120, changed(12, "b", np.arange(100)))
    with pytest.raises(koopcast.ArgumentValueError, match="complex128"):
        client.open_job("complex", {"x": np.ones(3, complex)}, stride=1)


def test_missing_and_extra_tensors(job: koopcast.Job) -> None:
    with pytest.raises(koopcast.ArgumentValueError, match="missing 'b'"):
        job.push(120, {"a": snapshot(12)["a"]})
    with pytest.raises(koopcast.ArgumentValueError, match="not in the job 'c'"):
        job.push(120, changed(12, "c", np.ones(2)))


def test_no_array(job: koopcast.Job) -> None:
    with pytest.raises(TypeError, match="'b' must be a NumPy array"):
        job.push(120, changed(12, "b", [1.0, 2.0]))


def test_step_backwards(job: koopcast.Job) -> None:
    job.push(120, snapshot(12))
    with pytest.raises(
        koopcast.FailedPrecondition, match="newest snapshot of segment 1 is of step 120"
    ) as caught:
        job.push(115, snapshot(11))
    assert caught.value.reason == "STEP_BACKWARDS"


@pytest.mark.parametrize("step", [-1, 1.5, True, "10", None, 2**60])
def test_step_that_is_no_step(job: koopcast.Job, step: object) -> None:
    with pytest.raises(koopcast.InvalidArgument, match="step must") as caught:
        job.push(step, snapshot(12))  # type: ignore[arg-type]  # what the test is about
    assert isinstance(caught.value, ValueError | TypeError)


def test_non_uniform_stride(job: koopcast.Job) -> None:
    with pytest.raises(koopcast.InvalidArgument, match=r"after step 110 comes 120 \(stride 10\)") as caught:
        job.push(130, snapshot(13))
    assert caught.value.details["expected"] == "120"


def test_same_step_with_other_bytes(job: koopcast.Job) -> None:
    with pytest.raises(koopcast.AlreadyExists, match="step 110 of segment 1 is held with other bytes"):
        job.push(110, snapshot(10))


def test_unknown_job(client: koopcast.Client, job: koopcast.Job) -> None:
    with pytest.raises(koopcast.NotFound, match="there is no job 'nobody'") as caught:
        client.job_status("nobody")
    assert caught.value.details == {"job": "nobody"}


def test_a_job_that_was_closed_elsewhere_is_not_found(
    client: koopcast.Client, service: RunningService, job_name: str, job: koopcast.Job
) -> None:
    mine = client.open_job(f"{job_name}-other", snapshot(0), stride=STRIDE)
    with koopcast.connect(service.target) as other:
        other.open_job(f"{job_name}-other", snapshot(0), stride=STRIDE, take_over=True).close()
    with pytest.raises(koopcast.NotFound, match="open it again"):
        mine.push(0, snapshot(0))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 129])
def test_bad_name(client: koopcast.Client, job: koopcast.Job, name: str) -> None:
    with pytest.raises(koopcast.ArgumentValueError, match="a job's name is 1 to 128 letters"):
        client.open_job(name, snapshot(0), stride=1)


@pytest.mark.parametrize(
    ("stride", "kind"), [(0, ValueError), (-5, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_stride(
    client: koopcast.Client, job: koopcast.Job, stride: object, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="stride must"):
        client.open_job("strides", snapshot(0), stride=stride)  # type: ignore[arg-type]  # what the test is about


def test_name_taken_with_another_spec(
    client: koopcast.Client, service: RunningService, job_name: str, job: koopcast.Job
) -> None:
    first = client.open_job(f"{job_name}-spec", snapshot(0), stride=STRIDE)
    first.close(keep=True)
    for settings, difference in (
        ({"stride": 5}, "stride is 10, asked for 5"),
        ({"stride": STRIDE, "operator": koopcast.Operator(window=6)}, "operator is .*asked for"),
    ):
        with pytest.raises(koopcast.AlreadyExists, match=difference) as caught:
            client.open_job(f"{job_name}-spec", snapshot(0), **settings)
        assert caught.value.reason == "OTHER_SPEC"
    with pytest.raises(koopcast.AlreadyExists, match="tensors differ: b"):
        client.open_job(f"{job_name}-spec", changed(0, "b", np.ones(7)), stride=STRIDE)
    assert client.open_job(f"{job_name}-spec", snapshot(0), stride=STRIDE).resumed


def test_live_lease(
    client: koopcast.Client, service: RunningService, job_name: str, job: koopcast.Job
) -> None:
    with koopcast.connect(service.target) as other:
        with pytest.raises(koopcast.AlreadyExists, match=r"has a writer .*lease expires in") as caught:
            other.open_job(job_name, snapshot(0), stride=STRIDE)
        assert caught.value.reason == "LIVE_LEASE"
        assert 0 < float(caught.value.details["expires_in_seconds"]) <= 60
        with pytest.raises(koopcast.AlreadyExists, match="has a writer"):
            other.open_job(job_name, snapshot(0), stride=STRIDE, if_exists="replace")
        with pytest.raises(koopcast.AlreadyExists, match="exists"):
            other.open_job(job_name, snapshot(0), stride=STRIDE, if_exists="error")


def test_too_few_snapshots(client: koopcast.Client, job_name: str, job: koopcast.Job) -> None:
    fresh = client.open_job(f"{job_name}-fresh", snapshot(0), stride=STRIDE)
    for index in range(3):
        with pytest.raises(
            koopcast.FailedPrecondition, match=f"holds {index} snapshots; .* needs 3"
        ) as caught:
            fresh.predict_ahead(10)
        assert (caught.value.details["held"], caught.value.details["needed"]) == (str(index), "3")
        fresh.push(STRIDE * index, snapshot(index))
    assert fresh.predict_ahead(10).base_step == 20


@pytest.mark.parametrize(
    "horizon", [0, -1, float("nan"), float("inf"), 1e300, "10", True, [], [10, 0], [10, None]]
)
def test_bad_horizon(job: koopcast.Job, horizon: object) -> None:
    with pytest.raises(koopcast.InvalidArgument, match="horizon") as caught:
        job.predict_ahead(horizon)  # type: ignore[call-overload]  # what the test is about
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize(
    ("intervals", "from_clock", "words"),
    [
        ([1.0, 2.0], None, "2 clock_intervals for 1 horizons"),
        ([0.0], None, "> 0"),
        ([float("nan")], None, "finite"),
        ([1.0], 100.0, "from_clock 100.0 lies before the last snapshot's, 110.0"),
        ([1.0], float("inf"), "finite"),
    ],
)
def test_bad_clocks(job: koopcast.Job, intervals: list[float], from_clock: float | None, words: str) -> None:
    with pytest.raises(koopcast.InvalidArgument, match=words):
        job.predict_ahead(10, clock_intervals=intervals, from_clock=from_clock)


def test_a_clock_must_rise(client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, snapshot(0), stride=STRIDE)
    job.push(0, snapshot(0), clock=1.0)
    with pytest.raises(koopcast.InvalidArgument, match=r"clock must rise within a segment: 1.0 follows 1.0"):
        job.push(STRIDE, snapshot(1), clock=1.0)
    job.push(STRIDE, snapshot(1), clock=1.5)
    assert job.snapshots_held == 2


def test_a_clock_too_uneven_to_resample(client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, snapshot(0), stride=STRIDE)
    for index in range(6):
        job.push(STRIDE * index, snapshot(index), clock=1e6**index)
    with pytest.raises(koopcast.FailedPrecondition, match="cannot be resampled") as caught:
        job.predict_ahead(10, clock_intervals=[1.0])
    assert caught.value.reason == "UNEVEN_CLOCK"
    assert job.predict_ahead(10).base_step == 50


def test_from_step_in_the_past(job: koopcast.Job) -> None:
    with pytest.raises(
        koopcast.InvalidArgument, match="from_step 100 lies before the last snapshot, step 110"
    ):
        job.predict_ahead(10, from_step=100)


def test_unknown_prediction(job: koopcast.Job) -> None:
    with pytest.raises(koopcast.NotFound, match="no prediction 'nothing'"):
        job.report("nothing", accepted=True)
    prediction = job.predict_ahead(10)
    job.report(prediction, accepted=True)
    with pytest.raises(koopcast.AlreadyExists, match="reported as accepted before"):
        job.report(prediction, accepted=False)


def test_over_the_memory_limit_is_refused_when_the_job_opens(
    client: koopcast.Client, job_name: str, job: koopcast.Job
) -> None:
    huge = {"x": koopcast.TensorSpec("float32", (40_000, 10_000))}
    with pytest.raises(koopcast.ResourceExhausted, match=r"needs .* MiB .* limit of 1024\.0 MiB") as caught:
        client.open_job(f"{job_name}-huge", huge, stride=1)
    assert int(caught.value.details["needed_bytes"]) > int(caught.value.details["limit_bytes"]) == 2**30
    absurd = {"x": koopcast.TensorSpec("float64", (2**31, 2**31))}
    with pytest.raises(koopcast.ResourceExhausted):
        client.open_job(f"{job_name}-huge", absurd, stride=1)


def test_a_replacement_that_does_not_fit_costs_nothing(
    client: koopcast.Client, job_name: str, job: koopcast.Job
) -> None:
    kept = client.open_job(f"{job_name}-kept", snapshot(0), stride=STRIDE)
    kept.push(0, snapshot(0))
    kept.close(keep=True)
    huge = {"x": koopcast.TensorSpec("float32", (40_000, 10_000))}
    with pytest.raises(koopcast.ResourceExhausted):
        client.open_job(f"{job_name}-kept", huge, stride=1, if_exists="replace")
    assert client.open_job(f"{job_name}-kept", snapshot(0), stride=STRIDE).snapshots_held == 1


def test_service_absent() -> None:
    with koopcast.connect(f"127.0.0.1:{free_port()}") as nobody:
        started = time.monotonic()
        with pytest.raises(koopcast.Unavailable, match="cannot be reached"):
            nobody.open_job("x", snapshot(0), stride=1)
        assert time.monotonic() - started < 5


def test_deadline(service: RunningService, client: koopcast.Client, job: koopcast.Job) -> None:
    job.predict_ahead(10)
    service.pause()
    try:
        with pytest.raises(koopcast.DeadlineExceeded, match="within the deadline"):
            job.predict_ahead(10, timeout_seconds=0.3)
        with pytest.raises(koopcast.DeadlineExceeded):
            job.push(120, snapshot(12), timeout_seconds=0.3)
    finally:
        service.resume()


def test_calls_after_close(
    client: koopcast.Client, service: RunningService, job_name: str, job: koopcast.Job
) -> None:
    other = koopcast.connect(service.target)
    its_job = other.open_job(f"{job_name}-closed", snapshot(0), stride=STRIDE)
    its_job.close()
    with pytest.raises(koopcast.FailedPrecondition, match="was closed here"):
        its_job.push(0, snapshot(0))
    other.close()
    with pytest.raises(koopcast.Cancelled, match="client is closed"):
        other.jobs()


def test_draining() -> None:
    """While an upload is under way SIGTERM refuses new work, precisely, and lets the upload end."""
    with (
        running_service("--drain-seconds", "20", "--http", "off") as service,
        koopcast.connect(service.target) as client,
    ):
        job = client.open_job("draining", snapshot(0), stride=STRIDE)
        with grpc.insecure_channel(service.target) as channel:
            stub = snapshot_pb2_grpc.SnapshotServiceStub(channel)
            requests = Requests(raw_upload(job, snapshot(0), 0))
            answers = stub.PushSnapshot(iter(requests))
            requests.send(1)
            assert next(answers).HasField("ready")
            service.process.terminate()
            with pytest.raises(koopcast.Unavailable, match="draining") as caught:
                ask_until_refused(client)
            assert caught.value.reason == "DRAINING"
            requests.send(2)
            assert next(answers).result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED
        assert service.process.wait(timeout=20) == 0


def ask_until_refused(client: koopcast.Client) -> None:
    for attempt in range(200):
        client.open_job(f"late-{attempt}", snapshot(0), stride=STRIDE)
        time.sleep(0.02)


class Requests:
    """A request stream that yields only as many messages as it was told to."""

    def __init__(self, messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
        self._messages = messages
        self._allowed = 0

    def send(self, count: int) -> None:
        self._allowed += count

    def __iter__(self) -> Iterator[snapshot_pb2.PushSnapshotRequest]:
        for index, message in enumerate(self._messages):
            while self._allowed <= index:
                time.sleep(0.005)
            yield message


def raw_upload(
    job: koopcast.Job, tensors: dict[str, np.ndarray], step: int
) -> list[snapshot_pb2.PushSnapshotRequest]:
    """The three messages of a small upload, for tests that break them."""
    layout = job._layout
    data = layout.pack(tensors).tobytes()
    request = snapshot_pb2.PushSnapshotRequest
    header = snapshot_pb2.SnapshotHeader(
        job=job.name,
        lease_id=job._lease_id,
        segment=job.segment,
        step=step,
        tensors=koopcast.messages.tensors_to_messages(layout.specs),
        total_bytes=len(data),
        digest=checksum(data).to_bytes(4, "big"),
    )
    chunk = snapshot_pb2.SnapshotChunk(offset=0, data=data, crc32c=checksum(data))
    return [request(header=header), request(chunk=chunk), request(commit=snapshot_pb2.SnapshotCommit())]


Break = Callable[[list[snapshot_pb2.PushSnapshotRequest]], None]


def corrupt(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    data = bytearray(messages[1].chunk.data)
    data[100] ^= 1
    messages[1].chunk.data = bytes(data)


def wrong_digest(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    messages[0].header.digest = b"\0\0\0\0"


def no_chunk(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    del messages[1]


def no_commit(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    del messages[2]


def no_header(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    del messages[0]


def too_long(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    more = snapshot_pb2.PushSnapshotRequest()
    more.CopyFrom(messages[1])
    more.chunk.offset = len(messages[1].chunk.data)
    messages.insert(2, more)


def gap(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    messages[1].chunk.offset = 8


def other_tensors(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    messages[0].header.tensors[0].shape[0] = 11


def reserved(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    messages[0].header.encoding = 3  # type: ignore[assignment]  # a number from a newer client


def foreign_lease(messages: list[snapshot_pb2.PushSnapshotRequest]) -> None:
    messages[0].header.lease_id = "somebody else's"


@pytest.mark.parametrize(
    ("breaks", "expected", "words"),
    [
        (corrupt, koopcast.DataLoss, "checksum|crc32c"),
        (wrong_digest, koopcast.DataLoss, "digest"),
        (no_chunk, koopcast.InvalidArgument, "commit after 0 of 2400 bytes"),
        (no_commit, koopcast.InvalidArgument, "without a commit"),
        (no_header, koopcast.InvalidArgument, "its header"),
        (too_long, koopcast.InvalidArgument, "has 2400 bytes"),
        (gap, koopcast.InvalidArgument, "expected byte 0"),
        (other_tensors, koopcast.InvalidArgument, "tensor 'a'"),
        (reserved, koopcast.InvalidArgument, "raw"),
        (foreign_lease, koopcast.LeaseLost, "does not hold job"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_uploads_cost_nothing(
    service: RunningService,
    job: koopcast.Job,
    breaks: Break,
    expected: type[koopcast.KoopcastError],
    words: str,
) -> None:
    messages = raw_upload(job, snapshot(12), 120)
    breaks(messages)
    with grpc.insecure_channel(service.target) as channel:
        stub = snapshot_pb2_grpc.SnapshotServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.PushSnapshot(iter(messages)))
    error = koopcast.channel.error_from_call(caught.value, service.target)
    assert type(error) is expected
    with pytest.raises(expected, match=words):
        raise error
    assert job.status().snapshots_held == 12


@pytest.mark.parametrize("horizons", [[1e308], [0.0], [-1.0], [float("nan")], [float("inf")], [1.0] * 65])
def test_the_service_checks_horizons_itself(
    service: RunningService, job: koopcast.Job, horizons: list[float]
) -> None:
    with grpc.insecure_channel(service.target) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.PredictAhead(prediction_pb2.PredictAheadRequest(job=job.name, horizons=horizons)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def reserved_specs() -> Iterator[job_pb2.JobSpec]:
    def spec() -> job_pb2.JobSpec:
        tensors = [koopcast.messages.tensors_to_messages({"x": koopcast.TensorSpec("float32", (3,))})[0]]
        return job_pb2.JobSpec(tensors=tensors, stride=1)

    for field, value in (
        ("partition", 4),
        ("partition", 99),
        ("rank_rule", 99),
        ("debias", 99),
        ("delays", 65),
        ("forgetting", 1.5),
        ("quasi_node_inputs", 7),
        ("max_jump", -1.0),
        ("mask_tolerance", float("inf")),
        ("window", 1025),
        ("window", 1),
        ("ridge", -1.0),
        ("ridge", float("nan")),
    ):
        changed_spec = spec()
        setattr(changed_spec.operator, field, value)
        yield changed_spec
    for field, value in (
        ("window_holder", 3),
        ("shard_count", 2),
        ("encoding", 9),
        ("stride", 0),
        ("window_dtype", 99),
    ):
        changed_spec = spec()
        setattr(changed_spec, field, value)
        yield changed_spec
    unknown = spec()
    unknown.tensors[0].dtype = 42  # type: ignore[assignment]  # a number from a newer client
    yield unknown
    empty = spec()
    empty.tensors[0].shape[0] = 0
    yield empty
    twice = spec()
    twice.tensors.append(twice.tensors[0])
    yield twice
    yield job_pb2.JobSpec(stride=1)


@pytest.mark.parametrize("spec", list(reserved_specs()), ids=lambda spec: str(spec).replace("\n", " ")[-60:])
def test_specs_that_are_wrong_or_reserved_are_refused(service: RunningService, spec: job_pb2.JobSpec) -> None:
    with grpc.insecure_channel(service.target) as channel:
        stub = job_pb2_grpc.JobServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.OpenJob(job_pb2.OpenJobRequest(name="refused", spec=spec, protocol_version=1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("nowhere", ValueError),
        ("host:", ValueError),
        ("host:99999", ValueError),
        (7, TypeError),
        ("10.0.0.1:1", ValueError),
    ],
)
def test_bad_targets(target: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        koopcast.connect(target)  # type: ignore[arg-type]  # what the test is about


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 2},
        {"window": 1025},
        {"window": "all"},
        {"window": 4, "delays": 2},
        {"delays": 2, "window": "segment"},
        {"partition": "quasi_node"},
        {"quasi_node_inputs": 3},
        {"forgetting": 0.0},
        {"debias": "all"},
        {"max_jump": 0.0},
        {"mask_tolerance": -1.0},
        {"always_move": 1},
        {"rank": 0},
        {"rank": "best"},
        {"energy": 0.0},
        {"ridge": -1.0},
        {"ridge": float("nan")},
        {"observable": "weights"},
        {"partition": "layer"},
        {"window": 5.0},
        {"rank": True},
        {"ridge": "small"},
        {"stabilize": 1},
    ],
    ids=str,
)
def test_bad_operators(settings: dict[str, object]) -> None:
    with pytest.raises(koopcast.InvalidArgument, match=next(iter(settings))) as caught:
        koopcast.Operator(**settings)  # type: ignore[arg-type]  # what the test is about
    assert isinstance(caught.value, ValueError | TypeError)


def test_error_messages_are_for_people(service: RunningService) -> None:
    """The command line names what is wrong, in one line, and exits 2."""
    result = subprocess.run(
        [sys.executable, "-m", "koopcast_server", "serve", "--listen", service.target, "--http", "off"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "cannot listen on" in result.stderr
    assert "Traceback" not in result.stderr
