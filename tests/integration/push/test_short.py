"""Snapshots of at most 2 MiB: one message each, under the rules that hold for uploads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

import koopcast
from koopcast import short_upload
from koopcast.client import Encoding
from koopcast.v1 import snapshot_pb2
from koopcast.wire import checksum
from proxy import Direction, Faults, Proxy
from raw import Stubs, stubs, upload
from services import RunningService

MIB = 1 << 20
Tensors = dict[str, np.ndarray]


def small(step: int) -> Tensors:
    """Lands at once."""
    return {"w": np.full(1000, 0.5 + step, np.float32)}


def mixed(step: int) -> Tensors:
    """Two runs, in a message that lands on a worker."""
    return {"w": np.full(100_000, 0.5 + step, np.float32), "b": np.arange(1000.0) + step}


def scattered(step: int) -> Tensors:
    """Few bytes, in more runs than land at once."""
    return {f"t{index}": np.full(3, index + step, ["f4", "f8"][index % 2]) for index in range(30)}


EVERY_SHAPE = pytest.mark.parametrize("snapshot", [small, mixed, scattered])


@pytest.fixture
def raw(service: RunningService) -> Iterator[Stubs]:
    with stubs(service.target) as made:
        yield made


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Threads that were started."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    return started


def message_of(job: koopcast.Job, tensors: Tensors, step: int) -> snapshot_pb2.PushShortSnapshotRequest:
    header = upload(job, tensors, step)[0].header
    data = job._layout.pack(tensors).tobytes()
    return snapshot_pb2.PushShortSnapshotRequest(header=header, data=data)


def outcome_of(raw: Stubs, message: snapshot_pb2.PushShortSnapshotRequest) -> snapshot_pb2.SnapshotResult:
    response: snapshot_pb2.PushShortSnapshotResponse = raw.snapshots.PushShortSnapshot(message, timeout=20)
    return response.result


def error_of(raw: Stubs, message: snapshot_pb2.PushShortSnapshotRequest) -> koopcast.KoopcastError:
    with pytest.raises(grpc.RpcError) as caught:
        outcome_of(raw, message)
    return koopcast.channel.error_from_call(caught.value, "")


def assert_held(job: koopcast.Job, tensors: Tensors) -> None:
    """The service says what it has: the job is asked to forget its own copy."""
    while job.snapshots_held < 3:
        job.start_segment()
        for step in range(3):
            job.push(step, tensors)
    job._last = None
    weights = job.predict_ahead(1)._base()
    for name, values in tensors.items():
        np.testing.assert_array_equal(weights[name], values)


@pytest.mark.parametrize(("nbytes", "is_short"), [(4, True), (2 * MIB, True), (2 * MIB + 4, False)])
def test_up_to_2_mebibytes_no_thread_is_started(
    client: koopcast.Client,
    job_name: str,
    threads: list[threading.Thread],
    nbytes: int,
    is_short: bool,
) -> None:
    weights = {"w": np.ones(nbytes // 4, np.float32)}
    job = client.open_job(job_name, weights, stride=1, operator=koopcast.Operator(window=3))
    threads.clear()
    assert job.push(0, weights).snapshots_held == 1
    assert (not threads) == is_short
    assert job.bytes_sent == nbytes


@EVERY_SHAPE
def test_it_arrives_as_it_was(
    client: koopcast.Client, job_name: str, snapshot: Callable[[int], Tensors]
) -> None:
    job = client.open_job(job_name, snapshot(0), stride=1, operator=koopcast.Operator(window=3))
    for step in range(5):
        assert job.push(step, snapshot(step)).outcome == "accepted"
    assert_held(job, snapshot(4))
    assert job.status().bytes_received == 5 * job._layout.nbytes


@pytest.mark.parametrize("encoding", ["delta", "delta-int8"])
def test_differences_make_the_bits_that_a_stream_makes(
    client: koopcast.Client, job_name: str, encoding: Encoding
) -> None:
    start = np.random.default_rng(0).standard_normal(100_001, np.float32)
    jobs = [
        client.open_job(
            f"{job_name}-{how}", {"w": start}, stride=1, encoding=encoding, wire_dtype="bfloat16",
            operator=koopcast.Operator(window=3),
        )
        for how in ("short", "stream")
    ]  # fmt: skip
    jobs[1]._takes_short = False
    for step in range(4):
        weights = {"w": start * np.float32(0.9**step)}
        assert [job.push(step, weights).outcome for job in jobs] == ["accepted"] * 2
        assert jobs[0].push(step, weights).outcome == "duplicate"
    bases = []
    for job in jobs:
        job._last = None
        bases.append(job.predict_ahead(1)._base()["w"])
    np.testing.assert_array_equal(bases[0], bases[1])
    with pytest.raises(koopcast.AlreadyExists, match="other bytes"):
        jobs[0].push(3, {"w": start})


def test_segments_steps_and_bytes_are_judged(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, small(0), stride=2)
    assert job.push(0, small(0)).outcome == "accepted"
    assert job.push(0, small(0)).outcome == "duplicate"
    with pytest.raises(koopcast.AlreadyExists, match="other bytes"):
        job.push(0, small(1))
    with pytest.raises(koopcast.InvalidArgument, match="stride"):
        job.push(3, small(1))
    old = message_of(job, small(9), 8)
    job.start_segment()
    assert job.push(1, small(1)).snapshots_held == 1
    assert outcome_of(raw, old).outcome == snapshot_pb2.SNAPSHOT_OUTCOME_SUPERSEDED
    assert job.status().snapshots_accepted == 2


def without_a_digest(message: snapshot_pb2.PushShortSnapshotRequest) -> None:
    message.header.ClearField("digest")


def of_another_length(message: snapshot_pb2.PushShortSnapshotRequest) -> None:
    message.data = message.data[:-4]


def of_no_bytes(message: snapshot_pb2.PushShortSnapshotRequest) -> None:
    message.data = b""


def with_other_total_bytes(message: snapshot_pb2.PushShortSnapshotRequest) -> None:
    message.header.total_bytes -= 4
    message.data = message.data[:-4]


def with_a_changed_byte(message: snapshot_pb2.PushShortSnapshotRequest) -> None:
    message.data = message.data[:-1] + bytes([message.data[-1] ^ 1])


def not_finite(message: snapshot_pb2.PushShortSnapshotRequest) -> None:
    message.data = message.data[:-8] + np.array(np.nan).tobytes()
    message.header.digest = checksum(message.data).to_bytes(4, "big")


def of_another_encoding(message: snapshot_pb2.PushShortSnapshotRequest) -> None:
    message.header.encoding = 2  # type: ignore[assignment]  # a job of raw snapshots


@EVERY_SHAPE
@pytest.mark.parametrize(
    ("spoil", "kind", "told"),
    [
        (without_a_digest, koopcast.InvalidArgument, ("field", "digest")),
        (of_another_length, koopcast.InvalidArgument, ("field", "data")),
        (of_no_bytes, koopcast.InvalidArgument, ("field", "data")),
        (with_other_total_bytes, koopcast.InvalidArgument, ("field", "total_bytes")),
        (with_a_changed_byte, koopcast.DataLoss, None),
        (not_finite, koopcast.InvalidArgument, ("value", "nan")),
        (of_another_encoding, koopcast.InvalidArgument, ("field", "encoding")),
    ],
)
def test_what_is_refused_leaves_the_window_alone(
    raw: Stubs,
    client: koopcast.Client,
    job_name: str,
    snapshot: Callable[[int], Tensors],
    spoil: Callable[[Any], None],
    kind: type[koopcast.KoopcastError],
    told: tuple[str, str] | None,
) -> None:
    job = client.open_job(job_name, snapshot(0), stride=1, operator=koopcast.Operator(window=3))
    job.push(0, snapshot(0))
    message = message_of(job, snapshot(1), 1)
    spoil(message)
    error = error_of(raw, message)
    assert type(error) is kind
    if told is None:
        assert error.reason == "CHECKSUM_MISMATCH"
    else:
        assert error.details[told[0]] == told[1]
    assert job.status().snapshots_held == 1
    assert job.push(1, snapshot(1)).snapshots_held == 2
    job.push(2, snapshot(2))
    assert_held(job, snapshot(2))


def test_a_longer_one_must_be_a_stream(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    large = {"w": np.ones(2 * MIB // 4 + 1, np.float32)}
    job = client.open_job(job_name, large, stride=1, operator=koopcast.Operator(window=3))
    error = error_of(raw, message_of(job, large, 0))
    assert isinstance(error, koopcast.InvalidArgument)
    assert (error.details["field"], error.details["limit"]) == ("data", str(2 * MIB))
    assert job.push(0, large).snapshots_held == 1


def test_only_the_writer_may(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, small(0), stride=1)
    message = message_of(job, small(0), 0)
    message.header.lease_id = "another"
    assert isinstance(error_of(raw, message), koopcast.LeaseLost)
    message.header.job = f"{job_name}-none"
    assert isinstance(error_of(raw, message), koopcast.NotFound)
    held = client.open_job(f"{job_name}-held", small(0), stride=1, window_holder="trainer")
    assert isinstance(error_of(raw, message_of(held, small(0), 0)), koopcast.FailedPrecondition)


def test_it_ends_an_upload_that_is_under_way(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, mixed(0), stride=1)
    header, *rest = upload(job, mixed(0), 0)
    may_go_on = threading.Event()

    def messages() -> Iterator[snapshot_pb2.PushSnapshotRequest]:
        yield header
        may_go_on.wait(20)
        yield from rest

    answers = raw.snapshots.PushSnapshot(messages(), timeout=20)
    assert next(answers).HasField("ready")
    assert job.push(0, mixed(1)).outcome == "accepted"
    may_go_on.set()
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert koopcast.channel.error_from_call(caught.value, "").reason == "UPLOAD_REPLACED"
    assert job.status().snapshots_accepted == 1


def test_a_result_that_was_lost_is_told_again(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, small(0), stride=1)
    message = message_of(job, small(0), 0)
    message.header.upload_id = b"one"
    assert outcome_of(raw, message).outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED
    message.header.resume = True
    assert outcome_of(raw, message).outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED
    message.header.upload_id = b"two"
    assert outcome_of(raw, message).outcome == snapshot_pb2.SNAPSHOT_OUTCOME_DUPLICATE
    assert job.status().snapshots_accepted == 1


def until_reached(call: Callable[[], Any]) -> Any:
    """Calls until the service can be reached again: gRPC waits a little before it connects once more."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return call()
        except koopcast.Unavailable:
            if time.monotonic() > deadline:
                raise


