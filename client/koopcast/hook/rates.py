"""Horizons on the clock of cumulative learning rate: how much rate the coming steps will add up to.

The trainer knows its schedule; the service only sees where the clock was. Everything here runs on the training thread,
so every rate is worked out once, and never for longer than an attempt may take.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MethodType
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from koopcast.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Coming", "ComingRates", "LearningRate", "RateError", "check_learning_rate"]

LearningRate = Callable[[int], float] | LRScheduler
"""Step to rate, or the scheduler that sets it."""

_FARTHEST_STEPS: Final = 100_000
"""Horizons beyond so many steps are left to the steps: their rates would take too long."""
_STEPS_PER_LOOK: Final = 64
"""Rates worked out between two looks at the time."""
_DIFFERENT: Final = 0.1
"""A rate this much off the one that was used is of another schedule; less may be a step that was skipped."""


class RateError(Exception):
    """The schedule cannot be relied on: it raised, gave what is no rate, or another one than training used."""


@dataclass(frozen=True, slots=True)
class Coming:
    """Sums of coming rates.

    Attributes:
        lag: from now to where the horizons begin.
        intervals: over each horizon, from there; each > 0.
    """

    lag: float
    intervals: tuple[float, ...]


class ComingRates:
    """The rates of the steps to come, and their sums.

    Optimizer steps count from 0 since `attach`: rate k is what the step number k trains with. A schedule ends before
    the first step that it has no rate for, be it that it raises or that the rate would be negative; nothing moves
    after that. Training on beyond the end is an error.
    """

    def __init__(self, rate_at: Callable[[int], float], first: int = 0) -> None:
        """Ask `rate_at` for every step from `first` on once, in rising order."""
        self._rate_at = rate_at
        self._begin = first
        self._first = first
        self._rates: list[float] = []  # of the steps from _first on
        self._end: RateError | None = None  # why there is no rate for the step after them

    @classmethod
    def of_scheduler(cls, scheduler: LRScheduler, first: int = 0) -> Self:
        """The rates of the first parameter group, if the scheduler steps once after every optimizer step.

        A copy of the scheduler is run ahead on a stand-in for the optimizer, without parameters. The scheduler
        itself, its optimizer and the weights are not touched. Its next step is the step number `first`.

        Raises:
            ArgumentValueError: the scheduler follows a metric, or cannot be copied.
        """
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ArgumentValueError(
                "learning_rate cannot be a ReduceLROnPlateau: nobody knows its coming rates",
                field="learning_rate",
            )
        return cls(_Simulation(scheduler, first).rate_at, first)

    def sums(
        self,
        step: int,
        horizons: Sequence[float],
        *,
        lag: int = 0,
        used: float | None = None,
        seconds: float = math.inf,
    ) -> Coming | None:
        """Rates summed over each horizon; of a step that a horizon cuts, the share within it.

        Args:
            step: optimizer steps done, not lower than at the last call.
            horizons: trainer steps ahead of ``step + lag``, each > 0.
            lag: steps until the horizons begin.
            used: the rate of the last step, where it is known: the schedule must agree.
            seconds: give up after so long; the next call goes on from there.

        Returns:
            None where the clock says nothing this time: rates that are all 0, a horizon that is too far, no time.

        Raises:
            RateError: the schedule is wrong, and will not be right again.
        """
        farthest = lag + max(horizons)
        if farthest > _FARTHEST_STEPS:
            return None
        known_from = max(self._begin, step - 1)  # the last step's, to compare
        if not self._work_out(known_from, step + math.ceil(farthest), time.monotonic() + seconds):
            return None
        if step > known_from:
            self._compare(step - 1, used)
        coming = self._rates[step - known_from :]
        still = [0.0] * (math.ceil(farthest) - len(coming))  # beyond the schedule's end
        clock = list(accumulate(coming + still, initial=0.0))
        start = clock[lag]
        intervals = tuple(_between(clock, lag + horizon) - start for horizon in horizons)
        return Coming(start, intervals) if all(interval > 0 for interval in intervals) else None

    def _work_out(self, first: int, stop: int, deadline: float) -> bool:
        """Know the rates of the steps first..stop - 1, and no older ones; False where the time was too short."""
        while (step := self._first + len(self._rates)) < stop and self._end is None:
            if step % _STEPS_PER_LOOK == 0 and time.monotonic() > deadline:
                break
            try:
                self._rates.append(self._checked(step))
            except RateError as error:
                self._end = error
        if self._end is not None and step <= first:
            raise self._end
        over = min(first - self._first, len(self._rates))
        del self._rates[:over]
        self._first += over
        return step >= stop or self._end is not None

    def _checked(self, step: int) -> float:
        try:
            rate = float(self._rate_at(step))
        except Exception as error:
            raise RateError(f"the learning rate of step {step} could not be found: {error!r}") from error
        if not (math.isfinite(rate) and rate >= 0):
            raise RateError(f"the learning rate of step {step} would be {rate}")
        return rate

    def _compare(self, step: int, used: float | None) -> None:
        expected = self._rates[0]
        if used is not None and abs(expected - used) > _DIFFERENT * max(expected, abs(used)):
            raise RateError(
                f"step {step} trained with learning rate {used:.6g}, and the schedule says {expected:.6g}: it must "
                "give the rate itself, of the first parameter group, for every optimizer step counted from attach"
            )


def check_learning_rate(
    given: Any, optimizer: torch.optim.Optimizer, *, first: int = 0
) -> ComingRates | None:
    """What was given to `attach` as `learning_rate`; `first`: steps done already.

    Raises:
        ArgumentTypeError: it is no function of a step, no scheduler and not None.
        ArgumentValueError: another optimizer's scheduler, one that cannot be run ahead, or a function that gives no
            rate for step 0.
    """
    if given is None:
        return None
    if isinstance(given, LRScheduler):
        if getattr(given, "optimizer", None) is not optimizer:
            raise ArgumentValueError(
                "learning_rate must be a scheduler of the optimizer that is attached", field="learning_rate"
            )
        rates = ComingRates.of_scheduler(given, first)
    elif callable(given):
        rates = ComingRates(given, first)
    else:
        raise ArgumentTypeError(
            "learning_rate must be a function of the step, a torch.optim.lr_scheduler.LRScheduler or None, not "
            f"{given!r}",
            field="learning_rate",
        )
    try:
        rates.sums(first, [1.0])
    except RateError as error:
        raise ArgumentValueError(f"learning_rate does not work: {error}", field="learning_rate") from error
    return rates


class _StandIn(torch.optim.Optimizer):
    """Has the hyperparameters of an optimizer and none of its parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__([torch.zeros(1)], {})
        self.defaults = dict(optimizer.defaults)
        self.param_groups = [
            {name: _own(value) for name, value in group.items() if name != "params"} | {"params": []}
            for group in optimizer.param_groups
        ]
        self._opt_called = True  # else a scheduler warns that it steps before the optimizer does

    def step(self, closure: Any = None) -> Any:
        """There is nothing to step."""


