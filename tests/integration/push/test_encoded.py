"""Differences over connections that break: what arrives is what was sent, and both sides go on from the same bits."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

import koopcast
from koopcast.client import Encoding
from proxy import Direction, Faults, Proxy

MIB = 1 << 20
ELEMENTS = 3_000_000
OPERATOR = koopcast.Operator("state", window=3, rank=1)
START = np.random.default_rng(0).standard_normal(ELEMENTS, dtype=np.float32)
MOVES = np.random.default_rng(1).standard_normal(ELEMENTS, dtype=np.float32)


def snapshot(step: int) -> dict[str, np.ndarray]:
    return {"first": START[:100_003], "second": START[100_003:] + np.float32(0.01 * step) * MOVES[100_003:]}


def opened(
    client: koopcast.Client, name: str, encoding: Encoding, wire_dtype: str = "bfloat16"
) -> koopcast.Job:
    """A job that holds three snapshots."""
    job = client.open_job(
        name,
        snapshot(0),
        stride=1,
        operator=OPERATOR,
        keep_weights=False,
        encoding=encoding,
        wire_dtype=wire_dtype,
    )
    for step in range(3):
        job.push(step, snapshot(step))
    return job


def assert_same_bits(job: koopcast.Job) -> None:
    """The service sends what it holds: the job keeps no weights."""
    weights = job.predict_ahead(1)._base()
    assert job._differences is not None
    base = job._differences.base()
    assert base is not None
    np.testing.assert_array_equal(np.concatenate([weights["first"], weights["second"]]), base)


def cut_once_at(proxy: Proxy, passed: int, direction: Direction) -> None:
    """Resets the connection that is the first to pass so many bytes."""

    def watch(where: Direction, count: int) -> None:
        if where == direction and count >= passed:
            proxy.on_bytes = None
            threading.Thread(target=proxy.cut).start()

    proxy.on_bytes = watch


@pytest.mark.parametrize(("encoding", "nbytes"), [("delta", 6 * MIB), ("delta-int8", 3 * MIB)])
def test_cuts_at_any_byte_leave_both_sides_with_the_same_bits(
    far: koopcast.Client, proxy: Proxy, job_name: str, encoding: Encoding, nbytes: int
) -> None:
    generator = random.Random(5)
    job = opened(far, job_name, encoding)
    sent, cuts, again = job.bytes_sent, 0, 0
    for step in range(3, 18):
        direction: Direction = generator.choice(["up", "up", "down"])
        cut_once_at(proxy, generator.randint(1, nbytes if direction == "up" else 400), direction)
        proxy.cut()
        try:
            assert job.push(step, snapshot(step)).outcome == "accepted"
        except koopcast.Unavailable:  # cut twice before the service said anything
            again += 1
            assert job.push(step, snapshot(step)).outcome in {"accepted", "duplicate"}
        cuts += proxy.on_bytes is None
        proxy.on_bytes = None
        if step % 5 == 0:
            assert_same_bits(job)
    assert cuts >= 10
    assert job.bytes_sent - job.bytes_resent - sent <= (15 + again) * nbytes  # none had to go raw
    assert_same_bits(job)
    assert job.status().snapshots_accepted == 18


def test_a_corrupted_byte_is_found_and_its_chunk_made_again(
    far: koopcast.Client, proxy: Proxy, job_name: str
) -> None:
    job = opened(far, job_name, "delta-int8")
    proxy.cut()
    proxy.up = Faults(corrupt_at=3 * MIB // 2)

    def heal_with_the_next(direction: Direction, passed: int) -> None:
        if direction == "up" and passed > 3 * MIB // 2:
            proxy.up = Faults()

    proxy.on_bytes = heal_with_the_next
    assert job.push(3, snapshot(3)).outcome == "accepted"
    assert 0 < job.bytes_resent <= 3 * MIB
    assert_same_bits(job)
    assert job.push(4, snapshot(4)).outcome == "accepted"
    assert_same_bits(job)
