"""Snapshots through shared memory: they arrive as through a socket, whatever becomes of the memory or its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import koopcast
from koopcast.channel import error_from_call
from koopcast.shared_memory import SharedRing
from koopcast.v1 import job_pb2, snapshot_pb2
from koopcast.wire import checksum
from proxy import Direction, Proxy
from raw import Stubs, spec_of, stubs
from services import REPOSITORY, RunningService, running_service

MIB = 1 << 20
SETTINGS: dict[str, Any] = {"operator": koopcast.Operator("state", window=3, rank=1), "keep_weights": False}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is /dev/shm on Linux only")


@pytest.fixture
def client(service: RunningService) -> Iterator[koopcast.Client]:
    """A client that leaves no jobs: those here are large."""
    with koopcast.connect(service.target) as connected:
        yield connected
        for job in list(connected._jobs):
            job.close()


def names() -> set[str]:
    """Files of ours in /dev/shm."""
    return {path.name for path in Path("/dev/shm").glob("koopcast-*")}


def memories(process_id: int) -> int:
    """Memory of clients that a process has open."""
    found = 0
    for descriptor in Path(f"/proc/{process_id}/fd").iterdir():
        try:
            found += str(descriptor.readlink()).startswith("/dev/shm/koopcast-")
        except FileNotFoundError:  # closed in the meantime
            continue
    return found


def snapshot(step: int, mebibytes: int = 24) -> dict[str, np.ndarray]:
    """Tensors of several types, long and short, dense and scattered."""
    values = np.random.default_rng(step).standard_normal(mebibytes * MIB // 4, dtype=np.float32)
    return {
        "first": values[: 5 * MIB // 8],
        "transposed": values[5 * MIB // 8 : 6 * MIB // 8].reshape(256, 512).T,
        "half": values[6 * MIB // 8 : 7 * MIB // 8].astype(np.float16),
        "few": values[:7].astype(np.float16),
        "rest": values[7 * MIB // 8 :],
    }


def held(job: koopcast.Job) -> dict[str, np.ndarray]:
    """The newest snapshot as the service has it (the job keeps no weights)."""
    return dict(job.predict_ahead(1)._base())


def assert_same(job: koopcast.Job, tensors: dict[str, np.ndarray]) -> None:
    found = held(job)
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def opened(client: koopcast.Client, name: str, tensors: dict[str, np.ndarray], **more: Any) -> koopcast.Job:
    """A job that shares memory with the service."""
    job = client.open_job(name, tensors, stride=1, **{**SETTINGS, **more})
    assert job.shares_memory
    assert names() == set()  # its name is gone already
    return job


def test_snapshots_arrive_as_they_were(client: koopcast.Client, job_name: str) -> None:
    """Larger than the ring several times over, in elements that are stored as they are, and in others."""
    job = opened(client, job_name, snapshot(0))
    for step in range(5):
        assert job.push(step, snapshot(step)).outcome == "accepted"
        if step:  # there is no answer from one alone
            assert_same(job, snapshot(step))
    assert job.push(4, snapshot(4)).outcome == "duplicate"
    with pytest.raises(koopcast.AlreadyExists):
        job.push(4, snapshot(3))
    assert job.status().snapshots_accepted == 5


@pytest.mark.parametrize("encoding", ["delta", "delta-int8"])
def test_differences_arrive_as_through_a_socket(
    client: koopcast.Client, job_name: str, encoding: koopcast.client.Encoding
) -> None:
    tensors = [{"w": np.cumsum(snapshot(step)["rest"][: 3 * MIB])} for step in range(4)]
    more: dict[str, Any] = {
        "encoding": encoding,
        "wire_dtype": "bfloat16" if encoding == "delta" else "float32",
    }
    shared = opened(client, job_name, tensors[0], **more)
    plain = client.open_job(
        f"{job_name}-plain", tensors[0], stride=1, shared_memory=False, **SETTINGS, **more
    )
    assert not plain.shares_memory
    for step, each in enumerate(tensors):
        shared.push(step, each)
        plain.push(step, each)
        if not step:
            continue
        np.testing.assert_array_equal(held(shared)["w"], held(plain)["w"])


def test_non_finite_values_are_refused_and_cost_nothing(client: koopcast.Client, job_name: str) -> None:
    job = opened(client, job_name, snapshot(0))
    job.push(0, snapshot(9))
    job.push(1, snapshot(0))
    bad = snapshot(1)
    bad["rest"] = bad["rest"].copy()
    bad["rest"][4 * MIB] = np.inf
    with pytest.raises(koopcast.InvalidArgument, match=f"'rest' holds inf at flat index {4 * MIB}"):
        job.push(2, bad)
    assert_same(job, snapshot(0))
    assert job.push(2, snapshot(1)).snapshots_held == 3


def test_two_jobs_push_at_the_same_time(client: koopcast.Client, job_name: str) -> None:
    jobs = [opened(client, f"{job_name}-{index}", snapshot(0)) for index in range(2)]

    def push_many(index: int) -> None:
        for step in range(4):
            jobs[index].push(step, snapshot(10 * index + step))

    threads = [threading.Thread(target=push_many, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, job in enumerate(jobs):
        assert_same(job, snapshot(10 * index + 3))


def test_a_cut_upload_goes_on(proxy: Proxy, job_name: str) -> None:
    """Cut again and again; what lies in the ring is written anew from where the service has the snapshot to."""
    with koopcast.connect(proxy.target) as far:
        job = opened(far, job_name, snapshot(0))
        cuts = 0
        for step, most in enumerate(range(200, 1400, 100)):

            def watch(where: Direction, passed: int, most: int = most) -> None:
                if where == "up" and passed >= most:
                    proxy.on_bytes = None
                    threading.Thread(target=proxy.cut).start()

            proxy.cut()
            proxy.on_bytes = watch
            try:
                job.push(step, snapshot(step))
            except koopcast.Unavailable:  # cut twice before the service said anything
                job.push(step, snapshot(step))
            cuts += proxy.on_bytes is None
            proxy.on_bytes = None
            if step:
                assert_same(job, snapshot(step))
        assert cuts >= 10
        assert job.bytes_resent > 0
        assert job.status().snapshots_accepted == 12


def test_where_the_service_has_not_got_the_memory_the_socket_does(
    client: koopcast.Client, job_name: str
) -> None:
    """As when it closed the memory of a lease that ran out, and the writer came back."""
    job = client.open_job(job_name, snapshot(0), stride=1, shared_memory=False, **SETTINGS)
    job._ring = ring = SharedRing(8 * MIB)
    ring.unlink()
    assert job.push(0, snapshot(0)).outcome == "accepted"
    assert not ring.usable
    sent = job.bytes_resent
    assert job.push(1, snapshot(1)).outcome == "accepted"
    assert_same(job, snapshot(1))
    assert job.bytes_resent == sent


def test_memory_lasts_as_long_as_the_lease(service: RunningService, job_name: str) -> None:
    count = partial(memories, service.process.pid)
    before = count()
    with koopcast.connect(service.target) as one, koopcast.connect(service.target) as other:
        job = opened(one, job_name, snapshot(0))
        assert count() == before + 1
        again = opened(other, job_name, snapshot(0), take_over=True)
        assert count() == before + 1
        with pytest.raises(koopcast.LeaseLost):
            job.push(0, snapshot(0))
        assert again.push(0, snapshot(0)).outcome == "accepted"
        with pytest.raises(koopcast.AlreadyExists):
            one.open_job(job_name, snapshot(0), stride=1, **SETTINGS)
        assert count() == before + 1
        again.close(keep=True)
        assert count() == before
        opened(other, job_name, snapshot(0)).close()
    assert count() == before
    assert names() == set()


def test_a_writer_that_is_killed_leaves_nothing(job_name: str) -> None:
    """No file, and no memory for longer than its lease."""
    code = (
        "import os, signal, sys, numpy, koopcast\n"
        "job = koopcast.connect(sys.argv[1]).open_job('killed', {'w': numpy.ones(2 << 20)}, stride=1)\n"
        "assert job._ring is not None\n"
        "job.push(0, {'w': numpy.ones(2 << 20)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with running_service("--http", "off", "--lease-seconds", "0.5") as service:
        ended = subprocess.run(
            [sys.executable, "-c", code, service.target], cwd=REPOSITORY, timeout=60, check=False
        )
        assert ended.returncode == -signal.SIGKILL
        assert names() == set()
        deadline = time.monotonic() + 60
        while memories(service.process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert memories(service.process.pid) == 0


def test_a_service_that_stops_closes_what_it_opened() -> None:
    """The embedded one is this very process."""
    before = memories(os.getpid())
    with koopcast.connect(None) as client:
        job = opened(client, "embedded", snapshot(0))
        assert job.push(0, snapshot(0)).outcome == "accepted"
        assert memories(os.getpid()) > before
    assert memories(os.getpid()) == before


# ------------------------------------------------------------------------------------------- clients of another make


@pytest.fixture
def raw(service: RunningService) -> Iterator[Stubs]:
    with stubs(service.target) as made:
        yield made


class Sharing:
    """A client of another make, with memory of its own and a job of one float32 tensor of 2 MiB."""

    elements = MIB // 2

    def __init__(self, raw: Stubs, name: str) -> None:
        self.raw = raw
        self.name = name
        self.path = Path("/dev/shm") / f"koopcast-{os.urandom(16).hex()}"
        self.nonce = os.urandom(32)
        self.path.write_bytes(self.nonce + bytes(4 * MIB - 32))

    def open(self, **changes: Any) -> job_pb2.OpenJobResponse:
        offer = {"name": self.path.name, "size_bytes": 4 * MIB, "nonce": self.nonce, **changes}
        request = job_pb2.OpenJobRequest(
            name=self.name,
            spec=spec_of((self.elements,)),
            protocol_version=1,
            take_over=True,
            shared_memory=job_pb2.SharedMemory(**offer),
        )
        response: job_pb2.OpenJobResponse = self.raw.jobs.OpenJob(request, timeout=20)
        self.opened = response
        return response

    def push(self, data: bytes, /, **changes: Any) -> snapshot_pb2.PushSnapshotResponse:
        """One chunk that lies at byte 4096, as `changes` say; the last answer."""
        request = snapshot_pb2.PushSnapshotRequest
        header = snapshot_pb2.SnapshotHeader(
            job=self.name,
            lease_id=self.opened.lease_id,
            segment=1,
            step=0,
            spec_digest=self.opened.spec_digest,
            total_bytes=len(data),
        )
        chunk = {
            "shared_position": 4096,
            "shared_bytes": len(data),
            "crc32c": checksum(data),
            **changes,
        }
        commit = snapshot_pb2.SnapshotCommit(digest=checksum(data).to_bytes(4, "big"))
        messages = [
            request(header=header),
            request(chunk=snapshot_pb2.SnapshotChunk(**chunk)),
            request(commit=commit),
        ]
        try:
            return list(self.raw.snapshots.PushSnapshot(iter(messages), timeout=20))[-1]
        except grpc.RpcError as error:
            raise error_from_call(error, "service") from None


@pytest.fixture
def sharing(raw: Stubs, job_name: str) -> Iterator[Sharing]:
    made = Sharing(raw, job_name)
    yield made
    made.path.unlink(missing_ok=True)
    raw.jobs.CloseJob(job_pb2.CloseJobRequest(name=job_name, lease_id=made.opened.lease_id), timeout=20)


DATA = np.random.default_rng(7).standard_normal(Sharing.elements, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "koopcast-" + "0" * 32},  # as of another container
        {"name": "../../etc/passwd"},
        {"name": ""},
        {"nonce": b"x" * 32},
        {"size_bytes": 2 * MIB},
        {"size_bytes": 2**63},
    ],
    ids=str,
)
def test_an_offer_that_is_not_right_costs_nothing_but_the_memory(
    sharing: Sharing, change: dict[str, Any]
) -> None:
    assert not sharing.open(**change).shared_memory
    with pytest.raises(koopcast.InvalidArgument) as caught:
        sharing.push(DATA)
    assert caught.value.reason == "NO_SHARED_MEMORY"
    result = sharing.push(DATA, data=DATA, shared_bytes=0, shared_position=0)
    assert result.result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"shared_position": 2 * MIB + 1}, "shared_position"),
        ({"shared_position": 2**64 - 1}, "shared_position"),
        ({"shared_bytes": 2**64 - 1}, "data"),
        ({"shared_bytes": 16 * MIB + 4}, "data"),
        ({"data": b"1234"}, "message"),
        ({"offset": 4}, "offset"),
    ],
    ids=str,
)
def test_chunks_that_lie_elsewhere_are_refused(sharing: Sharing, change: dict[str, Any], field: str) -> None:
    assert sharing.open().shared_memory
    with pytest.raises(koopcast.InvalidArgument) as caught:
        sharing.push(DATA, **change)
    assert caught.value.details["field"] == field
    write_at(sharing.path, DATA)
    assert sharing.push(DATA).result.snapshots_held == 1


def write_at(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(data)


def test_bytes_that_changed_after_their_checksum_are_refused(sharing: Sharing) -> None:
    assert sharing.open().shared_memory
    write_at(sharing.path, DATA[:-1] + b"\0")
    with pytest.raises(koopcast.DataLoss) as caught:
        sharing.push(DATA)
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    write_at(sharing.path, DATA)
    assert sharing.push(DATA).result.snapshots_held == 1


def test_a_truncated_file_costs_its_upload(sharing: Sharing, service: RunningService) -> None:
    assert sharing.open().shared_memory
    os.truncate(sharing.path, 1 * MIB)
    with pytest.raises(koopcast.DataLoss) as caught:
        sharing.push(DATA)
    assert caught.value.reason == "SHARED_MEMORY_GONE"
    assert service.process.poll() is None
    result = sharing.push(DATA, data=DATA, shared_bytes=0, shared_position=0)
    assert result.result.outcome == snapshot_pb2.SNAPSHOT_OUTCOME_ACCEPTED