setattr(_StandIn.step, "_wrapped_by_lr_sched", True)  # noqa: B010  # likewise; a function has no such attribute to mypy


def _own(value: Any) -> Any:
    """A copy; of a tensor on the CPU, so that reading it never waits for a device."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


class _Simulation:
    """A copy of a scheduler, run ahead."""

    def __init__(self, scheduler: LRScheduler, first: int) -> None:
        """Copy; its present rate is that of step `first`.

        Raises:
            ArgumentValueError: it cannot be copied.
        """
        self._optimizer = _StandIn(scheduler.optimizer)
        memo: dict[int, Any] = {id(scheduler.optimizer): self._optimizer}
        memo.update((id(method), method) for method in _shared(scheduler))
        try:
            self._scheduler = copy.deepcopy(scheduler, memo)
        except Exception as error:
            raise ArgumentValueError(
                f"learning_rate: this {type(scheduler).__name__} cannot be copied ({error!r}); give a function of the "
                "step",
                field="learning_rate",
            ) from error
        self._step = first

    def rate_at(self, step: int) -> float:
        """Rate of a step, not lower than the last one asked for."""
        while self._step < step:
            self._scheduler.step()
            self._step += 1
        return float(self._optimizer.param_groups[0]["lr"])


def _shared(scheduler: LRScheduler) -> Iterator[Any]:
    """The user's methods in a scheduler, and in those it is made of: a copy would copy all that they belong to."""
    for value in vars(scheduler).values():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, LRScheduler):
                yield from _shared(one)
            elif isinstance(one, MethodType) and not isinstance(one.__self__, LRScheduler):
                yield one


def _between(clock: Sequence[float], at: float) -> float:
    """The clock at a number of steps, whole or not."""
    whole = math.floor(at)
    share = at - whole
    return clock[whole] + share * (clock[whole + 1] - clock[whole]) if share else clock[whole]
