"""Connections that break at random bytes, a hundred times: nothing that was accepted is ever anything but whole."""

from __future__ import annotations

import random

import numpy as np
import pytest

import koopcast
from faulty import SMALL, HookedRun, assert_serves, persistently, weights
from message_proxy import proxied
from nursery import ForkedService
from proxy import Direction

CUTS = 100


@pytest.mark.parametrize(
    ("elements", "bytes_up", "cuts"),
    [(400_000, 1_600_000, CUTS), (1_200_000, 2_000, CUTS // 4)],
    ids=["socket", "shared memory"],
)
def test_of_pushes_and_answers(own_service: ForkedService, elements: int, bytes_up: int, cuts: int) -> None:
    chance = random.Random(11)
    with (
        proxied(own_service.target) as proxy,
        koopcast.connect(proxy.target, timeout_seconds=10.0) as client,
    ):
        job = client.open_job("cut", weights(0, elements), stride=1, operator=SMALL, keep_weights=False)
        step = 0
        while proxy.cuts < cuts:
            direction: Direction = chance.choice(("up", "down"))
            proxy.cut_after_bytes(direction, chance.randrange(bytes_up if direction == "up" else 400))
            outcome = persistently(lambda: job.push(step, weights(step % 20, elements)).outcome)  # noqa: B023  # called here
            assert outcome in {"accepted", "duplicate"}
            if step >= 3:
                proxy.cut_after_bytes("down", chance.randrange(8 * elements))
                told = persistently(lambda: job.predict_ahead(3.0))
                proxy.disarm()
                held = told.weights["w"] - told.displacement["w"]
                np.testing.assert_allclose(held, weights(step % 20, elements)["w"], rtol=1e-5, atol=1e-6)
            step += 1
        proxy.disarm()
        assert job.status().snapshots_accepted == step
        assert job.bytes_sent - job.bytes_resent >= step * (4 * elements + 12)
        assert job.bytes_resent > 0
    assert_serves(own_service.target, "other")


def test_of_a_hook(own_service: ForkedService) -> None:
    chance = random.Random(12)
    with proxied(own_service.target) as proxy:
        run = HookedRun(proxy.target, "hooked")
        with run.ahead:
            while proxy.cuts < CUTS // 3:
                direction: Direction = chance.choice(("up", "down"))
                proxy.cut_after_bytes(direction, chance.randrange(4000))
                cuts = proxy.cuts
                run.train_until(lambda _: proxy.cuts > cuts)  # noqa: B023  # called in this round
            proxy.disarm()
            proposed = run.stats.jumps_proposed
            run.train_until(lambda stats: stats.jumps_proposed > proposed)
    run.assert_unharmed()
    assert_serves(own_service.target, "other")
