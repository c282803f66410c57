"""The last jump, until it is known to stay: looked back on a stride later, undone, or settled before that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from koopcast.hook.attempts import Attempts
from koopcast.hook.held_job import Outcome
from koopcast.hook.link import Link
from koopcast.hook.recorder import Recorder
from koopcast.hook.scalars import Scalars
from koopcast.hook.stats import Counters
from koopcast.hook.watch import Departure, went_wrong

__all__ = ["LookingBack", "finite"]


@dataclass(frozen=True, slots=True)
class _Watched:
    """An accepted jump that was not looked back on yet, and what is to be reported of it."""

    departure: Departure
    outcome: Outcome | None
    loss_before: float | None
    replaced: int


class LookingBack:
    """Knows the way back from one jump at a time, and tells the service what became of it."""

    def __init__(
        self, attempts: Attempts, recorder: Recorder, link: Link, scalars: Scalars, counters: Counters
    ) -> None:
        """Nothing to look back on yet."""
        self._attempts = attempts
        self._recorder = recorder
        self._link = link
        self._scalars = scalars
        self._counters = counters
        self._watched: _Watched | None = None
        self._undone: _Watched | None = None

    def watch(self, departure: Departure, outcome: Outcome | None, loss_before: float | None) -> None:
        """A jump was made; its outcome is reported when it is known to stay, or not to."""
        self._watched = _Watched(departure, outcome, loss_before, self._recorder.replaced)

    def look(self, step: int) -> bool:
        """Ask the probe again, a stride after the jump; whether it is to be undone, by `go_back`."""
        watched, self._watched = self._watched, None
        if watched is None:
            return False
        undone = False
        try:
            if watched.replaced == self._recorder.replaced:
                undone = self._has_gone_wrong(watched, step)
            else:  # other weights were loaded: nothing to go back from
                self.report(watched.outcome)
        finally:
            if not undone:
                watched.departure.forget()
        return undone

    def go_back(self) -> tuple[bool, float | None]:
        """Undo the jump that was looked back on: whether there was one, and the loss where training stands again."""
        undone, self._undone = self._undone, None
        if undone is None:
            return False, None
        self._restore(undone)
        return True, undone.loss_before

    def revoke(self) -> None:
        """Undo the last jump, unlooked at: other ranks did not make it, or nobody knows."""
        watched, self._watched = self._watched, None
        if watched is None:
            return
        self._restore(watched)
        self._note("undone at once: the other ranks could not be told")
        if watched.outcome is not None:
            self.report(replace(watched.outcome, accepted=False))

    def settle(self) -> None:
        """The last jump stays, looked back on or not."""
        watched, self._watched = self._watched, None
        if watched is not None:
            self.report(watched.outcome)
            watched.departure.forget()

    def report(self, outcome: Outcome | None) -> None:
        """Tell what became of a prediction; nothing where a jump came of none."""
        if outcome is not None:
            self._link.put(outcome)

    def _has_gone_wrong(self, watched: _Watched, step: int) -> bool:
        loss = self._attempts.loss_now()
        outcome = watched.outcome
        undone = watched.loss_before is not None and went_wrong(watched.loss_before, loss)
        if undone:
            self._undone = watched
            self._note(f"undone a stride after the jump: loss {watched.loss_before:.6g} to {loss:.6g}")
            self._scalars.undone(step, loss)
            if outcome is not None:
                outcome = replace(outcome, accepted=False, loss_after=finite(loss))
        else:
            self._attempts.held(loss, step)
        self.report(outcome)
        return undone

    def _restore(self, jump: _Watched) -> None:
        jump.departure.restore()
        jump.departure.forget()
        self._recorder.break_off()

    def _note(self, reason: str) -> None:
        self._counters.last_decision = reason
        self._counters.undone(reason)


def finite(loss: float | None) -> float | None:
    """What can be reported of a loss: None where it is no finite number."""
    return loss if loss is not None and math.isfinite(loss) else None
