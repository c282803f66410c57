"""Asks the service and decides jumps: what the only rank does, or the first of several."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from koopcast.hook.attempts import Attempts
from koopcast.hook.budget import WaitBudget
from koopcast.hook.held_job import Outcome
from koopcast.hook.link import Link
from koopcast.hook.looking_back import LookingBack, finite
from koopcast.hook.optimizer_state import gradient_ratio
from koopcast.hook.passing import InPassing
from koopcast.hook.policy import Choice
from koopcast.hook.question import Question
from koopcast.hook.rates import ComingRates, RateError
from koopcast.hook.recorder import Recorder
from koopcast.hook.resuming import Resumption, SavedRun
from koopcast.hook.scalars import Scalars
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.stats import Counters, JumpEvent
from koopcast.hook.walk import Walk
from koopcast.hook.watch import Departure
from koopcast.operator import Operator
from koopcast.prediction import Prediction

__all__ = ["Leader", "QuestionSettings"]

_LOG = logging.getLogger("koopcast")

_EARLY_ANSWER_SECONDS: Final = 10.0
"""How long an answer may take that was asked for in advance (`lag`)."""
_RESUME_SECONDS: Final = 5.0
"""How long going on with an earlier process's run may take."""


@dataclass(frozen=True, slots=True)
class QuestionSettings:
    """What is asked.

    Attributes:
        horizons: trainer steps ahead.
        operators: operators that answer.
        rates: the coming learning rates, where the schedule is known: horizons are then asked for on that clock.
    """

    horizons: tuple[float, ...]
    operators: tuple[Operator, ...]
    rates: ComingRates | None = None


