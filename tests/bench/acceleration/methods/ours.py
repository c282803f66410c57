"""koopcast itself: the hook with its defaults, against a service."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, ParamSpec, TypeVar

import koopcast
from acceleration.methods.running import Beside, Start

__all__ = ["ours", "ours_but", "ours_no_probe"]

P = ParamSpec("P")
R = TypeVar("R")

_CONNECT_SECONDS: Final = 2.0


class _Hook(Beside):
    def __init__(self, start: Start, *, probed: bool, **others: Any) -> None:
        problem = start.problem
        self._steps = 0
        self._spent = 0.0
        self._told = 0.0
        self._spending: list[tuple[int, float]] = []  # in which step, and how much
        probe = self._counted(problem.probe, problem.probe_cost_steps)
        adapt = problem.adapt
        arguments = {
            "target": start.service,
            "probe": probe if probed else None,
            "learning_rate": start.scheduler,
            "on_jump": None if adapt is None else self._counted(adapt, problem.adapt_cost_steps),
            **others,
        }
        self._ahead = koopcast.attach(problem.model, start.optimizer, **arguments)
        # The job is opened beside the training thread; a run of a second or two is not to be judged by how soon.
        deadline = time.monotonic() + _CONNECT_SECONDS
        while not self._ahead.stats().connected and time.monotonic() < deadline:
            time.sleep(0.005)
        self._connected = self._ahead.stats().connected

    def _counted(self, callback: Callable[P, R], cost_steps: float) -> Callable[P, R]:
        """The callback, its calls counted here: `Ahead.stats` tells them too, but takes time that would be the hook's."""

        def call(*arguments: P.args, **named: P.kwargs) -> R:
            self._spent += cost_steps
            self._spending.append((self._steps + 1, cost_steps))  # the hook runs within the optimizer's step
            return callback(*arguments, **named)

        return call

    def after_step(self) -> float:
        self._steps += 1
        before, self._told = self._told, self._spent
        return self._told - before

    def evaluated(self) -> AbstractContextManager[None]:
        return self._ahead.evaluating()

    def facts(self) -> dict[str, Any]:
        stats = self._ahead.stats()
        told = {
            field.name: getattr(stats, field.name)
            for field in dataclasses.fields(stats)
            if field.name not in ("log", "last_learning_rate_change")
        }
        jumps = [
            [event.step + self._spent_until(event.step), int(event.accepted), event.horizon]
            for event in stats.log
        ]
        return {"jumps": jumps, "connected_at_start": self._connected, "stats": told}

    def _spent_until(self, step: int) -> float:
        return sum(cost for at, cost in self._spending if at <= step)

    def close(self) -> None:
        self._ahead.close()


def ours(start: Start) -> _Hook:
    """`koopcast.attach` with its defaults, the task's probe, its schedule and its BatchNorm statistics.

    Evaluations of the probe and of the statistics are counted; so is nothing else.
    """
    return _Hook(start, probed=True)


def ours_but(**others: Any) -> Callable[[Start], _Hook]:
    """`ours` with other arguments than its defaults: what each of them is worth (`acceleration.ablations`)."""

    def made(start: Start) -> _Hook:
        return _Hook(start, probed=True, **others)

    return made


def ours_no_probe(start: Start) -> _Hook:
    """The same without the probe: the back-test decides."""
    return _Hook(start, probed=False)
