"""The push protocol message by message, as a client of another make speaks it."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

import koopcast
from koopcast.v1 import snapshot_pb2
from raw import Stubs, stubs, upload
from services import RunningService

Request = snapshot_pb2.PushSnapshotRequest
MIB = 1 << 20
WEIGHTS = {"w": np.arange(6.0)}
LARGE = {"w": np.random.default_rng(1).standard_normal(2 * MIB, dtype=np.float32)}  # 8 MiB

SMALL = koopcast.Operator(window=3)


@pytest.fixture
def raw(service: RunningService) -> Iterator[Stubs]:
    with stubs(service.target) as made:
        yield made


class Stream:
    """An upload whose messages are sent one by one."""

    def __init__(self, raw: Stubs) -> None:
        self._messages: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.answers: Any = raw.snapshots.PushSnapshot(iter(self._messages.get, None), timeout=20)

    def send(self, *messages: Request) -> None:
        for message in messages:
            self._messages.put(message)

    def end(self) -> None:
        self._messages.put(None)

    def next(self) -> snapshot_pb2.PushSnapshotResponse:
        answer: snapshot_pb2.PushSnapshotResponse = next(self.answers)
        return answer

    def error(self) -> koopcast.KoopcastError:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.answers)
        self.end()
        return error_of(caught.value)


def error_of(error: grpc.RpcError) -> koopcast.KoopcastError:
    return koopcast.channel.error_from_call(error, "")


def resumable(
    job: koopcast.Job, tensors: dict[str, np.ndarray], step: int, upload_id: bytes = b"one"
) -> list[Request]:
    """Header without a digest, chunks, commit with it."""
    messages = upload(job, tensors, step)
    messages[0].header.upload_id = upload_id
    messages[-1].commit.digest = messages[0].header.digest
    messages[0].header.ClearField("digest")
    return messages


def resuming(messages: list[Request]) -> Request:
    again = Request()
    again.CopyFrom(messages[0])
    again.header.resume = True
    return again


def all_of(raw: Stubs, messages: list[Request]) -> list[snapshot_pb2.PushSnapshotResponse]:
    return list(raw.snapshots.PushSnapshot(iter(messages), timeout=20))


def test_the_commit_may_say_the_digest(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, LARGE, stride=1, operator=SMALL)
    ready, result = all_of(raw, resumable(job, LARGE, 0))
    assert (ready.ready.offset, ready.ready.unacknowledged_bytes_limit) == (0, 64 * MIB)
    assert result.result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED


@pytest.mark.parametrize("header_says", [False, True])
def test_a_wrong_digest_in_the_commit_loses_the_upload(
    raw: Stubs, client: koopcast.Client, job_name: str, header_says: bool
) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    messages = resumable(job, WEIGHTS, 0)
    if header_says:
        messages[0].header.digest = messages[-1].commit.digest
    messages[-1].commit.digest = b"\0\1\2\3"
    with pytest.raises(grpc.RpcError) as caught:
        all_of(raw, messages)
    assert (type(error_of(caught.value)), error_of(caught.value).reason) == (
        koopcast.DataLoss,
        "DIGEST_MISMATCH",
    )
    again = Stream(raw)
    again.send(resuming(messages))
    assert again.next().ready.offset == 0
    again.answers.cancel()


def test_acks_come_every_16_mebibytes(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    weights = {"w": np.zeros(12 * MIB, np.float32)}  # 48 MiB
    with client.open_job(job_name, weights, stride=1, operator=koopcast.Operator(window=3)) as job:
        ready, *acks, result = all_of(raw, upload(job, weights, 0))
    assert ready.HasField("ready")
    offsets = [ack.ack.committed_offset for ack in acks]
    assert 1 <= len(offsets) <= 3
    assert all(later - earlier >= 16 * MIB for earlier, later in itertools.pairwise([0, *offsets]))
    assert result.result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED


def test_a_spec_digest_stands_for_the_tensors(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    messages = upload(job, WEIGHTS, 0)
    messages[0].header.ClearField("tensors")
    messages[0].header.spec_digest = job._spec_digest
    assert all_of(raw, messages)[-1].result.snapshots_held == 1


def test_another_spec_digest_or_none_is_refused(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    other = client.open_job(f"{job_name}-other", {"w": np.arange(7.0)}, stride=1)
    messages = upload(job, WEIGHTS, 0)
    messages[0].header.ClearField("tensors")
    for digest, field in ((other._spec_digest, "spec_digest"), (b"short", "spec_digest"), (b"", "tensors")):
        messages[0].header.spec_digest = digest
        with pytest.raises(grpc.RpcError) as caught:
            all_of(raw, messages)
        assert isinstance(error_of(caught.value), koopcast.InvalidArgument)
        assert error_of(caught.value).details["field"] == field


def test_equal_specs_have_equal_digests(client: koopcast.Client, job_name: str) -> None:
    one = client.open_job(job_name, WEIGHTS, stride=1)
    same = client.open_job(f"{job_name}-same", WEIGHTS, stride=5)
    assert len(one._spec_digest) == 32
    assert one._spec_digest == same._spec_digest


def test_a_held_step_is_judged_by_its_commit(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    """No chunk need be sent for a step that is held, and none that is sent changes anything."""
    job = client.open_job(job_name, LARGE, stride=1, operator=SMALL)
    job.push(0, LARGE)
    header, *chunks, commit = resumable(job, LARGE, 0)
    for sent in ([], chunks[:2], chunks):
        ready, result = all_of(raw, [header, *sent, commit])
        assert ready.ready.held
        assert result.result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_DUPLICATE
    commit.commit.digest = b"\0\1\2\3"
    with pytest.raises(grpc.RpcError) as caught:
        all_of(raw, [header, commit])
    assert (type(error_of(caught.value)), error_of(caught.value).reason) == (
        koopcast.AlreadyExists,
        "OTHER_BYTES",
    )
    commit.commit.digest = b""
    with pytest.raises(grpc.RpcError) as caught:
        all_of(raw, [header, commit])
    assert error_of(caught.value).details["field"] == "digest"


def test_the_client_stops_sending_a_step_that_is_held(client: koopcast.Client, job_name: str) -> None:
    weights = {"w": np.random.default_rng(2).standard_normal(24 * MIB, dtype=np.float32)}  # 96 MiB
    with client.open_job(
        job_name, weights, stride=1, operator=koopcast.Operator(window=3), keep_weights=False
    ) as job:
        job.push(0, weights)
        sent = job.bytes_sent
        assert job.push(0, weights).outcome == "duplicate"
        assert job.bytes_sent - sent <= 64 * MIB
        weights["w"][-1] += 1
        with pytest.raises(koopcast.AlreadyExists, match="other bytes"):
            job.push(0, weights)
        job.close()


def test_a_cancelled_upload_goes_on_where_it_was(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    weights = {"w": np.random.default_rng(3).standard_normal(6 * MIB, dtype=np.float32)}  # 24 MiB
    with client.open_job(job_name, weights, stride=1, operator=koopcast.Operator(window=3)) as job:
        messages = resumable(job, weights, 0)
        first, second = Stream(raw), Stream(raw)
        first.send(*messages[:21])
        assert first.next().HasField("ready")
        assert first.next().ack.committed_offset >= 16 * MIB
        first.answers.cancel()
        second.send(resuming(messages))
        offset = second.next().ready.offset
        assert 16 * MIB <= offset <= 20 * MIB
        second.send(*messages[1 + offset // MIB :])
        assert second.next().result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED
        assert job.status().bytes_received == weights["w"].nbytes


def test_a_resume_takes_the_upload_from_a_connection_that_hangs(
    raw: Stubs, client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, LARGE, stride=1, operator=SMALL)
    messages = resumable(job, LARGE, 0)
    hanging, second = Stream(raw), Stream(raw)
    hanging.send(messages[0])
    assert hanging.next().HasField("ready")
    second.send(resuming(messages))
    offset = second.next().ready.offset
    hanging.send(*messages[1:])
    assert hanging.error().reason == "UPLOAD_REPLACED"
    second.send(*messages[1 + offset // MIB :])
    assert second.next().result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED


def test_a_result_that_was_lost_is_told_again(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    messages = resumable(job, WEIGHTS, 0)
    all_of(raw, messages)
    (again,) = all_of(raw, [resuming(messages)])
    assert again.result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED
    assert job.status().snapshots_accepted == 1


@pytest.mark.parametrize(
    ("field", "value"), [("step", 5), ("segment", 3), ("averaging", 2), ("clock", 0.5), ("digest", b"1234")]
)
def test_an_upload_id_is_of_one_snapshot(
    raw: Stubs, client: koopcast.Client, job_name: str, field: str, value: object
) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    messages = resumable(job, WEIGHTS, 0)
    first = Stream(raw)
    first.send(messages[0])
    assert first.next().HasField("ready")
    other = resuming(messages)
    setattr(other.header, field, value)
    second = Stream(raw)
    second.send(other)
    error = second.error()
    assert (type(error), error.reason, error.details["field"]) == (
        koopcast.InvalidArgument,
        "OTHER_UPLOAD",
        "upload_id",
    )
    first.send(*messages[1:])
    assert first.next().HasField("result")
    first.end()


def test_an_unknown_upload_begins_at_its_first_byte(
    raw: Stubs, client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    messages = resumable(job, WEIGHTS, 0)
    messages[0] = resuming(messages)
    ready, result = all_of(raw, messages)
    assert ready.ready.offset == 0
    assert result.result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED


@pytest.mark.parametrize(("upload_id", "resume"), [(b"", True), (b"x" * 17, False)])
def test_upload_ids_have_1_to_16_bytes(
    raw: Stubs, client: koopcast.Client, job_name: str, upload_id: bytes, resume: bool
) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    messages = resumable(job, WEIGHTS, 0, upload_id)
    messages[0].header.resume = resume
    with pytest.raises(grpc.RpcError) as caught:
        all_of(raw, messages)
    assert error_of(caught.value).details["field"] == "upload_id"


def test_an_upload_is_not_resumed_by_who_took_the_job_over(
    raw: Stubs, client: koopcast.Client, service: RunningService, job_name: str
) -> None:
    """The old holder has lost its lease; the new one begins every upload at its first byte."""
    old = client.open_job(job_name, LARGE, stride=1, operator=SMALL)
    messages = resumable(old, LARGE, 0)
    first = Stream(raw)
    first.send(*messages[:4])
    assert first.next().HasField("ready")
    first.answers.cancel()
    with koopcast.connect(service.target) as other:
        new = other.open_job(job_name, LARGE, stride=1, operator=SMALL, take_over=True)
        assert new.segment == 2
        theirs = Stream(raw)
        theirs.send(resuming(messages))
        assert theirs.error().reason == "LEASE_LOST"
        mine = resumable(new, LARGE, 0)
        mine[0] = resuming(mine)
        ready, result = all_of(raw, mine)
        assert ready.ready.offset == 0
        assert result.result.snapshots_held == 1


def test_another_upload_ends_a_broken_one(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, LARGE, stride=1, operator=SMALL)
    messages = resumable(job, LARGE, 0)
    first = Stream(raw)
    first.send(*messages[:4])
    assert first.next().HasField("ready")
    first.answers.cancel()
    assert job.push(0, LARGE).outcome == "accepted"
    job.push(1, LARGE)
    late = Stream(raw)
    late.send(resuming(messages))
    assert late.next().ready.held
    late.send(messages[-1])
    assert late.next().result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_DUPLICATE


def test_what_the_service_computes_later_is_there_when_it_is_asked_for(
    client: koopcast.Client, job_name: str
) -> None:
    """A snapshot counts before its Gram row is made: status and answers wait for the row, a new segment too."""
    job = client.open_job(job_name, LARGE, stride=1, operator=koopcast.Operator(window=4))
    for step in range(6):
        assert job.push(step, {"w": LARGE["w"] * np.float32(0.5**step)}).snapshots_held == min(step + 1, 4)
        assert job.status().snapshots_held == min(step + 1, 4)
    np.testing.assert_allclose(
        job.predict_ahead(1).displacement["w"], LARGE["w"] * np.float32(-(0.5**6)), rtol=1e-3, atol=1e-6
    )
    job.start_segment()
    assert job.push(0, LARGE).snapshots_held == 1
    with pytest.raises(koopcast.FailedPrecondition, match="holds 1 snapshots"):
        job.predict_ahead(1)


@pytest.mark.parametrize("window", [4, "segment"])
def test_a_segment_begins_while_work_on_the_last_one_is_put_off(
    client: koopcast.Client, job_name: str, window: Any
) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1, operator=koopcast.Operator(window=window))
    for _ in range(20):
        job.start_segment()
        for step in range(5):
            held = job.push(step, {"w": WEIGHTS["w"] * 0.9**step}).snapshots_held
            assert held == (step + 1 if window == "segment" else min(step + 1, window))
    assert job.status().snapshots_accepted == 100


def test_a_thousand_cancelled_uploads_leave_no_memory_behind(
    raw: Stubs, client: koopcast.Client, service: RunningService, job_name: str
) -> None:
    """With chunks of a mebibyte under way, and ids by which they could be resumed."""
    job = client.open_job(job_name, LARGE, stride=1, operator=koopcast.Operator(window=3))
    messages = resumable(job, LARGE, 0)
    process = psutil.Process(service.process.pid)

    def cancel(count: int) -> int:
        for index in range(count):
            messages[0].header.upload_id = index.to_bytes(8, "big")
            call = raw.snapshots.PushSnapshot(iter(messages[:4]), timeout=20)
            next(call)
            call.cancel()
        assert job.push(0, LARGE).outcome in {"accepted", "duplicate"}
        return int(process.memory_info().rss)

    before = cancel(200)
    assert cancel(1000) - before < 32 * MIB
