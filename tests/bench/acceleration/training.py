"""One run: a task trained with an optimizer, a method beside it, until the budget is spent."""

from __future__ import annotations

import gc
import math
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import torch

from acceleration.methods import METHODS, Running, Start
from koopcast_server.demo.suite.marks import Marks
from koopcast_server.demo.suite.optimizers import make_optimizer, make_scheduler
from koopcast_server.demo.tasks import TASKS, Task
from koopcast_server.demo.tasks.task import Problem

__all__ = ["OVERRUN", "Cell", "Curve", "train_cell"]

OVERRUN: Final = 1.05
"""Times the budget after which a run ends that spent some of it on other things than steps of the optimizer: with a
schedule that falls to zero, the last steps are the best, and a few evaluations must not be the reason to miss them."""
_WARM_UP_STEPS: Final = 5


@dataclass(frozen=True)
class Cell:
    """One run of the table.

    Attributes:
        task: a key of `koopcast_server.demo.tasks.TASKS`.
        optimizer: a key of `koopcast_server.demo.suite.optimizers.OPTIMIZERS`.
        method: a key of `acceleration.methods.METHODS`.
        seed: of the first weights and the order of the batches.
        timed: run alone, for its seconds.
        learning_rate: tuned for plain training.
        schedule: likewise.
        budget_steps: counted steps after which it ends; the schedule's length in optimizer steps.
    """

    task: str
    optimizer: str
    method: str
    seed: int
    timed: bool
    learning_rate: float
    schedule: str
    budget_steps: int


@dataclass
class Curve:
    """What was seen of a run.

    Attributes:
        counted: steps at each evaluation: optimizer steps and what the method spent beyond them.
        seconds: time since the first step, evaluations left out.
        loss: of the weights that the method would hand out then.
        optimizer_steps: real ones.
        counted_steps: at the end.
        seconds_total: at the end.
        diverged: whether a loss was not finite, which ends the run.
    """

    counted: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    optimizer_steps: int = 0
    counted_steps: float = 0.0
    seconds_total: float = 0.0
    diverged: bool = False


def train_cell(cell: Cell, service: str | None) -> dict[str, Any]:
    """Run it, on one thread.

    Args:
        cell: what to run.
        service: address of a running koopcast service; None: one in this process.

    Returns:
        The record, as JSON can hold it: the cell's fields, the curve's, and ``"facts"``, the method's own.

    Raises:
        DataMissing: the task's data are not there.
    """
    torch.set_num_threads(1)
    task = TASKS[cell.task]
    if cell.timed:
        _warm_up(task, cell)
    _seed(cell.seed)
    problem = task.make(cell.seed)
    parameters = [parameter for parameter in problem.model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(cell.optimizer, parameters, cell.learning_rate)
    scheduler = make_scheduler(optimizer, cell.schedule, cell.budget_steps)
    start = Start(problem, optimizer, scheduler, cell.budget_steps, service)
    running = METHODS[cell.method](start)
    try:
        curve = _trained(start, running)
        facts = _json_able(running.facts())
    finally:
        running.close()
    return {**asdict(cell), **asdict(curve), "facts": facts}


def _trained(start: Start, running: Running) -> Curve:
    """The training loop."""
    curve, problem = Curve(), start.problem
    gc.collect()
    clock = _Clock()
    marks = Marks(start.budget_steps)
    if marks.due(0, 0.0):
        _evaluate(curve, problem, running, clock)
    longest = OVERRUN * start.budget_steps
    while curve.optimizer_steps < start.budget_steps and curve.counted_steps < longest and not curve.diverged:
        start.optimizer.zero_grad()
        loss = problem.batch_loss(curve.optimizer_steps)
        if not math.isfinite(float(loss.detach())):
            curve.diverged = True
            break
        torch.autograd.backward(loss)
        start.optimizer.step()
        start.scheduler.step()
        curve.optimizer_steps += 1
        curve.counted_steps += 1.0 + running.after_step()
        if marks.due(curve.optimizer_steps, curve.counted_steps):
            _evaluate(curve, problem, running, clock)
    curve.counted_steps = round(curve.counted_steps, 4)
    curve.seconds_total = round(clock.seconds, 4)
    return curve


def _evaluate(curve: Curve, problem: Problem, running: Running, clock: _Clock) -> None:
    """One more point of the curve; the clock stands still. A loss that is not finite is no point."""
    clock.stop()
    with running.evaluated():
        loss = problem.target_loss()
    if math.isfinite(loss):
        curve.counted.append(round(curve.counted_steps))
        curve.seconds.append(round(clock.seconds, 4))
        curve.loss.append(float(f"{loss:.4g}"))
    else:
        curve.diverged = True
    clock.go_on()


class _Clock:
    """Time while it goes. Unit: seconds."""

    def __init__(self) -> None:
        self._gone = 0.0
        self._since: float | None = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._gone + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def stop(self) -> None:
        self._gone, self._since = self.seconds, None

    def go_on(self) -> None:
        self._since = time.perf_counter()


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # whatever draws from the global state shall draw the same
    torch.manual_seed(seed)


def _warm_up(task: Task, cell: Cell) -> None:
    """Some steps of a network that is thrown away: what is slow only at first is not this run's."""
    problem = task.make(cell.seed)
    optimizer = make_optimizer(cell.optimizer, problem.model.parameters(), cell.learning_rate)
    for step in range(_WARM_UP_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(problem.batch_loss(step))
        optimizer.step()


def _json_able(value: Any) -> Any:
    """The same with floats of few digits, those that are not finite as None, and names for what JSON does not know."""
    if isinstance(value, dict):
        return {str(name): _json_able(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
