"""From the schedule to the question: horizons on the clock, and back to steps where the schedule does not serve."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import nn

import koopcast
from koopcast.hook.attempts import Attempts
from koopcast.hook.budget import WaitBudget
from koopcast.hook.buffers import BufferPool
from koopcast.hook.held_job import HeldJob, JobSettings, Snapshot
from koopcast.hook.leader import Leader, QuestionSettings
from koopcast.hook.link import Link
from koopcast.hook.question import Question
from koopcast.hook.rates import ComingRates
from koopcast.hook.recorder import Recorder
from koopcast.hook.scalars import Scalars
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.selection import Selection
from koopcast.hook.stats import Counters
from koopcast.job import Job
from trainers import prediction


class Mailbox:
    """Keeps what would go to the service."""

    up = True

    def __init__(self) -> None:
        self.posted: list[Any] = []

    def put(self, message: Any) -> bool:
        self.posted.append(message)
        return True


def recorder(averaging: int, mailbox: Mailbox) -> Recorder:
    selection, counters = Selection(nn.Linear(2, 1), None, averaged=averaging > 1), Counters()
    pool = BufferPool(selection.specs, 9, pinned=False)
    return Recorder(selection, cast(Link, mailbox), pool, averaging, WaitBudget(1.0, counters), counters)


def questions(
    rate_at: Callable[[int], float] | None,
    moments: Sequence[tuple[float | None, float | None]] = ((1.0, 0.1),),
    lag: int = 0,
) -> list[Question]:
    """What a leader asks at steps 40, 60, 80, … given the clock and the last rate there."""
    mailbox, counters = Mailbox(), Counters()
    rates = ComingRates(rate_at) if rate_at is not None else None
    settings = QuestionSettings((10.0, 25.0), (koopcast.Operator(window=4),), rates)
    leader = Leader(
        cast(Attempts, SimpleNamespace(hopeless=False)),  # all that asking needs to know of them
        recorder(1, mailbox),
        cast(Link, mailbox),
        settings,
        WaitBudget(1.0, counters),
        Scalars(None, counters),
        counters,
    )
    schedule = JumpSchedule(every=10, window=4, lag=lag)
    for clock, rate in moments:
        leader.ask(schedule, pushed=True, clock=clock, rate=rate)
        schedule.refused()
    return mailbox.posted


def test_horizons_are_asked_for_on_the_clock() -> None:
    (asked,) = questions(lambda step: 0.1 if step < 50 else 0.01)
    assert asked.horizons == (10.0, 25.0)
    assert asked.clock_intervals == pytest.approx((1.0, 1.15))
    assert asked.from_clock == 1.0


def test_the_clock_goes_on_during_the_lag() -> None:
    (asked,) = questions(lambda step: 0.1 if step < 50 else 0.01, lag=5)
    assert asked.from_step == 45
    assert asked.clock_intervals == pytest.approx((0.55, 0.7))
    assert asked.from_clock == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("rate_at", "clock"),
    [(None, 1.0), (lambda _: 0.1, None), (lambda step: 0.1 if step < 40 else 0.0, 1.0)],
    ids=["no schedule", "no clock", "the schedule is at its end"],
)
def test_without_a_clock_steps_are_asked_for(
    rate_at: Callable[[int], float] | None, clock: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    (asked,) = questions(rate_at, [(clock, 0.1)])
    assert asked.clock_intervals == ()
    assert asked.from_clock is None
    assert not caplog.records


def raising(step: int) -> float:
    if step >= 70:
        raise RuntimeError("the schedule is broken")
    return 0.1


@pytest.mark.parametrize(
    ("rate_at", "words"),
    [
        (raising, "the schedule is broken"),
        (lambda step: 0.1 if step < 70 else float("nan"), "nan"),
        (lambda step: 0.1 if step < 70 else 0.3, "trained with learning rate 0.1, and the schedule says 0.3"),
    ],
)
def test_a_broken_schedule_is_left_aside_and_reported_once(
    rate_at: Callable[[int], float], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "koopcast"):
        asked = questions(rate_at, [(float(clock), 0.1) for clock in (4, 6, 8, 10)])
    assert [bool(question.clock_intervals) for question in asked] == [True, True, False, False]
    assert len(caplog.records) == 1
    assert words in caplog.text


@pytest.mark.parametrize(("averaging", "clocks"), [(1, [0.4, 0.8]), (4, [0.25, 0.65])])
def test_the_clock_of_a_mean_is_the_mean_of_the_clocks(averaging: int, clocks: list[float]) -> None:
    mailbox = Mailbox()
    recording = recorder(averaging, mailbox)
    for step in range(1, 9):
        recording.step(step, 0.1 * step, due=step % 4 == 0)
    assert [cast(Snapshot, snapshot).clock for snapshot in mailbox.posted] == pytest.approx(clocks)


def test_a_mean_with_an_unknown_clock_has_none() -> None:
    mailbox = Mailbox()
    recording = recorder(4, mailbox)
    for step in range(1, 9):
        recording.step(step, None if step == 2 else 0.1 * step, due=step % 4 == 0)
    assert mailbox.posted[0].clock is None
    assert mailbox.posted[1].clock == pytest.approx(0.65)


class Service:
    """Answers `predict_ahead`, or refuses the clock."""

    segment, snapshots_held, bytes_sent, bytes_resent, bytes_received = 1, 4, 0, 0, 0

    def __init__(self, refusal: str | None) -> None:
        self.refusal = refusal
        self.calls: list[dict[str, Any]] = []

    def predict_ahead(self, horizons: Sequence[float], **settings: Any) -> list[koopcast.Prediction]:
        self.calls.append(settings)
        if self.refusal and settings["clock_intervals"] is not None:
            raise koopcast.FailedPrecondition("refused", reason=self.refusal)
        return [prediction(steps=steps, base_step=100, from_step=100) for steps in horizons]


def held_job(service: Service) -> HeldJob:
    settings = JobSettings("job", True, {}, 10, koopcast.Operator(window=4), 1)
    held = HeldJob(cast(koopcast.Client, None), settings, Counters())
    held._job, held._newest = cast(Job, service), (1, 100)
    return held


def question(*clock_intervals: float) -> Question:
    return Question(100, 100, [10.0, 20.0], [koopcast.Operator(window=4)], 10.0, clock_intervals, 7.0)


def test_the_job_is_asked_on_the_clock() -> None:
    service, asked = Service(None), question(0.5, 0.9)
    held_job(service).answer(asked)
    assert len(asked.predictions) == 2
    assert [call.get("clock_intervals") for call in service.calls] == [(0.5, 0.9)]
    assert service.calls[0]["from_clock"] == 7.0


def test_the_job_is_asked_in_steps_without_a_clock() -> None:
    service, asked = Service(None), question()
    held_job(service).answer(asked)
    assert len(asked.predictions) == 2
    assert [(call["clock_intervals"], call["from_clock"]) for call in service.calls] == [(None, None)]


def test_a_clock_that_cannot_be_resampled_gives_way_to_steps() -> None:
    service, asked = Service("UNEVEN_CLOCK"), question(0.5, 0.9)
    held_job(service).answer(asked)
    assert len(asked.predictions) == 2
    assert [call["clock_intervals"] for call in service.calls] == [(0.5, 0.9), None]


def test_other_refusals_are_refusals() -> None:
    service = Service("TOO_FEW_SNAPSHOTS")
    with pytest.raises(koopcast.FailedPrecondition):
        held_job(service).answer(question(0.5, 0.9))
    assert len(service.calls) == 1
