"""Takes snapshots on the training thread and hands them to the background thread."""

from __future__ import annotations

import time

from torch import nn

from koopcast.hook.budget import WaitBudget
from koopcast.hook.buffers import BufferPool, SnapshotBuffer
from koopcast.hook.held_job import Snapshot
from koopcast.hook.link import Link
from koopcast.hook.memory import Arena
from koopcast.hook.selection import Averager, Selection
from koopcast.hook.stats import Counters

__all__ = ["Recorder"]


class Recorder:
    """Copies the weights, or their means, into buffers, and puts these on their way.

    Attributes:
        breaks: how often the trajectory broke; a prediction from before the last break is stale.
        replaced: how often this was since the weights changed by other means than training.
        fresh: whether the next snapshot begins a segment.
    """

    def __init__(
        self,
        selection: Selection,
        link: Link,
        pool: BufferPool,
        averaging: int,
        budget: WaitBudget,
        counters: Counters,
    ) -> None:
        """Record these parameters; each snapshot is the mean of the last `averaging` weights."""
        self._selection = selection
        self._link = link
        self._pool = pool
        self._averaging = averaging
        self._averager = Averager() if averaging > 1 else None
        self._budget = budget
        self._counters = counters
        self._current: dict[str, nn.Parameter] = {}
        self._clock: float | None = None  # of the snapshot to come: of a mean, the mean of the clocks
        self.fresh = True
        self.breaks = 0
        self.replaced = 0

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters as the model has them now."""
        return self._selection.parameters()

    def hold_writers(self) -> None:
        """Before anything writes to the weights: let it come after the copies under way. Never waits."""
        self._pool.hold_writers()

    def lend(self) -> Arena:
        """The buffers that are idle now, as memory for an attempt."""
        return self._pool.lend()

    def step(self, step: int, clock: float | None, *, due: bool) -> bool:
        """After every optimizer step; where a snapshot is due, whether it is on its way.

        Raises:
            WeightsChangedError: the model has other parameters than when attached.
        """
        self.hold_writers()  # means are written in place, too
        if due or not self._current:
            self._look_up()
        if self._averager is not None:
            self._averager.add(self._current)
        self._count_clock(clock)
        if not due:
            return False
        sent = self._send(step, self._clock)
        if not sent:
            self.fresh = True
            self._counters.dropped()
        if self._averager is not None:
            self._averager.reset()
        return sent

    def break_off(self, *, replaced: bool = False) -> None:
        """The trajectory broke: the next snapshot begins a segment. `replaced`: the weights did not change by training."""
        self.replaced += replaced
        self.fresh = True
        self.breaks += 1
        self._current = {}
        if self._averager is not None:
            self._averager.reset()

    def _count_clock(self, clock: float | None) -> None:
        steps = self._averager.steps if self._averager is not None else 1
        if steps == 1 or clock is None or self._clock is None:
            self._clock = clock if steps == 1 else None
        else:
            self._clock += (clock - self._clock) / steps

    def _look_up(self) -> None:
        """Find the parameters by name; other objects than last time mean that weights were loaded meanwhile."""
        found = self.parameters()
        if self._current and any(found[name] is not self._current[name] for name in found):
            self.break_off(replaced=True)
        self._current = found

    def _send(self, step: int, clock: float | None) -> bool:
        if self._averager is not None and self._averager.steps < self._averaging:
            return False
        buffer = self._take_buffer() if self._link.up else None
        if buffer is None:
            return False
        self._pool.fill(buffer, self._current if self._averager is None else self._averager.means())
        if not self._link.put(Snapshot(step, buffer, clock, self.fresh)):
            self._pool.give(buffer)
            return False
        self.fresh = False
        return True

    def _take_buffer(self) -> SnapshotBuffer | None:
        buffer = self._pool.take(0.0)
        if (
            buffer is None and self._budget.left > 0.0
        ):  # a dropped snapshot costs a window: rather wait a moment
            started = time.monotonic()
            buffer = self._pool.take(self._budget.left)
            self._budget.spend_since(started)
        return buffer
