"""When a jump is undone, and what undoing puts back."""

from __future__ import annotations

import math

import pytest
import torch

from koopcast.hook.memory import weights_of
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.watch import Departure, went_wrong
from trainers import loss_of, smooth_net


@pytest.mark.parametrize(
    ("before", "now", "wrong"),
    [
        (1.0, 0.5, False),
        (1.0, 1.05, False),
        (1.0, 1.2, True),
        (-1.0, -0.95, False),
        (-1.0, -0.8, True),
        (0.0, 0.0, False),
        (0.0, 1e-9, True),
        (1.0, math.nan, True),
        (1.0, math.inf, True),
    ],
)
def test_a_loss_that_is_clearly_worse_is_wrong(before: float, now: float, *, wrong: bool) -> None:
    assert went_wrong(before, now) is wrong


def test_a_jump_is_looked_back_on_one_stride_later() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=3, watching=True)
    assert schedule.watched_at is None
    schedule.jumped(43)
    assert schedule.watched_at == 53
    schedule.broke(50)
    assert schedule.watched_at is None


def test_who_does_not_watch_does_not_look_back() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0)
    schedule.jumped(40)
    assert schedule.watched_at is None


def test_another_ranks_jump_is_watched_too() -> None:
    schedule = JumpSchedule(every=10, window=4, lag=0, watching=True)
    schedule.adopt(0, 60)
    watched = [schedule.watched_at]
    schedule.adopt(40, 80)
    watched.append(schedule.watched_at)
    assert watched == [None, 50]
    assert (schedule.origin, schedule.asked_at) == (40, 80)


def test_departure_puts_state_back_but_not_settings() -> None:
    model = smooth_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    departure = Departure(weights_of(model), optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    step()
    departure.restore()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(optimizer.state.values(), moments, strict=True))
    assert [float(state["step"]) for state in optimizer.state.values()] == [1.0] * 4
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_departure_forgets_state_that_came_later() -> None:
    model = smooth_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    departure = Departure(weights_of(model), optimizer)
    loss_of(model).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    departure.restore()
    assert not optimizer.state
