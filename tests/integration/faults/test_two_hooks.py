"""Two writers of one job, in one process and in two: the first keeps it, the second trains plainly until it is free."""

from __future__ import annotations

import logging

import pytest

import koopcast
from faulty import SMALL, HookedRun, assert_serves
from koopcast.hook.selection import Selection
from nursery import ForkedService, Nursery
from trainers import smooth_net

SCRIPT = """
import sys
from faulty import HookedRun
run = HookedRun(sys.argv[1], "shared")
run.train(300)
run.ahead.close()
stats = run.assert_unharmed()
print(stats.snapshots_pushed, stats.snapshots_dropped, stats.jumps_proposed, stats.service_errors > 0)
"""


def assert_goes_on(run: HookedRun) -> None:
    before = run.stats
    run.train_until(lambda stats: stats.jumps_proposed > before.jumps_proposed + 1)
    assert run.stats.service_errors == before.service_errors == 0
    assert run.stats.connected


def test_in_one_process(own_service: ForkedService, caplog: pytest.LogCaptureFixture) -> None:
    first = HookedRun(own_service.target, "shared")
    with caplog.at_level(logging.WARNING, logger="koopcast"), first.ahead:
        second = HookedRun(own_service.target, "shared")
        with second.ahead:
            for _ in range(20):
                first.train(10)
                second.train(10)
            assert_goes_on(first)
            refused = second.stats
            assert not refused.connected
            assert (refused.snapshots_pushed, refused.snapshots_dropped) == (0, 100)
            assert refused.service_errors >= 1
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert "has a writer" in caplog.text
            first.ahead.close()
            second.train_until(lambda stats: stats.jumps_proposed > 0)
    first.assert_unharmed()
    second.assert_unharmed()
    assert_serves(own_service.target, "other")


def test_on_one_model(own_service: ForkedService) -> None:
    """As in a notebook whose cell was run twice: both hooks see every step, and one of them has the job."""
    run = HookedRun(own_service.target, "shared")
    again = koopcast.attach(
        run.model, run.optimizer, own_service.target, job="shared", operator=SMALL, every=2, probe=lambda: 1.0
    )
    with run.ahead, again:
        run.train(100)
        assert_goes_on(run)
        assert (again.stats().snapshots_pushed, again.stats().connected) == (0, False)
    run.assert_unharmed()


def test_in_two_processes(cradle: Nursery, own_service: ForkedService) -> None:
    run = HookedRun(own_service.target, "shared")
    with run.ahead:
        run.train(10)
        script = cradle.script(SCRIPT, own_service.target)
        run.train_until(lambda _: script.poll() is not None)
        status, output, errors = script.finish(1)
        assert (status, output) == (0, "0 150 0 True\n"), errors
        assert_goes_on(run)
    run.assert_unharmed()


def test_of_which_the_second_takes_over(own_service: ForkedService) -> None:
    run = HookedRun(own_service.target, "shared")
    tensors = {name: parameter.detach() for name, parameter in smooth_net().named_parameters()}
    with run.ahead, koopcast.connect(own_service.target) as client:
        run.train_until(lambda stats: stats.jumps_proposed > 0)
        specs = Selection(run.model, None, averaged=False).specs
        taker = client.open_job("shared", specs, stride=2, operator=SMALL, take_over=True)
        run.train_until(lambda stats: not stats.connected)
        taker.start_segment()
        for step in range(0, 8, 2):
            assert taker.push(step, tensors).outcome == "accepted"
            run.train(20)
        assert (taker.status().step, taker.status().snapshots_held) == (6, 4)
        taken = run.stats
        taker.close(keep=True)
        run.train_until(lambda stats: stats.jumps_proposed > taken.jumps_proposed)
    stats = run.assert_unharmed()
    assert stats.service_errors >= 2
