"""At which steps snapshots are taken, predictions asked for, and jumps decided. Pure counting.

Jump steps are fixed in advance, by this alone, so that all ranks of a job meet there: nothing the service does
between two attempts changes when the next one is.

Where jumps are refused one after another, the schedule goes quiet: it waits longer and longer before it fills another
window, and in between nothing is due, so that a run in which jumps do not pay hardly pays for asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["LONGEST_PAUSE_WINDOWS", "JumpSchedule"]

LONGEST_PAUSE_WINDOWS: Final = 64
"""A pause is twice as long as the one before it, up to this. Unit: windows, each as long as it takes to fill one."""

_QUIET_REFUSALS: Final = 5
"""Refusals in a row that one without hope counts for: a pause of 8 windows."""


class JumpSchedule:
    """Steps of snapshots and jumps.

    A segment has an origin; its snapshots are due every `every` steps after it. An attempt asks at one of them,
    `asked_at`, and is decided `lag` steps later. An origin that lies ahead is a pause: nothing is due before it.

    Attributes:
        origin: step the segment began at, or will begin at.
        asked_at: step of the snapshot at which the next attempt asks.
        watched_at: step at which the last jump is looked back on; None where there is nothing to look back on.
        refusals: attempts refused since the last jump.
    """

    def __init__(
        self, every: int, window: int, lag: int, *, watching: bool = False, pausing: bool = True
    ) -> None:
        """Begin at step 0 with an empty window.

        Args:
            every: steps between two snapshots.
            window: snapshots that an attempt needs.
            lag: steps between question and decision.
            watching: look back on jumps.
            pausing: go quiet where jumps are refused. Not for who only watches what they would be: to such an
                observer each attempt is one that did not jump.
        """
        self.every = every
        self.window = window
        self.lag = lag
        self.watching = watching
        self.pausing = pausing
        self.watched_at: int | None = None
        self.refusals = 0
        self.origin = 0
        self.asked_at = window * every

    @property
    def decided_at(self) -> int:
        """Step at which the next attempt is decided."""
        return self.asked_at + self.lag

    def is_snapshot_due(self, step: int) -> bool:
        """Whether a snapshot is taken at this step."""
        return step > self.origin and (step - self.origin) % self.every == 0

    def is_pausing(self, step: int) -> bool:
        """Whether this step lies in a pause: there is no segment now."""
        return step < self.origin

    def jumped(self, step: int) -> None:
        """A jump was made: begin a segment, and look back on it one stride later."""
        self.broke(step)
        self.watched_at = step + self.every if self.watching else None
        self.refusals = 0

    def broke(self, step: int) -> None:
        """The trajectory broke: begin a segment and fill a window, where there is a pause after it."""
        self.watched_at = None
        self._begin(max(step, self.origin))

    def refused(self, *, quiet: bool = False) -> None:
        """No jump this time: try again after half a window of new snapshots; from the second time on, pause first.

        Args:
            quiet: there is little hope for the next times: pause for long at once.
        """
        self.refusals = max(self.refusals + 1, _QUIET_REFUSALS if quiet else 0)
        if self.refusals == 1 or not self.pausing:
            self._again_after((self.window + 1) // 2)
            return
        windows = min(2 ** (self.refusals - 2), LONGEST_PAUSE_WINDOWS)
        self._begin(self.decided_at + windows * self.window * self.every)

    def resume(self, step: int) -> None:
        """There is hope again: a pause ends with this step."""
        self.refusals = 0
        self._begin(step)

    def lacked(self, held: int) -> None:
        """The window held only so many snapshots: try again when it can be full."""
        self._again_after(max(1, self.window - held))

    def adopt(self, origin: int, asked_at: int, refusals: int = 0) -> None:
        """Take over what another rank decided: a segment that begins later than now is a pause, another one a jump."""
        if origin > self.decided_at:
            self._begin(origin)
        elif origin != self.origin:
            self.jumped(origin)
        self.asked_at, self.refusals = asked_at, refusals

    def state(self) -> dict[str, int]:
        """What `load` needs."""
        names = ("every", "window", "lag", "origin", "asked_at", "refusals")
        return {name: getattr(self, name) for name in names}

    def load(self, state: Mapping[str, int]) -> bool:
        """Go on from what `state` returned; False, and nothing happens, where this schedule has other settings."""
        if any(state[name] != getattr(self, name) for name in ("every", "window", "lag")):
            return False
        self.origin, self.asked_at = state["origin"], state["asked_at"]
        self.refusals = state.get("refusals", 0)  # not in what earlier versions wrote
        return True

    def next_snapshot(self, step: int) -> int:
        """Step of the first snapshot after this step."""
        if self.is_pausing(step):
            return self.origin + self.every
        return step + self.every - (step - self.origin) % self.every

    def _begin(self, origin: int) -> None:
        """A segment begins at this step, with an empty window."""
        self.origin = origin
        self.asked_at = origin + self.window * self.every

    def _again_after(self, snapshots: int) -> None:
        decided_at = self.decided_at
        self.asked_at += snapshots * self.every
        while self.asked_at <= decided_at:  # a long lag: the next question comes after the last decision
            self.asked_at += self.every
