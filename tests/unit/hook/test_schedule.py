"""When the hook takes snapshots and decides: pure counting."""

from __future__ import annotations

from koopcast.hook.schedule import JumpSchedule


def due(schedule: JumpSchedule, last: int) -> list[int]:
    return [step for step in range(last + 1) if schedule.is_snapshot_due(step)]


def test_the_first_attempt_comes_when_the_window_is_full() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0)
    assert due(schedule, 45) == [10, 20, 30, 40]
    assert (schedule.asked_at, schedule.decided_at) == (40, 40)


def test_a_refusal_waits_for_half_a_window() -> None:
    schedule = JumpSchedule(every=10, window=5, lag=0)
    schedule.refused()
    assert schedule.asked_at == 50 + 30
    assert due(schedule, 60)[-1] == 60


def test_a_jump_begins_a_segment() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=3)
    schedule.jumped(43)
    assert due(schedule, 75) == [53, 63, 73]
    assert (schedule.asked_at, schedule.decided_at) == (83, 86)


def test_a_window_with_gaps_is_filled_first() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0)
    schedule.lacked(held=3)
    assert schedule.asked_at == 50
    schedule.lacked(held=0)
    assert schedule.asked_at == 90


def test_a_long_lag_never_asks_before_it_decided() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=35)
    asked = schedule.asked_at
    schedule.refused()
    assert schedule.asked_at > asked + 35
    assert schedule.is_snapshot_due(schedule.asked_at)
