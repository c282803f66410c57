"""The coming learning rates: sums over horizons, schedulers run ahead without touching them, and wrong schedules."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import LRScheduler

from koopcast.errors import ArgumentTypeError, ArgumentValueError
from koopcast.hook.rates import Coming, ComingRates, RateError, check_learning_rate


def halving(step: int) -> float:
    return float(2.0**-step)


def test_the_sum_of_the_coming_rates() -> None:
    assert ComingRates(halving).sums(0, [1.0, 3.0]) == Coming(0.0, (1.0, 1.75))
    assert ComingRates(halving).sums(2, [1.0, 2.0]) == Coming(0.0, (0.25, 0.375))


def test_a_step_that_the_horizon_cuts_counts_for_its_share() -> None:
    assert ComingRates(halving).sums(0, [0.5, 1.25, 2.75]) == Coming(0.0, (0.5, 1.125, 1.6875))


def test_a_lag_comes_before_the_horizons() -> None:
    assert ComingRates(halving).sums(0, [1.0, 2.5], lag=2) == Coming(1.5, (0.25, 0.40625))


def test_each_rate_is_asked_for_once() -> None:
    asked: list[int] = []

    def rate(step: int) -> float:
        asked.append(step)
        return 0.1

    rates = ComingRates(rate)
    for step in (40, 50, 60, 200):
        coming = rates.sums(step, [100.0, 20.5])
        assert coming is not None
        assert coming.intervals == pytest.approx((10.0, 2.05))
    assert asked == list(range(300))


def test_what_a_schedule_adds_up_to_does_not_depend_on_when_it_is_asked() -> None:
    often, once = ComingRates(lambda step: 0.1 / (step + 1)), ComingRates(lambda step: 0.1 / (step + 1))
    for step in range(0, 500, 7):
        often.sums(step, [30.0, 500.0])
    assert often.sums(500, [64.0]) == once.sums(500, [64.0])


def test_where_training_stands_still_the_clock_says_nothing() -> None:
    rates = ComingRates(lambda step: 0.1 if step < 10 else 0.0)
    assert rates.sums(5, [1.0, 100.0]) == Coming(0.0, (0.1, 0.5))
    assert rates.sums(9, [1.0, 100.0]) is not None
    assert rates.sums(10, [1.0, 100.0]) is None


def test_a_horizon_that_is_too_far_is_left_to_the_steps() -> None:
    asked: list[int] = []

    def rate(step: int) -> float:
        asked.append(step)
        return 0.1

    assert ComingRates(rate).sums(0, [1.0, 1e6]) is None
    assert not asked


def test_a_slow_schedule_goes_on_at_the_next_call() -> None:
    rates = ComingRates(halving)
    assert rates.sums(0, [640.0], seconds=-1.0) is None
    assert rates.sums(0, [640.0]) is not None
    assert rates.sums(64, [576.0], seconds=-1.0) is not None  # nothing is left to work out
    assert rates.sums(5000, [1.0], seconds=-1.0) is None
    assert rates.sums(6000, [1.0], seconds=math.inf) is None  # 2 to the power -6000 is 0


def raising(step: int) -> float:
    raise KeyError(step)


@pytest.mark.parametrize(
    "rate",
    [
        raising,
        lambda _: math.nan,
        lambda _: math.inf,
        lambda _: -0.1,
        lambda _: None,
        lambda _: "fast",
        lambda: 0.1,
    ],
    ids=["raises", "nan", "inf", "negative", "none", "words", "no argument"],
)
def test_a_schedule_that_gives_no_rate_is_wrong(rate: Any) -> None:
    with pytest.raises(RateError, match="step 0"):
        ComingRates(rate).sums(0, [1.0])
    with pytest.raises(ArgumentValueError, match="does not work"):
        check_learning_rate(rate, SGD([nn.Parameter(torch.ones(1))], lr=0.1))


@pytest.mark.parametrize("rate", [[0.4, 0.3, 0.2, 0.1].__getitem__, lambda step: 0.4 - 0.1 * step - 1e-9])
def test_a_schedule_may_end(rate: Callable[[int], float]) -> None:
    rates = ComingRates(rate)
    for step, left in ((0, 1.0), (1, 0.6), (3, 0.1)):
        coming = rates.sums(step, [0.5, 100.0])
        assert coming is not None
        assert coming.intervals[1] == pytest.approx(left, abs=1e-6)
    assert rates.sums(4, [100.0]) is None
    with pytest.raises(RateError, match="step 4"):
        rates.sums(5, [100.0])


def test_a_one_cycle_schedule_ends() -> None:
    optimizer = optimizers()[0]
    scheduler = schedulers.OneCycleLR(optimizer, 0.5, total_steps=20)
    rates = check_learning_rate(scheduler, optimizer)
    assert rates is not None
    coming = rates.sums(0, [20.0, 1000.0])
    assert coming is not None
    assert coming.intervals[0] == pytest.approx(sum(rates_used(optimizer, scheduler, 20)))
    assert coming.intervals[1] == pytest.approx(coming.intervals[0], rel=1e-2)


def test_a_schedule_that_training_does_not_follow_is_wrong() -> None:
    rates = ComingRates(lambda step: 0.1 if step < 50 else 0.01)
    assert rates.sums(40, [4.0], used=0.1) is not None
    assert rates.sums(50, [4.0], used=0.1) is not None
    with pytest.raises(RateError, match="step 50 trained with learning rate"):
        rates.sums(51, [4.0], used=0.1)


def test_a_skipped_step_does_not_make_it_wrong() -> None:
    rates = ComingRates(lambda step: 1.0 / (step + 100))
    assert rates.sums(10, [4.0], used=1.0 / 110) is not None
    assert rates.sums(20, [4.0], used=None) is not None


# -------------------------------------------------------------------------------------------------- schedulers

Make = Callable[[Optimizer], LRScheduler]
MAKERS: dict[str, Make] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda epoch: 1 / (epoch + 1)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 7),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [5, 20]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.3, 12),
    "LinearLR": lambda o: schedulers.LinearLR(o, 1.0, 0.1, 50),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.97),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 50, 1e-4),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 9, 2),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 60, 2.0),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.5, total_steps=80),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 5, mode="exp_range", gamma=0.99),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, 1.0, 10), schedulers.CosineAnnealingLR(o, 40)], [10]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 15), schedulers.ExponentialLR(o, 0.95)]
    ),
}


def optimizers() -> list[Optimizer]:
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    return [
        SGD([one], lr=0.1, momentum=0.9),
        Adam([{"params": [one], "lr": 0.1}, {"params": [two], "lr": 0.02}], lr=0.1, betas=(0.9, 0.99)),
        Adam([one], lr=torch.tensor(0.1)),
    ]


def rate_of(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def rates_used(optimizer: Optimizer, scheduler: LRScheduler, count: int) -> list[float]:
    """Train `count` steps; the rate of each."""
    used = []
    for _ in range(count):
        used.append(rate_of(optimizer))
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("begun", [0, 1, 13])
def test_a_scheduler_is_run_ahead_exactly_and_not_touched(name: str, kind: int, begun: int) -> None:
    optimizer = optimizers()[kind]
    scheduler = MAKERS[name](optimizer)
    rates_used(optimizer, scheduler, begun)
    before = [copy.deepcopy(one.state_dict()) for one in (optimizer, scheduler)]
    rates = check_learning_rate(scheduler, optimizer)
    assert rates is not None
    ahead = [rates.sums(0, [float(k)]) for k in range(1, 41)]
    after = [one.state_dict() for one in (optimizer, scheduler)]
    assert repr(after) == repr(before)
    used = rates_used(optimizer, scheduler, 40)
    sums = [sum(used[:k]) for k in range(1, 41)]
    assert [coming.intervals[0] if coming else 0.0 for coming in ahead] == pytest.approx(sums, rel=1e-6)


class Trainer:
    """Holds the schedule, and much else that must not be copied."""

    def __init__(self) -> None:
        self.cannot_be_copied = (torch.ones(2, requires_grad=True) * 2,)

    def factor(self, epoch: int) -> float:
        return 1 / (epoch + 1)


class Factor:
    """A schedule with a memory of its own."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return 1 / (epoch + 1)


