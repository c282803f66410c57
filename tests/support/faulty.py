"""What tests of faults have in common: a window to push, a trainer whose jumps are all refused, what must hold after."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

import koopcast
from koopcast.hook.stats import Stats
from trainers import bits, loss_of, seed_all, smooth_net, steps

SMALL = koopcast.Operator(window=4, rank=2)
PATIENCE_SECONDS = 30.0
R = TypeVar("R")
Floats = npt.NDArray[np.floating[Any]]


def weights(step: int, elements: int = 1000) -> dict[str, Floats]:
    """A trajectory that decays towards zero, different at every step."""
    ramp = np.linspace(1.0, 2.0, elements, dtype=np.float32)
    return {"w": ramp * np.float32(0.9**step), "b": np.full(3, 0.5**step, np.float32)}


def fill(job: koopcast.Job, first: int, elements: int = 1000) -> koopcast.Prediction:
    """Push a window in a new segment and ask for a prediction."""
    job.start_segment()
    for step in range(first, first + SMALL.window):  # type: ignore[operator]  # a number here
        assert job.push(step, weights(step, elements)).outcome == "accepted"
    return job.predict_ahead(5.0)


def assert_serves(target: str, name: str, elements: int = 1000) -> None:
    """The service answers a new job as it should: the trajectory goes on."""
    with (
        koopcast.connect(target, timeout_seconds=10.0) as client,
        client.open_job(name, weights(0, elements), stride=1, operator=SMALL) as job,
    ):
        told = fill(job, 0, elements)
        expected = weights(8, elements)
        for key, value in told.weights.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-2, atol=1e-3)


def wait_until(true: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Fail where something does not come true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def persistently(call: Callable[[], R], seconds: float = PATIENCE_SECONDS) -> R:
    """What a call returns once the service can be reached."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (koopcast.Unavailable, koopcast.DeadlineExceeded):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class HookedRun:
    """Training with a hook whose probe refuses every jump, to be compared with training without one.

    The hook never goes quiet, so that there is something going on for a fault to strike.

    Attributes:
        ahead: the hook.
        model: trained by it.
        optimizer: which trains it.
    """

    def __init__(
        self, target: str, job: str, *, every: int = 2, wait_seconds: float = 0.2, **more: Any
    ) -> None:
        """Attach."""
        seed_all()
        self.model = smooth_net()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.every = every
        self._wait_seconds = wait_seconds
        self._attempts: set[int] = set()
        self.ahead = koopcast.attach(
            self.model, self.optimizer, target, job=job, operator=SMALL, every=every, wait_seconds=wait_seconds,
            probe=self._refusing, refine=0, tensorboard=self, **more,
        )  # fmt: skip
        busy: Any = self.ahead
        busy._schedule.pausing = False

    def _refusing(self) -> Tensor:
        """One everywhere, with the gradient of the training loss: that of a trainer without noise, worth trying on."""
        loss = loss_of(self.model)
        return loss - loss.detach() + 1.0

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        """As a TensorBoard writer, told of every attempt."""
        self._attempts.add(global_step)

    @property
    def stats(self) -> Stats:
        """What the hook did so far."""
        return self.ahead.stats()

    def train(self, count: int) -> None:
        """Train on."""
        for _ in steps(self.model, self.optimizer, count):
            pass

    def train_until(self, true: Callable[[Stats], object], seconds: float = PATIENCE_SECONDS) -> None:
        """Train on until the counters say so."""

        def trained() -> object:
            self.train(1)
            return true(self.stats)

        wait_until(trained, seconds)

    def assert_unharmed(self) -> Stats:
        """After `close`: weights as plain training leaves them, counters that add up, waiting within its bounds."""
        stats = self.stats
        seed_all()
        model = smooth_net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in steps(model, optimizer, stats.steps):
            pass
        assert bits(self.model, self.optimizer) == bits(model, optimizer)
        assert stats.snapshots_pushed + stats.snapshots_dropped == stats.steps // self.every
        assert stats.jumps_accepted == 0
        assert stats.tensorboard_errors == 0
        attempts = len(self._attempts) + 1  # the last one may not have ended
        assert stats.seconds_blocked <= attempts * (self._wait_seconds + 0.1)  # the machine is shared
        return stats


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """After the block, no thread, process or file of shared memory is there that was not there before."""
    before = _there()
    yield
    deadline = time.monotonic() + 10.0
    while left := _there() - before:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.02)


def _there() -> set[object]:
    there: set[object] = {*threading.enumerate(), *Path("/dev/shm").glob("koopcast-*")}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:  # that has ended, and was not asked how
                there.add(process)
    return there
