"""Asks the service and decides jumps: what the only rank does, or the first of several."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from koopcast.hook.held_job import Outcome
from koopcast.hook.link import Link
from koopcast.hook.policy import Choice, SearchOrder, choose_by_backtest, choose_by_loss
from koopcast.hook.question import Question
from koopcast.hook.rates import ComingRates, RateError
from koopcast.hook.recorder import Recorder, WaitBudget
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.stats import Counters, JumpEvent
from koopcast.hook.trial import Evaluator, Trial
from koopcast.hook.watch import Departure, went_wrong
from koopcast.operator import Operator
from koopcast.prediction import Prediction

__all__ = ["Leader", "QuestionSettings"]

_LOG = logging.getLogger("koopcast")

_EARLY_ANSWER_SECONDS: Final = 10.0
"""How long an answer may take that was asked for in advance (`lag`)."""


@dataclass(frozen=True, slots=True)
class QuestionSettings:
    """What is asked, and how an answer is searched.

    Attributes:
        horizons: trainer steps ahead.
        operators: operators that answer.
        search: in which order a probe looks at the answers.
        rates: the coming learning rates, where the schedule is known: horizons are then asked for on that clock.
    """

    horizons: tuple[float, ...]
    operators: tuple[Operator, ...]
    search: SearchOrder
    rates: ComingRates | None = None


@dataclass(frozen=True, slots=True)
class _Watched:
    """An accepted jump that was not looked back on yet, and what is to be reported of it."""

    departure: Departure
    outcome: Outcome
    breaks: int


class Leader:
    """Decides whether to jump."""

    def __init__(
        self,
        evaluator: Evaluator,
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
        link: Link,
        settings: QuestionSettings,
        budget: WaitBudget,
        counters: Counters,
    ) -> None:
        """Decide for this training run."""
        self.recorder = recorder
        self.link = link
        self._evaluator = evaluator
        self._optimizer = optimizer
        self._settings = settings
        self._budget = budget
        self._counters = counters
        self._question: Question | None = None
        self._breaks = 0
        self._watched: _Watched | None = None

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
        try:
            return self._decide(question, schedule)
        finally:
            self._budget.renew()

    def look_back(self) -> bool:
        """Ask the probe again, a stride after a jump; whether the jump was undone."""
        watched, self._watched = self._watched, None
        if watched is None:
            return False
        if watched.breaks != self.recorder.breaks:  # other weights were loaded: nothing to go back from
            self.link.put(watched.outcome)
            return False
        loss = self._trial().loss_now()
        outcome = watched.outcome
        undone = outcome.loss_before is not None and went_wrong(outcome.loss_before, loss)
        if undone:
            watched.departure.restore()
            self.recorder.break_off()
            reason = f"undone a stride after the jump: loss {outcome.loss_before:.6g} to {loss:.6g}"
            self._counters.last_decision = reason
            self._counters.undone(reason)
            outcome = replace(outcome, accepted=False, loss_after=_finite(loss))
        self.link.put(outcome)
        return undone

    def settle(self) -> None:
        """Training ends: a jump that was not looked back on yet stays."""
        watched, self._watched = self._watched, None
        if watched is not None:
            self.link.put(watched.outcome)

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
        moving = [prediction for prediction in question.predictions if prediction.moved]
        if not moving:
            return self._no_proposal(schedule, "the service declined: no operator beats staying", held=None)
        return self._propose(moving, schedule)

    def _no_proposal(self, schedule: JumpSchedule, reason: str, held: int | None) -> bool:
        self._counters.last_decision = reason
        if held is None:
            schedule.refused()
        else:
            schedule.lacked(held)
        return False

    def _propose(self, predictions: Sequence[Prediction], schedule: JumpSchedule) -> bool:
        probes_before = self._counters.probe_evaluations
        step = schedule.decided_at
        choice, departure = self._choose(predictions, watching=schedule.watching)
        self._counters.last_decision = choice.reason
        if choice.accepted:
            schedule.jumped(step)
            self.recorder.break_off()
        else:
            schedule.refused()
        best = choice.prediction
        event = JumpEvent(
            step=step,
            horizon=best.steps if best is not None else math.nan,
            operator_index=best.operator_index if best is not None else 0,
            loss_before=choice.loss_before,
            loss_after=choice.loss_after,
            accepted=choice.accepted,
            reason=choice.reason,
            probe_evaluations=self._counters.probe_evaluations - probes_before,
            seconds=self._counters.seconds,
        )
        self._counters.jumped(event)
        reported = best if best is not None else predictions[0]
        outcome = Outcome(
            reported.id, choice.accepted, _finite(choice.loss_before), _finite(choice.loss_after)
        )
        if choice.accepted and departure is not None:
            self._watched = _Watched(departure, outcome, self.recorder.breaks)
        else:
            self.link.put(outcome)
        return choice.accepted

    def _choose(
        self, predictions: Sequence[Prediction], *, watching: bool
    ) -> tuple[Choice, Departure | None]:
        """Search, and make the jump if one is accepted; with what to go back to, where it is to be watched."""
        if self._evaluator.probe is None:
            choice = choose_by_backtest(predictions)
            if not choice.accepted:
                return choice, None
            trial = self._trial()
        else:
            trial = self._trial()
            choice = choose_by_loss(predictions, trial.loss_now(), trial.evaluate, self._settings.search)
        if not choice.accepted or choice.prediction is None:
            return choice, None
        departure = Departure(self._evaluator.model, self._optimizer) if watching else None
        if trial.keep(choice.prediction):
            return choice, departure
        reason = "the jump was undone: on_jump raised, or weights were not finite"
        return replace(choice, accepted=False, reason=reason), None

    def _trial(self) -> Trial:
        return Trial(self._evaluator, self._optimizer, self.recorder.parameters())


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
