"""The service is killed (SIGKILL) between any two messages, and comes back at the same address with nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import koopcast
from faulty import SMALL, HookedRun, assert_serves, fill, persistently, weights
from message_proxy import Fate, MessageProxy, proxied
from nursery import ForkedService
from proxy import Direction

SHORT = 700_000
"""Elements of a snapshot of three chunks."""
SHARED = 1_500_000
"""Elements of a snapshot that may go through shared memory."""
LONG = 9_000_000
"""Elements of a snapshot that is acknowledged on its way."""
NEXT = 4
"""The step after a window."""
LOST = (koopcast.Unavailable, koopcast.NotFound)
"""A writer hears that the service is not there, or that its job is not."""


@dataclass
class Mortal:
    """A service behind a proxy that kills it at a message, and has it restarted.

    Attributes:
        proxy: what the client connects to.
        back: set when it was killed and is there again.
    """

    service: ForkedService
    proxy: MessageProxy
    back: threading.Event

    def kill_after(self, direction: Direction, count: int, fate: Fate) -> None:
        """Once the next so many messages have passed."""
        self.back.clear()
        self.proxy.after_messages(direction, count, self._replace, fate)

    def _replace(self) -> None:
        self.service.kill()
        threading.Thread(target=self._restart, name="restart").start()

    def _restart(self) -> None:
        self.service.restart()
        self.back.set()


@pytest.fixture
def mortal(own_service: ForkedService) -> Iterator[Mortal]:
    back = threading.Event()
    back.set()
    with proxied(own_service.target) as proxy:
        yield Mortal(own_service, proxy, back)
        if not proxy.disarm():
            back.wait(20)


def opened(client: koopcast.Client, elements: int, *, shared: bool = False) -> koopcast.Job:
    return persistently(
        lambda: client.open_job(
            "job", weights(0, elements), stride=1, operator=SMALL, take_over=True, shared_memory=shared
        )
    )


def messages_of(proxy: MessageProxy, call: Callable[[], object]) -> dict[Direction, int]:
    """How many messages a call takes."""
    before = dict(proxy.messages)
    call()
    return {direction: count - before[direction] for direction, count in proxy.messages.items()}


def assert_goes_on(mortal: Mortal, client: koopcast.Client) -> None:
    """The client opens its job anew, and is answered as one that never met a fault."""
    assert mortal.back.wait(20)
    told = fill(opened(client, SHORT), 0, SHORT)
    with koopcast.connect(mortal.service.target) as direct:
        other = direct.open_job("other", weights(0, SHORT), stride=1, operator=SMALL)
        for name, moved in fill(other, 0, SHORT).displacement.items():
            np.testing.assert_array_equal(told.displacement[name], moved)


@pytest.mark.parametrize("fate", ["cut", "lost"])
@pytest.mark.parametrize(
    "message", ["header", "first chunk", "last chunk", "commit", "ready", "ack", "result"]
)
def test_at_each_message_of_a_push(mortal: Mortal, message: str, fate: Fate) -> None:
    elements = LONG if message == "ack" else SHORT
    with koopcast.connect(mortal.proxy.target, timeout_seconds=10.0) as client:
        job = opened(client, elements)
        job.push(0, weights(0, elements))
        taken = messages_of(mortal.proxy, lambda: job.push(1, weights(1, elements)))
        up = {"header": 1, "first chunk": 2, "last chunk": taken["up"] - 1, "commit": taken["up"]}
        down = {"ready": 1, "ack": 2, "result": taken["down"]}
        mortal.kill_after("up" if message in up else "down", (up | down)[message], fate)
        try:
            assert job.push(2, weights(2, elements)).outcome == "accepted"
            # The client knows, though the service does not any more. It can be faster to answer than to die.
            assert (message, fate) in {("result", "cut"), ("commit", "cut")}
        except LOST:
            assert (message, fate) != ("result", "cut")
        assert_goes_on(mortal, client)


@pytest.mark.parametrize("message", ["first chunk", "last chunk"])
def test_at_the_chunks_of_a_push_through_shared_memory(mortal: Mortal, message: str) -> None:
    with koopcast.connect(mortal.proxy.target, timeout_seconds=10.0) as client:
        job = opened(client, SHARED, shared=True)
        taken = messages_of(mortal.proxy, lambda: job.push(0, weights(0, SHARED)))
        mortal.kill_after("up", {"first chunk": 2, "last chunk": taken["up"] - 1}[message], "lost")
        with pytest.raises(LOST):
            job.push(1, weights(1, SHARED))
        assert mortal.back.wait(20)
        again = opened(client, SHARED, shared=True)
        fill(again, 0, SHARED)
        again.close()
        assert_goes_on(mortal, client)


@pytest.mark.parametrize("fate", ["cut", "lost"])
@pytest.mark.parametrize("message", ["request", "report", "first chunk", "last chunk"])
def test_at_each_message_of_an_answer(mortal: Mortal, message: str, fate: Fate) -> None:
    with koopcast.connect(mortal.proxy.target, timeout_seconds=10.0) as client:
        job = opened(client, SHORT)
        fill(job, 0, SHORT)
        taken = messages_of(mortal.proxy, lambda: job.predict_ahead(5.0))
        down = {"report": 1, "first chunk": 2, "last chunk": taken["down"]}
        mortal.kill_after("up" if message == "request" else "down", down.get(message, 1), fate)
        with pytest.raises(LOST):
            job.predict_ahead(5.0)
        assert_goes_on(mortal, client)


def test_again_and_again_under_a_hook(mortal: Mortal) -> None:
    """Six times, each time some messages later in what a hook says and hears."""
    run = HookedRun(mortal.proxy.target, "hooked")
    with run.ahead:
        for round_ in range(6):
            proposed = run.stats.jumps_proposed
            run.train_until(lambda stats: stats.jumps_proposed > proposed)  # noqa: B023  # called in this round
            direction: Direction = "up" if round_ % 2 else "down"
            mortal.kill_after(direction, 1 + 3 * round_, "cut" if round_ % 3 else "lost")
            run.train_until(lambda _: mortal.back.is_set())
            run.train_until(lambda stats: stats.connected)
        proposed = run.stats.jumps_proposed
        run.train_until(lambda stats: stats.jumps_proposed > proposed)
        assert_serves(mortal.service.target, "other")
    stats = run.assert_unharmed()
    assert stats.service_errors >= 6
    assert stats.snapshots_dropped >= 3
