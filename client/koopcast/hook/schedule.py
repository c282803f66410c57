"""At which steps snapshots are taken, predictions asked for, and jumps decided. Pure counting.

Jump steps are fixed in advance, by this alone, so that all ranks of a job meet there: nothing the service does
between two attempts changes when the next one is.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["JumpSchedule"]


class JumpSchedule:
    """Steps of snapshots and jumps.

    A segment has an origin; its snapshots are due every `every` steps after it. An attempt asks at one of them,
    `asked_at`, and is decided `lag` steps later.

    Attributes:
        origin: step the segment began at.
        asked_at: step of the snapshot at which the next attempt asks.
        watched_at: step at which the last jump is looked back on; None where there is nothing to look back on.
    """

    def __init__(self, every: int, window: int, lag: int, *, watching: bool = False) -> None:
        """Begin at step 0 with an empty window; look back on jumps where `watching`."""
        self.every = every
        self.window = window
        self.lag = lag
        self.watching = watching
        self.watched_at: int | None = None
        self.origin = 0
        self.asked_at = window * every

    @property
    def decided_at(self) -> int:
        """Step at which the next attempt is decided."""
        return self.asked_at + self.lag

    def is_snapshot_due(self, step: int) -> bool:
        """Whether a snapshot is taken at this step."""
        return step > self.origin and (step - self.origin) % self.every == 0

    def jumped(self, step: int) -> None:
        """A jump was made: begin a segment, and look back on it one stride later."""
        self.broke(step)
        self.watched_at = step + self.every if self.watching else None

    def broke(self, step: int) -> None:
        """The trajectory broke: begin a segment and fill a window."""
        self.watched_at = None
        self.origin = step
        self.asked_at = step + self.window * self.every

    def refused(self) -> None:
        """Try again after half a window of new snapshots."""
        self._again_after((self.window + 1) // 2)

    def lacked(self, held: int) -> None:
        """The window held only so many snapshots: try again when it can be full."""
        self._again_after(max(1, self.window - held))

    def adopt(self, origin: int, asked_at: int) -> None:
        """Take over what another rank decided."""
        if origin != self.origin:
            self.jumped(origin)
        self.asked_at = asked_at

    def state(self) -> dict[str, int]:
        """What `load` needs."""
        return {name: getattr(self, name) for name in ("every", "window", "lag", "origin", "asked_at")}

    def load(self, state: Mapping[str, int]) -> bool:
        """Go on from what `state` returned; False, and nothing happens, where this schedule has other settings."""
        if any(state[name] != getattr(self, name) for name in ("every", "window", "lag")):
            return False
        self.origin, self.asked_at = state["origin"], state["asked_at"]
        return True

    def next_snapshot(self, step: int) -> int:
        """Step of the first snapshot after this step."""
        return step + self.every - (step - self.origin) % self.every

    def _again_after(self, snapshots: int) -> None:
        decided_at = self.decided_at
        self.asked_at += snapshots * self.every
        while self.asked_at <= decided_at:  # a long lag: the next question comes after the last decision
            self.asked_at += self.every
