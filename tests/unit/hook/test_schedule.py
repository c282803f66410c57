"""When the hook takes snapshots and decides: pure counting."""

from __future__ import annotations

import itertools

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


def refused_steps(schedule: JumpSchedule, last: int) -> list[int]:
    """Steps at which attempts are decided up to `last`, where all are refused."""
    decided = []
    while schedule.decided_at <= last:
        decided.append(schedule.decided_at)
        schedule.refused()
    return decided


def test_refusals_one_after_another_make_pauses_that_grow() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0)
    schedule.refused()
    assert (schedule.origin, schedule.asked_at) == (0, 60)
    schedule.refused()
    assert (schedule.origin, schedule.asked_at) == (60 + 40, 60 + 80)
    assert [schedule.is_pausing(step) for step in (61, 99, 100)] == [True, True, False]
    assert [step for step in range(61, 141) if schedule.is_snapshot_due(step)] == [110, 120, 130, 140]
    schedule.refused()
    assert (schedule.origin, schedule.asked_at) == (140 + 80, 140 + 120)
    schedule.refused()
    assert schedule.origin == 260 + 160


def test_a_pause_has_a_longest_length() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0)
    decided = refused_steps(schedule, 50_000)
    waits = [(after - before) // 40 for before, after in itertools.pairwise(decided[1:])]
    assert waits[:8] == [2, 3, 5, 9, 17, 33, 65, 65]
    assert set(waits[7:]) == {65}


def test_in_a_long_run_next_to_nothing_is_due() -> None:
    schedule = JumpSchedule(every=10, window=10, lag=0)
    snapshots = 0
    for step in range(1, 100_001):
        snapshots += schedule.is_snapshot_due(step)
        if step == schedule.decided_at:
            schedule.refused()
    assert snapshots < 0.03 * 100_000 / 10


def test_a_lag_belongs_to_the_attempt_not_to_the_pause() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=7)
    schedule.refused()
    assert schedule.decided_at == 67
    schedule.refused()
    assert (schedule.origin, schedule.asked_at, schedule.decided_at) == (107, 147, 154)


def test_only_a_jump_ends_the_count() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0)
    schedule.refused()
    schedule.broke(50)
    schedule.lacked(held=0)
    assert schedule.refusals == 1
    schedule.refused()
    assert schedule.is_pausing(schedule.origin - 1)
    schedule.jumped(schedule.asked_at)
    assert schedule.refusals == 0


def test_a_break_in_a_pause_does_not_end_it() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0)
    refused_steps(schedule, 60)
    schedule.broke(70)
    assert (schedule.origin, schedule.asked_at) == (100, 140)
    schedule.broke(113)
    assert (schedule.origin, schedule.asked_at) == (113, 153)


def test_an_observer_looks_at_one_whole_path() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0, pausing=False)
    assert refused_steps(schedule, 200) == list(range(40, 201, 20))
    assert schedule.origin == 0


def test_the_next_snapshot_comes_after_the_pause() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=3)
    refused_steps(schedule, 63)
    assert schedule.origin == 103
    assert [schedule.next_snapshot(step) for step in (63, 102, 103, 112, 113)] == [113, 113, 113, 113, 123]


def test_other_ranks_pause_too() -> None:
    leading, following = (JumpSchedule(every=10, window=4, lag=3, watching=True) for _ in range(2))
    for refused in (True, True, True, False, True, True):
        step = leading.decided_at
        assert following.decided_at == step
        if refused:
            leading.refused()
        else:
            leading.jumped(step)
        for schedule in (leading, following):
            schedule.adopt(leading.origin, leading.asked_at, leading.refusals)
        assert following.state() == leading.state()
        if not refused:
            assert following.watched_at == step + 10
            following.watched_at = leading.watched_at = None
        assert following.watched_at is None


def test_a_saved_pause_goes_on() -> None:
    schedule, later = (JumpSchedule(every=10, window=4, lag=0) for _ in range(2))
    refused_steps(schedule, 140)
    assert later.load(schedule.state())
    assert (later.origin, later.asked_at, later.refusals) == (220, 260, 3)
    later.broke(150)  # the window did not outlive the process
    assert later.origin == 220
    schedule.refused()
    later.refused()
    assert later.state() == schedule.state()


def test_a_state_without_a_count_is_one_from_before_there_was_one() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0)
    state = schedule.state()
    del state["refusals"]
    assert schedule.load(state)
    assert schedule.refusals == 0