def test_random_cuts_cost_no_snapshot(far: koopcast.Client, proxy: Proxy, job_name: str) -> None:
    generator = random.Random(7)
    job = far.open_job(job_name, mixed(0), stride=1, operator=koopcast.Operator(window=3))
    cuts = 0
    cutting: list[threading.Thread] = []
    for step in range(60):
        direction: Direction = generator.choice(["up", "down"])
        at = generator.randint(1, 400_000 if direction == "up" else 300)

        def watch(where: Direction, count: int, wanted: Direction = direction, at: int = at) -> None:
            if where == wanted and count >= at:
                proxy.on_bytes = None
                thread = threading.Thread(target=proxy.cut)
                thread.start()
                cutting.append(thread)

        proxy.on_bytes = watch
        proxy.cut()
        result = until_reached(partial(job.push, step, mixed(step)))
        assert result.outcome in {"accepted", "duplicate"}
        cuts += proxy.on_bytes is None
        proxy.on_bytes = None
        while cutting:
            cutting.pop().join()
    assert cuts >= 40
    assert until_reached(job.status).snapshots_accepted == 60
    assert_held(job, mixed(59))


def test_a_corrupted_byte_is_found_and_all_sent_again(
    far: koopcast.Client, proxy: Proxy, job_name: str
) -> None:
    job = far.open_job(job_name, mixed(0), stride=1, operator=koopcast.Operator(window=3))
    proxy.cut()
    proxy.up = Faults(corrupt_at=200_000)

    def heal_with_the_next(direction: Direction, passed: int) -> None:
        if direction == "up" and passed > 200_000:
            proxy.up = Faults()

    proxy.on_bytes = heal_with_the_next
    assert job.push(0, mixed(0)).outcome == "accepted"
    assert job.bytes_resent == job._layout.nbytes
    assert_held(job, mixed(0))


def test_a_service_that_knows_no_such_call_gets_a_stream(
    client: koopcast.Client,
    job_name: str,
    threads: list[threading.Thread],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def unknown(channel: grpc.Channel) -> Any:
        asked.append(channel)
        return channel.unary_unary("/koopcast.v1.SnapshotService/PushOtherSnapshot")

    monkeypatch.setattr(short_upload, "push_short_snapshot", unknown)
    job = client.open_job(job_name, small(0), stride=1)
    for step in range(3):
        threads.clear()
        assert job.push(step, small(step)).outcome == "accepted"
        assert threads
    assert len(asked) == 1
