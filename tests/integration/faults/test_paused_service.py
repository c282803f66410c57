"""A service that stops for a while (SIGSTOP) and goes on, and one that is slower than its trainer."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import koopcast
from faulty import SMALL, HookedRun, assert_serves, fill, persistently, wait_until, weights
from message_proxy import proxied
from nursery import ForkedService

PAUSE_SECONDS = float(os.environ.get("KOOPCAST_TEST_PAUSE_SECONDS", "6"))
"""Longer than a call of the hook may take (5 s)."""
ELEMENTS = 2_000_000


def test_calls_outlive_a_pause_and_training_does_not_feel_it(own_service: ForkedService) -> None:
    paused = threading.Event()

    def pause() -> None:
        own_service.pause()
        paused.set()

    with (
        proxied(own_service.target) as proxy,
        koopcast.connect(proxy.target, timeout_seconds=PAUSE_SECONDS + 20.0) as client,
        koopcast.connect(own_service.target, timeout_seconds=PAUSE_SECONDS + 20.0) as other_client,
        ThreadPoolExecutor(2) as pool,
    ):
        asked = other_client.open_job("asked", weights(0), stride=1, operator=SMALL)
        expected = fill(asked, 0).weights["w"]
        pushed = client.open_job(
            "pushed", weights(0, ELEMENTS), stride=1, operator=SMALL, shared_memory=False
        )
        run = HookedRun(own_service.target, "hooked")
        with run.ahead:
            run.train_until(lambda stats: stats.jumps_proposed > 0)
            proxy.after_messages("up", 4, pause)  # in the middle of a push
            push = pool.submit(pushed.push, 0, weights(0, ELEMENTS))
            assert paused.wait(20)
            answer = pool.submit(persistently, lambda: asked.predict_ahead(5.0), 2 * PAUSE_SECONDS)
            resumed_at = time.monotonic() + PAUSE_SECONDS
            run.train_until(lambda _: time.monotonic() > resumed_at, 2 * PAUSE_SECONDS)
            during = run.stats
            own_service.resume()
            assert push.result().outcome == "accepted"
            np.testing.assert_array_equal(answer.result().weights["w"], expected)
            run.train_until(lambda stats: stats.jumps_proposed > during.jumps_proposed)
        stats = run.assert_unharmed()
        assert during.service_errors >= 1
        assert not during.connected
        assert stats.snapshots_dropped >= 1
        told = fill(pushed, 1, ELEMENTS)
        held = told.weights["w"] - told.displacement["w"]
        np.testing.assert_allclose(held, weights(4, ELEMENTS)["w"], rtol=1e-5, atol=1e-6)


def test_a_link_slower_than_the_trainer_costs_snapshots_and_no_time(own_service: ForkedService) -> None:
    with proxied(own_service.target) as proxy:
        run = HookedRun(proxy.target, "slow", wait_seconds=0.05)
        with run.ahead:
            run.train(20)
            proxy.bytes_per_second = 3000.0  # a snapshot takes half a second, a step a thousandth
            run.train(400)
            proxy.bytes_per_second = None
            behind = run.stats
            run.train_until(lambda stats: stats.jumps_proposed > behind.jumps_proposed)
    run.assert_unharmed()
    assert behind.connected
    assert behind.snapshots_dropped > behind.snapshots_pushed
    assert behind.service_errors == 0
    assert_serves(own_service.target, "other")


def test_a_hook_closes_in_seconds_though_the_service_hangs(own_service: ForkedService) -> None:
    run = HookedRun(own_service.target, "left")
    run.train_until(lambda stats: stats.jumps_proposed > 0)
    own_service.pause()
    run.train(20)
    started = time.monotonic()
    run.ahead.close()
    assert time.monotonic() - started < 8.0
    run.assert_unharmed()
    assert "koopcast-hook" not in {thread.name for thread in threading.enumerate()}
    own_service.resume()
    wait_until(lambda: own_service.process.poll() is None)
