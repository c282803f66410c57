"""From two runs to ratios, by the suite's rules: how soon each reaches the losses that plain training reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from koopcast_server.demo.suite.curves import LossCurve
from koopcast_server.demo.suite.training import TaskRun

__all__ = ["SHARES_PERCENT", "Target", "best_within", "far_apart", "first_crossing", "targets_of"]

SHARES_PERCENT: Final = (50, 75, 100)
"""Targets: plain training's best loss within so much of its budget."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target, and when both runs reach it. Ratios: plain's over koopcast's.

    Where the run with koopcast never does, its whole budget counts as lost and plain training follows it.

    Attributes:
        share_percent: of plain's budget.
        loss: plain's best loss within it.
        baseline_steps: counted steps of the plain run.
        accelerated_steps: of the run with koopcast; None: never.
        step_ratio: of the two.
        baseline_seconds: of the plain run, evaluations left out.
        accelerated_seconds: of the run with koopcast; None: never.
        time_ratio: of the two.
    """

    share_percent: int
    loss: float
    baseline_steps: float
    accelerated_steps: float | None
    step_ratio: float
    baseline_seconds: float
    accelerated_seconds: float | None
    time_ratio: float


def targets_of(plain: TaskRun, accelerated: TaskRun) -> list[Target]:
    """All targets, the easiest first."""
    return [_target(plain, accelerated, share) for share in SHARES_PERCENT]


def best_within(run: TaskRun, counted: float) -> float:
    """The best loss within so many counted steps, see `LossCurve`."""
    return _curve(run).within(counted)


def first_crossing(run: TaskRun, loss: float, at: list[float]) -> float | None:
    """Where the best loss first is at `loss` or below, see `LossCurve`; `at`: the run's `counted`, or its `seconds`."""
    return _curve(run).crossing(loss, at)


def _target(plain: TaskRun, accelerated: TaskRun, share_percent: int) -> Target:
    loss = best_within(plain, plain.budget_steps * share_percent / 100)
    baseline_steps = first_crossing(plain, loss, plain.counted)
    baseline_seconds = first_crossing(plain, loss, plain.seconds)
    assert baseline_steps is not None  # noqa: S101  # it is one of its own losses
    assert baseline_seconds is not None  # noqa: S101
    steps = first_crossing(accelerated, loss, accelerated.counted)
    seconds = first_crossing(accelerated, loss, accelerated.seconds)
    return Target(
        share_percent=share_percent,
        loss=loss,
        baseline_steps=baseline_steps,
        accelerated_steps=steps,
        step_ratio=_ratio(baseline_steps, steps, accelerated.budget_steps),
        baseline_seconds=baseline_seconds,
        accelerated_seconds=seconds,
        time_ratio=_ratio(baseline_seconds, seconds, accelerated.seconds_total),
    )


def _ratio(baseline: float, accelerated: float | None, whole: float) -> float:
    cost = whole + baseline if accelerated is None else accelerated
    return baseline / cost if cost > 0 else 1.0


def far_apart(run: TaskRun, later: int) -> bool:
    """Whether the evaluation before this one lies further back than they usually do."""
    return _curve(run).far_apart(later)


def _curve(run: TaskRun) -> LossCurve:
    return LossCurve(run.counted, run.loss, run.budget_steps)
