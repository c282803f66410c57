"""Connections whose bytes vanish without a word: no reset, no answer, as when a firewall forgets them."""

from __future__ import annotations

import time

import pytest

import koopcast
from faulty import HookedRun, assert_serves, fill, persistently, weights
from message_proxy import proxied
from nursery import ForkedService

RECOVERY_SECONDS = 30.0


def test_calls_end_at_their_deadlines_and_both_come_back(own_service: ForkedService) -> None:
    with (
        proxied(own_service.target) as proxy,
        koopcast.connect(proxy.target, timeout_seconds=5.0) as client,
    ):
        job = client.open_job("pushed", weights(0), stride=1)
        run = HookedRun(proxy.target, "hooked")
        with run.ahead:
            fill(job, 0)
            run.train_until(lambda stats: stats.jumps_proposed > 0)

            proxy.open_hole()
            started = time.monotonic()
            with pytest.raises(koopcast.DeadlineExceeded):
                job.push(4, weights(4), timeout_seconds=0.5)
            with pytest.raises(koopcast.DeadlineExceeded):
                job.predict_ahead(5.0, timeout_seconds=0.5)
            assert time.monotonic() - started < 3.0  # the machine is shared
            run.train_until(lambda stats: not stats.connected)
            errors = run.stats.service_errors

            proxy.close_hole()
            closed, proposed = time.monotonic(), run.stats.jumps_proposed
            run.train_until(lambda stats: stats.connected, RECOVERY_SECONDS)
            told = persistently(lambda: job.push(4, weights(4), timeout_seconds=2.0), RECOVERY_SECONDS)
            assert told.outcome in {"accepted", "duplicate"}
            assert time.monotonic() - closed < RECOVERY_SECONDS
            run.train_until(lambda stats: stats.jumps_proposed > proposed)
    stats = run.assert_unharmed()
    assert errors >= 1
    assert stats.snapshots_dropped >= 1
    assert_serves(own_service.target, "other")
