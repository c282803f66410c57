"""Where training is noisy the hook asks in passing: nothing waits, and what comes of it is read when it is there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

import koopcast
from koopcast.hook.attempts import Attempts
from koopcast.hook.budget import WaitBudget
from koopcast.hook.leader import Leader, QuestionSettings
from koopcast.hook.link import Link
from koopcast.hook.question import Question
from koopcast.hook.recorder import Recorder
from koopcast.hook.regime import Regime
from koopcast.hook.scalars import Scalars
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.stats import Counters
from koopcast.hook.trial import Evaluator
from koopcast.prediction import Prediction
from trainers import prediction


class Compared(Attempts):
    """Attempts of a trainer whose probe was compared with a step already; nothing is ever tried."""

    def __init__(self, agreement: float) -> None:
        self.regime = Regime(agreement=agreement)
        self.observing = False
        self._evaluator = cast(Evaluator, SimpleNamespace(probe=float))


class Mailbox:
    """Keeps what would go to the service."""

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self.posted: list[Any] = []

    def put(self, message: Any) -> bool:
        if self.up:
            self.posted.append(message)
        return self.up


class Trained:
    """A leader at the step of its first attempt."""

    def __init__(self, agreement: float = 0.6, *, up: bool = True, shared: bool = False) -> None:
        self.mailbox, self.counters = Mailbox(up=up), Counters()
        self.schedule = JumpSchedule(every=10, window=4, lag=0)
        self.leader = Leader(
            Compared(agreement),
            cast(Recorder, SimpleNamespace(breaks=0)),
            cast(Link, self.mailbox),
            QuestionSettings((10.0,), (koopcast.Operator(window=4),)),
            WaitBudget(5.0, self.counters),
            Scalars(None, self.counters),
            self.counters,
        )
        self.leader.shared = shared

    def attempt(self) -> None:
        self.leader.ask(self.schedule, pushed=True, clock=4.0, rate=0.1)
        assert not self.leader.decide(self.schedule)

    @property
    def question(self) -> Question:
        (question,) = self.mailbox.posted
        assert isinstance(question, Question)
        return question

    def train(self, step: int) -> None:
        self.leader.notice(step, self.schedule)


def foretelling(index: float) -> Prediction:
    found = prediction(base_step=40, from_step=40)
    return replace(found, summary=replace(found.summary, predictability=index))


def test_nothing_waits_and_a_pause_begins_at_once() -> None:
    trained = Trained()
    trained.attempt()
    assert trained.counters.seconds_blocked == 0.0
    assert trained.question.clock_intervals == ()
    assert trained.schedule.is_pausing(41)
    trained.train(41)
    assert trained.counters.predictability is None
    assert "noisy" in trained.counters.last_decision


def test_what_comes_of_it_is_read_when_it_is_there() -> None:
    trained = Trained()
    trained.attempt()
    trained.question.answer([foretelling(0.1)])
    trained.train(45)
    assert trained.counters.predictability == 0.1
    assert "foretells 0.10" in trained.counters.last_decision
    assert trained.schedule.is_pausing(45)


@pytest.mark.parametrize("shared", [False, True])
def test_a_path_that_can_be_foretold_ends_the_pause_where_no_other_rank_counts_on_it(shared: bool) -> None:
    trained = Trained(shared=shared)
    trained.attempt()
    trained.question.answer([foretelling(0.9)])
    trained.train(47)
    assert trained.counters.predictability == 0.9
    assert trained.schedule.is_pausing(48) == shared
    if not shared:
        assert trained.schedule.asked_at == 47 + 4 * 10
    trained.mailbox.posted.clear()
    trained.leader.ask(trained.schedule, pushed=True, clock=4.0, rate=0.1)
    trained.question.decline("no")  # this one is waited for
    assert not trained.leader.decide(trained.schedule)
    assert trained.counters.last_decision == "no"


def test_a_window_that_was_too_short_is_filled_without_a_pause() -> None:
    trained = Trained()
    trained.attempt()
    trained.question.lack("the window holds 2 snapshots", 2)
    trained.train(43)
    assert not trained.schedule.is_pausing(43)
    assert trained.schedule.asked_at == 43 + 4 * 10


def test_without_a_service_it_is_as_ever() -> None:
    trained = Trained(up=False)
    trained.attempt()
    assert trained.counters.last_decision == "the service is not there"
    assert not trained.schedule.is_pausing(41)


def test_without_noise_the_answer_is_waited_for() -> None:
    trained = Trained(agreement=1.0)
    trained.leader.ask(trained.schedule, pushed=True, clock=None, rate=0.1)
    trained.question.decline("no")
    assert not trained.leader.decide(trained.schedule)
    assert trained.counters.last_decision == "no"
    assert not trained.schedule.is_pausing(41)