def test_methods_are_shared_and_objects_copied() -> None:
    optimizer = optimizers()[0]
    trainer, factor = Trainer(), Factor()
    for schedule in (trainer.factor, factor):
        rates = check_learning_rate(schedulers.LambdaLR(optimizer, schedule), optimizer)
        calls = factor.calls
        assert rates is not None
        coming = rates.sums(0, [2.0])
        assert coming is not None
        assert coming.intervals == pytest.approx((0.15,))
        assert factor.calls == calls


def test_no_parameter_is_held_by_the_simulation() -> None:
    optimizer = optimizers()[0]
    rates = ComingRates.of_scheduler(schedulers.ExponentialLR(optimizer, 0.9))
    simulation = rates._rate_at.__self__  # type: ignore[attr-defined]  # a bound method
    assert [group["params"] for group in simulation._optimizer.param_groups] == [[]]
    assert simulation._scheduler.optimizer is simulation._optimizer


def test_schedulers_that_cannot_be_run_ahead_are_refused() -> None:
    optimizer, other = optimizers()[:2]
    holder = schedulers.ExponentialLR(optimizer, 0.9)
    holder.extra = (torch.ones(2, requires_grad=True) * 2,)  # type: ignore[attr-defined]
    for scheduler, words in (
        (schedulers.ReduceLROnPlateau(optimizer), "ReduceLROnPlateau"),
        (schedulers.ExponentialLR(other, 0.9), "scheduler of the optimizer"),
        (holder, "cannot be copied"),
    ):
        with pytest.raises(ArgumentValueError, match=words):
            check_learning_rate(scheduler, optimizer)


@pytest.mark.parametrize("given", [0.1, "cosine", [0.1, 0.2]])
def test_what_is_no_schedule_is_refused(given: object) -> None:
    with pytest.raises(ArgumentTypeError, match="learning_rate must be a function"):
        check_learning_rate(given, optimizers()[0])


def test_none_is_none() -> None:
    assert check_learning_rate(None, optimizers()[0]) is None
