"""What the ranks of a sharded model do at a jump step: the first one leads, the others follow it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from koopcast.gram import Coefficients
from koopcast.hook.displacements import Displacements
from koopcast.hook.leader import Leader
from koopcast.hook.link import Link
from koopcast.hook.rates import ComingRates
from koopcast.hook.recorder import Recorder
from koopcast.hook.resuming import SavedRun
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.sharding import reshard
from koopcast.hook.stats import Counters
from koopcast.hook.together import END, EVALUATE, KEEP, LOSS, LedAttempts, SharedEvaluator, Together
from koopcast.hook.trial import Trial
from koopcast.hook.watch import Departure
from koopcast.prediction import Prediction, Summary

__all__ = ["PartFollower", "PartLeader"]

_FALLEN_OUT = "a rank lost a snapshot, or the service: all begin a new window"


class PartLeader(Leader):
    """Decides for all parts, and says to the others what to try.

    Attributes:
        begins: whether a segment is to begin for a reason that the others know of, too.
    """

    _attempts: LedAttempts
    begins = False

    @property
    def together(self) -> Together:
        """What the ranks share."""
        return self._attempts.together

    def decide(self, schedule: JumpSchedule) -> bool:
        """End this attempt, on all ranks."""
        self.begins = self.together.has_fallen_out()
        if self.begins:
            self.give_up(schedule, _FALLEN_OUT)
            return False
        jumped = self._led(lambda: super(PartLeader, self).decide(schedule))
        self.begins = jumped
        return jumped

    def look_back(self, step: int) -> bool:
        """Ask the probe again, on all ranks."""
        return self._led(lambda: super(PartLeader, self).look_back(step))

    def _led(self, act: Callable[[], bool]) -> bool:
        """Act, and let the others go on."""
        ranks = self.together.ranks
        try:
            result = act()
        except Exception:
            ranks.close()  # whatever the others wait for now does not come
            raise
        ranks.tell([END, 0, 0, 0, 0, 0, 0])
        return result


class PartFollower:
    """Does on its part what the first rank says.

    Attributes:
        recorder: takes the snapshots.
        link: to the service.
        ratio: as the leader's; the first rank says it.
        begins: whether a segment is to begin.
    """

    ratio = 1.0
    begins = False

    def __init__(
        self,
        evaluator: SharedEvaluator,
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
        displacements: Callable[[], Displacements],
        together: Together,
        counters: Counters,
    ) -> None:
        """Follow for this rank."""
        self.recorder = recorder
        self.together = together
        self._evaluator = evaluator
        self._optimizer = optimizer
        self._displacements = displacements
        self._counters = counters
        self._departure: Departure | None = None

    @property
    def link(self) -> Link:
        """To the service."""
        return self.together.link

    def ask(self, schedule: JumpSchedule, *, pushed: bool, clock: float | None, rate: float | None) -> None:
        """The first rank asks."""

    def decide(self, schedule: JumpSchedule) -> bool:  # noqa: ARG002  # as the leader
        """End this attempt, on all ranks; whether all jumped."""
        self.begins = self.together.has_fallen_out()
        if self.begins:
            self._counters.last_decision = _FALLEN_OUT
            return False
        jumped = self.begins = self._follow()
        self._counters.last_decision = (
            "jumped with the first rank" if jumped else "stayed with the first rank"
        )
        if jumped:
            self.recorder.break_off()
        return jumped

    def look_back(self, step: int) -> bool:  # noqa: ARG002  # as the leader
        """Ask the probe again, on all ranks; the first one decides."""
        self._follow()
        return False

    def confirm(self, *, watching: bool) -> None:
        """The jump was made everywhere; there is a way back only where it is watched."""
        if not watching:
            self.settle()

    def revoke(self) -> None:
        """Undo the last jump."""
        departure, self._departure = self._departure, None
        if departure is not None:
            departure.restore()
            departure.forget()
            self.recorder.break_off()
            self._counters.last_decision = "undone with the first rank"

    def go_back(self, step: int) -> bool:  # noqa: ARG002  # as the leader
        """Undo the jump that was looked back on."""
        self.revoke()
        return False

    def notice(self, step: int, schedule: JumpSchedule) -> None:
        """The first rank finds out what training is like."""

    def settle(self) -> None:
        """There is no going back any more."""
        departure, self._departure = self._departure, None
        if departure is not None:
            departure.forget()

    def search_state(self) -> Any:
        """The first rank searches."""
        return None

    def resume(self, saved: SavedRun, rates: ComingRates | None, next_snapshot: int) -> bool:  # noqa: ARG002
        """A window in the trainer ends with its process."""
        return False

    def _follow(self) -> bool:
        """Do what the first rank does until it ends; whether that was a jump."""
        arena = self.recorder.lend()
        jumped = False
        try:
            reshard(self._evaluator.model)
            self.recorder.hold_writers()
            trial = Trial(
                self._evaluator, self._optimizer, self.recorder.parameters(), self._displacements(), arena
            )
            heard: dict[int, Prediction] = {}
            while True:
                command, *told = self.together.ranks.tell([0] * 7)
                if command == END:
                    return jumped
                if command == LOSS:
                    trial.loss_now()
                    continue
                prediction = self._heard(heard, *told)
                if command == EVALUATE:
                    trial.evaluate(prediction)
                elif command == KEEP:
                    before = Departure(trial.weights, self._optimizer, arena)
                    jumped = trial.keep(prediction)
                    self._departure = before if jumped else None
        except Exception:
            self.together.ranks.close()  # whatever the others wait for now does not come
            raise
        finally:
            if not jumped:
                arena.release()

    def _heard(
        self, heard: dict[int, Prediction], number: int, step: int, blocks: int, velocities: int, *flags: int
    ) -> Prediction:
        """The prediction with this number; its coefficients follow where it is a new one."""
        has_last, known = flags
        if known:
            return heard[number]
        ranks = self.together.ranks
        velocity = ranks.tell_tensor(torch.empty((blocks, velocities), dtype=torch.float64))
        last = ranks.tell_tensor(torch.empty(blocks, dtype=torch.float64)) if has_last else None
        coefficients = Coefficients(step, velocity.numpy(), None if last is None else last.numpy())
        heard[number] = _prediction(coefficients)
        return heard[number]


def _prediction(coefficients: Coefficients) -> Prediction:
    """What a trial needs of it."""
    nan = math.nan
    return Prediction(
        id="",
        base_step=coefficients.step,
        from_step=coefficients.step,
        steps=nan,
        segment=0,
        moved=True,
        operator_index=0,
        blocks=(),
        summary=Summary(len(coefficients.velocity), 0, 0, nan, nan, nan, nan),
        coefficients=coefficients,
        _displacement=dict,
        _base=dict,
    )