class Leader:
    """Decides whether to jump.

    Attributes:
        recorder: takes the snapshots.
        link: to the service.
        shared: whether other ranks must make the jumps, too: each is then kept undoable until `confirm` or `revoke`.
        ratio: of the gradients after the last accepted jump to those before it, as far as its losses tell.
    """

    def __init__(
        self,
        attempts: Attempts,
        recorder: Recorder,
        link: Link,
        settings: QuestionSettings,
        budget: WaitBudget,
        scalars: Scalars,
        counters: Counters,
    ) -> None:
        """Decide for this training run."""
        self.recorder = recorder
        self.link = link
        self.ratio = 1.0
        self.shared = False
        self._attempts = attempts
        self._scalars = scalars
        self._settings = settings
        self._budget = budget
        self._counters = counters
        self._question: Question | None = None
        self._in_passing = InPassing(link)
        self._last_jump = LookingBack(attempts, recorder, link, scalars, counters)
        self._breaks = 0

    def ask(self, schedule: JumpSchedule, *, pushed: bool, clock: float | None, rate: float | None) -> None:
        """Ask for the jump of this attempt.

        Args:
            schedule: says what for.
            pushed: whether the snapshot it is asked at is on its way.
            clock: sum of the learning rates so far; None: unknown.
            rate: learning rate of the last step; None: unknown.
        """
        self._question = None
        self._breaks = self.recorder.breaks
        if not pushed:
            return
        if self._attempts.hopeless and self._attempts.regime.noisy:
            self._question = self._in_passing.ask(schedule, self._settings.horizons, self._settings.operators)
            return
        intervals, from_clock = self._on_the_clock(schedule, clock, rate)
        question = Question(
            schedule.asked_at,
            schedule.decided_at,
            self._settings.horizons,
            self._settings.operators,
            _EARLY_ANSWER_SECONDS if schedule.lag else self._budget.left,
            intervals,
            from_clock,
        )
        if self.link.put(question):
            self._question = question

    def decide(self, schedule: JumpSchedule) -> bool:
        """End this attempt: wait, look at the answer, jump or not, plan the next attempt. Whether it jumped."""
        question, self._question = self._question, None
        step = schedule.decided_at
        try:
            if question is not None and question is self._in_passing.question:
                return self._no_proposal(schedule, "quiet: training is noisy", held=None)
            return self._decide(question, schedule)
        finally:
            self._budget.renew()
            self._scalars.attempt(step)

    def notice(self, step: int, schedule: JumpSchedule) -> None:
        """After every step: where the first snapshot of all is due, find out what training is like."""
        self._go_further(step, schedule)
        self._attempts.compare(step)
        self._read_in_passing(step, schedule)
        self._counters.gradient_agreement = self._attempts.regime.agreement
        if not schedule.is_snapshot_due(step):
            return
        self._attempts.gather()
        if self.link.up:
            self._attempts.look_around(step)

    def better(self) -> Tensor | None:
        """Weights better than training's own that are kept beside it; None: there are none."""
        return self._attempts.better()

    def look_back(self, step: int) -> bool:
        """Ask the probe again, a stride after a jump; whether the jump is to be undone, by `go_back`."""
        return self._last_jump.look(step)

    def go_back(self, step: int) -> bool:
        """Undo the jump that was looked back on, now that all ranks know; whether there is a new one to look back on."""
        undone, loss_before = self._last_jump.go_back()
        if not (undone and self._attempts.refining):
            return False
        probes_before = self._counters.probe_evaluations
        choice, departure = self._attempts.go_on(loss_before, step)
        if not choice.moved:
            return False
        self.recorder.break_off()
        self._count(choice, step, probes_before)
        if departure is not None:
            self._last_jump.watch(departure, None, choice.loss_before)
        return departure is not None

    def search_state(self) -> Any:
        """What the search order remembers, for `resume`."""
        order = self._attempts.order
        return order.state() if isinstance(order, Walk) else None

    def resume(self, saved: SavedRun, rates: ComingRates | None, next_snapshot: int) -> bool:
        """Go on with an earlier process's run; whether its window goes on."""
        self._settings = replace(self._settings, rates=rates)
        order = self._attempts.order
        if isinstance(order, Walk):
            order.load(saved.search)
        resumption = Resumption(saved.lease_id, saved.segment, next_snapshot, _RESUME_SECONDS)
        goes_on = self.link.resume(resumption, _RESUME_SECONDS)
        self.recorder.fresh = not goes_on
        return goes_on

    def give_up(self, schedule: JumpSchedule, reason: str) -> None:
        """End this attempt without a look at its answer: the window is of no use."""
        self._question = None
        step = schedule.decided_at
        self._no_proposal(schedule, reason, held=0)
        self._budget.renew()
        self._scalars.attempt(step)

    def confirm(self, *, watching: bool) -> None:
        """The other ranks made the jump, too; there is a way back only where it is watched."""
        if not watching:
            self.settle()

    def revoke(self) -> None:
        """Undo the last jump: other ranks did not make it, or nobody knows."""
        self._last_jump.revoke()

    def settle(self) -> None:
        """Training ends: a jump that was not looked back on yet stays."""
        self._last_jump.settle()

    def _on_the_clock(
        self, schedule: JumpSchedule, clock: float | None, rate: float | None
    ) -> tuple[tuple[float, ...], float | None]:
        """The horizons on the clock, and the clock where they begin; nothing where the steps must do."""
        rates = self._settings.rates
        if rates is None or clock is None:
            return (), None
        started = time.monotonic()
        try:
            coming = rates.sums(
                schedule.asked_at,
                self._settings.horizons,
                lag=schedule.lag,
                used=rate,
                seconds=self._budget.left,
            )
        except RateError as error:
            self._settings = replace(self._settings, rates=None)
            _LOG.warning("koopcast leaves the learning-rate schedule aside and counts steps: %s", error)
            return (), None
        finally:
            self._budget.spend_since(started)
        return (coming.intervals, clock + coming.lag) if coming is not None else ((), None)

    def _go_further(self, step: int, schedule: JumpSchedule) -> None:
        """Where refining paused for a step of training, go on: to all else the jump is then made now."""
        probes_before = self._counters.probe_evaluations
        choice = self._attempts.further(step)
        if choice is None:
            return
        schedule.jumped(step)
        self.recorder.break_off()
        spent = self._counters.probe_evaluations - probes_before
        self._counters.refined(choice.final_loss, choice.reason, spent)

    def _read_in_passing(self, step: int, schedule: JumpSchedule) -> None:
        """Look at an answer that nobody waited for, once it is there.

        Where it promises much, or there was too little in the window for one, a pause is over.
        """
        question = self._in_passing.take()
        if question is None:
            return
        self._foretold(question.predictions)
        lacking = question.held is not None
        if self._attempts.hopeless and not lacking:
            self._counters.last_decision = self._hopeless_words() if question.predictions else question.reason
        elif schedule.is_pausing(step) and not self.shared:
            schedule.resume(step)

    def _hopeless_words(self) -> str:
        index = self._attempts.regime.predictability
        told = f"{index:.2f} of it" if index is not None else "nothing"
        return f"quiet: the operator foretells {told}, too little for a jump to pay"

    def _decide(self, question: Question | None, schedule: JumpSchedule) -> bool:
        if question is None:
            connected = (
                "the snapshot of this step was dropped" if self.link.up else "the service is not there"
            )
            return self._no_proposal(schedule, connected, held=0)
        started = time.monotonic()
        question.wait(self._budget.left)
        self._budget.spend_since(started)
        if self._breaks != self.recorder.breaks:
            return self._no_proposal(schedule, "the trajectory broke after the question", held=0)
        if not question.predictions:
            return self._no_proposal(schedule, question.reason, held=question.held)
        self._foretold(question.predictions)
        if self._attempts.hopeless:
            return self._no_proposal(schedule, self._hopeless_words(), held=None)
        moving = [prediction for prediction in question.predictions if prediction.moved]
        if not moving and not self._attempts.refining:
            return self._no_proposal(schedule, "the service declined: no operator beats staying", held=None)
        return self._propose(moving, question.predictions[0], schedule)

    def _foretold(self, predictions: Sequence[Prediction]) -> None:
        """Note how much of the path the best operator foretells."""
        told = [prediction.summary.predictability for prediction in predictions]
        known = [index for index in told if index is not None]
        if known:
            self._attempts.regime.predictability = self._counters.predictability = max(known)

    def _no_proposal(self, schedule: JumpSchedule, reason: str, held: int | None) -> bool:
        self._counters.last_decision = reason
        if held is None:
            schedule.refused(quiet=self._attempts.hopeless)
        else:
            schedule.lacked(held)
        return False

    def _propose(self, moving: Sequence[Prediction], first: Prediction, schedule: JumpSchedule) -> bool:
        probes_before = self._counters.probe_evaluations
        step = schedule.decided_at
        choice, departure = self._attempts.choose(
            moving, undoable=schedule.watching or self.shared, step=step
        )
        if choice.moved:
            schedule.jumped(step)
            self.recorder.break_off()
            self.ratio = gradient_ratio(choice.loss_before, choice.final_loss)
        else:
            schedule.refused()
        self._count(choice, step, probes_before)
        self._report(choice.prediction if choice.prediction is not None else first, choice, departure)
        return choice.moved

    def _count(self, choice: Choice, step: int, probes_before: int) -> None:
        best = choice.prediction
        event = JumpEvent(
            step=step,
            horizon=best.steps if best is not None else math.nan,
            operator_index=best.operator_index if best is not None else 0,
            loss_before=choice.loss_before,
            loss_after=choice.final_loss,
            accepted=choice.moved,
            reason=choice.reason,
            probe_evaluations=self._counters.probe_evaluations - probes_before,
            seconds=self._counters.seconds,
        )
        self._counters.last_decision = choice.reason
        self._counters.jumped(event)
        self._scalars.proposal(event, best)

    def _report(self, prediction: Prediction, choice: Choice, departure: Departure | None) -> None:
        """Tell the service; of a jump that is to be watched, later."""
        if self._attempts.observing:
            return  # nothing became of it, and the service would take it for a refusal
        outcome = None
        if choice.prediction is not None or not choice.moved:
            outcome = Outcome(
                prediction.id, choice.accepted, finite(choice.loss_before), finite(choice.loss_after)
            )
        if choice.moved and departure is not None:
            self._last_jump.watch(departure, outcome, choice.loss_before)
        else:
            self._last_jump.report(outcome)
