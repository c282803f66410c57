"""Uploads whose connection breaks: they go on where the service has them to, and no stored snapshot is lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest

import koopcast
from koopcast.codec import encode_chunk
from proxy import Direction, Faults, Proxy
from services import running_service

MIB = 1 << 20
WEIGHTS = {"w": np.arange(6.0)}
SETTINGS: dict[str, Any] = {
    "operator": koopcast.Operator("state", window=3, rank=1),
    "keep_weights": False,
    "shared_memory": False,  # all bytes pass the proxy
}


def noise(mebibytes: float, seed: int) -> dict[str, np.ndarray]:
    """Two float32 tensors, the border between them in no chunk's middle by chance."""
    values = np.random.default_rng(seed).standard_normal(int(mebibytes * MIB) // 4, dtype=np.float32)
    return {"first": values[:100_003], "second": values[100_003:]}


def held_weights(job: koopcast.Job) -> np.ndarray:
    """The newest snapshot, bit by bit as the service has it (the job keeps no weights)."""
    weights = job.predict_ahead(1)._base()
    return np.concatenate([weights["first"], weights["second"]])


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors["first"], tensors["second"]])


T = TypeVar("T")


def until_reached(call: Callable[[], T]) -> T:
    """Calls until the service can be reached again: gRPC waits a little before it tries to connect once more."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return call()
        except koopcast.Unavailable:
            if time.monotonic() > deadline:
                raise


def cut_once_at(proxy: Proxy, passed: int, direction: Direction = "up") -> None:
    """Resets the connection that is the first to pass so many bytes."""

    def watch(where: Direction, count: int) -> None:
        if where == direction and count >= passed:
            proxy.on_bytes = None
            threading.Thread(target=proxy.cut).start()  # it may join this very thread's connection

    proxy.on_bytes = watch


def test_a_cut_upload_goes_on_where_the_service_has_it_to(proxy: Proxy, job_name: str) -> None:
    """256 MiB, cut after 200: at most the 64 MiB that may be under way are sent twice, and all arrives as it was."""
    with (
        running_service("--memory-limit", "2GiB", "--http", "off") as service,
        koopcast.connect(proxy.target) as client,
    ):
        proxy.service = service.target
        large = noise(256, 0)
        job = client.open_job(job_name, large, stride=1, **SETTINGS)
        job.push(0, large)
        proxy.cut()  # a fresh connection, which counts from 0
        cut_once_at(proxy, 200 * MIB)
        large["first"][:3] = 0.5
        assert job.push(1, large).snapshots_held == 2
        assert proxy.connections >= 3
        assert 0 < job.bytes_resent <= 64 * MIB
        assert job.bytes_sent == 2 * 256 * MIB + job.bytes_resent
        assert job.status().snapshots_accepted == 2
        np.testing.assert_array_equal(held_weights(job), flat(large))


def test_a_hundred_random_cuts_cost_no_snapshot(far: koopcast.Client, proxy: Proxy, job_name: str) -> None:
    """Cut at any byte, of either direction: header, chunks, acks, commit, result, or between two pushes."""
    generator = random.Random(5)
    job = far.open_job(job_name, noise(6, 0), stride=1, **SETTINGS)
    for step in range(3):
        job.push(step, noise(6, step))
    cuts = 0
    for step in range(3, 103):
        direction: Direction = generator.choice(["up", "up", "down"])
        proxy.cut()
        cut_once_at(proxy, generator.randint(1, 7 * MIB if direction == "up" else 400), direction)
        try:
            assert job.push(step, noise(6, step)).outcome == "accepted"
        except koopcast.Unavailable:  # cut before the service said anything
            result = until_reached(partial(job.push, step, noise(6, step)))
            assert result.outcome in {"accepted", "duplicate"}
        cuts += proxy.on_bytes is None
        proxy.on_bytes = None
        assert job.snapshots_held == 3
    assert cuts >= 80  # some are drawn behind the last byte
    status = job.status()
    assert (status.step, status.snapshots_held, status.snapshots_accepted) == (102, 3, 103)
    np.testing.assert_array_equal(held_weights(job), flat(noise(6, 102)))


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_corrupted_byte_is_found_and_its_chunk_sent_again(
    far: koopcast.Client, proxy: Proxy, job_name: str, where: float
) -> None:
    job = far.open_job(job_name, noise(16, 0), stride=1, **SETTINGS)
    for step in range(2):
        job.push(step, noise(16, step))
    proxy.cut()
    proxy.up = Faults(corrupt_at=int(where * 16 * MIB))

    def heal_with_the_next(direction: Direction, passed: int) -> None:
        if direction == "up" and passed > int(where * 16 * MIB):
            proxy.up = Faults()

    proxy.on_bytes = heal_with_the_next
    assert job.push(2, noise(16, 2)).outcome == "accepted"
    assert 0 < job.bytes_resent <= 16 * MIB
    np.testing.assert_array_equal(held_weights(job), flat(noise(16, 2)))


def as_another_field(message: bytes) -> bytes:
    return b"\x2a" + message[1:]


def as_a_commit(message: bytes) -> bytes:
    return b"\x1a" + message[1:]


def at_another_offset(message: bytes) -> bytes:
    position = message.index(b"\x08", 1, 8) + 1
    return message[:position] + bytes([message[position] ^ 1]) + message[position + 1 :]


def of_another_length(message: bytes) -> bytes:
    return message[:1] + bytes([message[1] ^ 1]) + message[2:]


@pytest.mark.parametrize("flip", [as_another_field, as_a_commit, at_another_offset, of_another_length])
def test_a_bit_flipped_around_the_data_costs_its_chunk_and_no_more(
    client: koopcast.Client,
    job_name: str,
    monkeypatch: pytest.MonkeyPatch,
    flip: Callable[[bytes], bytes],
) -> None:
    job = client.open_job(job_name, noise(7, 0), stride=1, **SETTINGS)
    sent = 0

    def flipped_once(offset: int, data: memoryview, crc32c: int) -> bytes:
        nonlocal sent
        sent += 1
        message = encode_chunk(offset, data, crc32c)
        return flip(message) if sent == 3 else message

    monkeypatch.setattr("koopcast.upload_source.encode_chunk", flipped_once)
    assert job.push(0, noise(7, 0)).outcome == "accepted"
    assert 0 < job.bytes_resent <= 3 * MIB
    assert job.status().bytes_received == 7 * MIB


def test_a_truncated_stream_is_resumed_when_its_connection_ends(
    far: koopcast.Client, proxy: Proxy, job_name: str
) -> None:
    """The proxy passes 5 MiB and swallows what follows, then resets: the service never saw those bytes."""
    job = far.open_job(job_name, noise(16, 0), stride=1, **SETTINGS)
    proxy.cut()
    proxy.up = Faults(truncate_after=5 * MIB)

    def end(direction: Direction, passed: int) -> None:
        if direction == "up" and passed == 5 * MIB:
            proxy.on_bytes = None
            proxy.up = Faults()
            threading.Thread(target=proxy.cut).start()

    proxy.on_bytes = end
    assert job.push(0, noise(16, 0)).outcome == "accepted"
    assert job.bytes_resent > 0
    assert job.status().bytes_received == 16 * MIB


def test_a_slow_connection_is_no_broken_one(far: koopcast.Client, proxy: Proxy, job_name: str) -> None:
    job = far.open_job(job_name, noise(4, 0), stride=1, **SETTINGS)
    proxy.up = proxy.down = Faults(delay_seconds=0.01)
    assert job.push(0, noise(4, 0)).outcome == "accepted"
    assert job.bytes_resent == 0


def test_a_host_that_is_gone_without_a_word_costs_the_deadline_and_no_more(
    far: koopcast.Client, proxy: Proxy, job_name: str
) -> None:
    """Half-open: nothing arrives, nothing is said. The next connection goes on."""
    job = far.open_job(job_name, noise(16, 0), stride=1, **SETTINGS)
    job.push(0, noise(16, 0))
    proxy.up = proxy.down = Faults(swallow=True)
    with pytest.raises(koopcast.DeadlineExceeded):
        job.push(1, noise(16, 1), timeout_seconds=0.5)
    proxy.heal()
    proxy.cut()
    assert job.push(1, noise(16, 1)).snapshots_held == 2


def test_a_service_that_is_gone_is_said_at_once(job_name: str) -> None:
    with running_service("--http", "off") as service, koopcast.connect(service.target) as client:
        job = client.open_job(job_name, WEIGHTS, stride=1)
        service.kill()
        with pytest.raises(koopcast.Unavailable):
            job.push(0, WEIGHTS)
        assert job.bytes_sent <= 2 * WEIGHTS["w"].nbytes


def test_a_service_that_is_killed_under_an_upload_is_unavailable_and_comes_back_empty(
    proxy: Proxy, job_name: str
) -> None:
    """What the service held died with it: the upload ends, the client opens its job again and goes on."""
    with running_service("--http", "off") as service, koopcast.connect(proxy.target) as client:
        proxy.service = service.target
        job = client.open_job(job_name, noise(32, 0), stride=1, shared_memory=False)

        def kill(direction: Direction, passed: int) -> None:
            if direction == "up" and passed > 10 * MIB and proxy.on_bytes is not None:
                proxy.on_bytes = None
                service.kill()

        proxy.on_bytes = kill
        with pytest.raises(koopcast.Unavailable):
            job.push(0, noise(32, 0))
        service.restart()
        with pytest.raises(koopcast.NotFound) as caught:
            until_reached(lambda: job.push(0, noise(32, 0)))
        assert caught.value.reason == "JOB_NOT_FOUND"
        again = client.open_job(job_name, noise(32, 0), stride=1)
        assert not again.resumed
        assert again.push(0, noise(32, 0)).snapshots_held == 1
