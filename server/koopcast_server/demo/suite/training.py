"""One run of a task, plainly or with koopcast, until its budget is spent.

Counting: an optimizer step is 1 step, an evaluation of the probe (its samples / a batch's samples) steps, forward-only or
not, a recomputation of BatchNorm's statistics likewise. Evaluations of what counts, the validation or residual
loss, are the demo's own: neither they nor their time are counted.

The loop has the shape of the suite's own, `tests/bench/acceleration/training.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Final, ParamSpec, TypeVar

import torch
from torch.optim.lr_scheduler import LambdaLR

import koopcast
from koopcast.hook import Stats
from koopcast_server.demo.suite.marks import Marks
from koopcast_server.demo.suite.optimizers import make_optimizer, make_scheduler
from koopcast_server.demo.suite.tuned import Tuned
from koopcast_server.demo.tasks import Problem, Task

__all__ = ["Progress", "TaskRun", "train_task"]

P = ParamSpec("P")
R = TypeVar("R")
Progress = Callable[[float, float], None]
"""Told the counted steps so far and the loss, at each evaluation."""

_OVERRUN: Final = 1.05
"""Times the budget after which a run ends that spent some of it on other things than steps of the optimizer: where the
rate falls to zero, the last steps are the best, and a few evaluations must not be the reason to miss them."""
_WARM_UP_STEPS: Final = 5
_CONNECT_SECONDS: Final = 2.0


@dataclass
class TaskRun:
    """What was seen of a run.

    Attributes:
        budget_steps: optimizer steps of a plain run, after which schedules end.
        counted: counted steps at each evaluation.
        seconds: since the first step at each evaluation, evaluations left out.
        loss: what counts at each evaluation, of the weights to keep.
        counted_after: counted steps after each optimizer step.
        seconds_total: like `seconds`, at the end.
        diverged: whether a loss was not finite, which ended the run.
        stats: the hook's counts; None for a plain run.
        status: the service's view of the job at the end; None for a plain run.
    """

    budget_steps: int
    counted: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    counted_after: list[float] = field(default_factory=list)
    seconds_total: float = 0.0
    diverged: bool = False
    stats: Stats | None = None
    status: koopcast.JobStatus | None = None

    @property
    def counted_steps(self) -> float:
        """At the end so far."""
        return self.counted_after[-1] if self.counted_after else 0.0

    @property
    def ended(self) -> bool:
        """Whether the budget is spent, in optimizer steps or, with some grace, in counted ones; or the run is lost."""
        spent = (
            len(self.counted_after) >= self.budget_steps or self.counted_steps >= _OVERRUN * self.budget_steps
        )
        return spent or self.diverged


def train_task(task: Task, tuned: Tuned, seed: int, target: str | None, progress: Progress) -> TaskRun:
    """Trains on one thread, as the rates were tuned.

    Args:
        task: what to train.
        tuned: how.
        seed: of the first weights and the order of batches.
        target: address of a koopcast service, or None to train plainly.
        progress: told how far it is.

    Raises:
        DemoError: the task's data are not there.
    """
    torch.set_num_threads(1)
    _warm_up(task, tuned, seed)
    torch.manual_seed(seed)
    problem = task.make(seed)
    optimizer, scheduler = _optimizer(problem, tuned, task.budget_steps)
    run = TaskRun(task.budget_steps)
    if target is None:
        _loop(run, problem, optimizer, scheduler, None, progress)
        return run
    job = f"demo-{task.name}-seed-{seed}"
    hook = _Hook(problem, optimizer, scheduler, target, job)
    with hook.ahead:
        _loop(run, problem, optimizer, scheduler, hook, progress)
        run.stats = hook.ahead.stats()
        with koopcast.connect(target) as client:
            run.status = client.job_status(job)
    return run


class _Hook:
    """`koopcast.attach` with its defaults, and what its probes cost.

    Attributes:
        ahead: attached.
        spent_steps: on the probe and on BatchNorm's statistics so far.
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        scheduler: LambdaLR,
        target: str,
        job: str,
    ) -> None:
        self.spent_steps = 0.0
        adapt = problem.adapt
        self.ahead = koopcast.attach(
            problem.model,
            optimizer,
            target,
            job=job,
            probe=self._counted(problem.probe, problem.probe_cost_steps),
            learning_rate=scheduler,
            on_jump=None if adapt is None else self._counted(adapt, problem.adapt_cost_steps),
        )
        # The job opens beside the training thread; a run of a few seconds is not to be judged by how soon.
        deadline = time.monotonic() + _CONNECT_SECONDS
        while not self.ahead.stats().connected and time.monotonic() < deadline:
            time.sleep(0.005)

    def _counted(self, callback: Callable[P, R], cost_steps: float) -> Callable[P, R]:
        """The callback, its calls counted here: asking `Ahead.stats` after each step would take time."""

        def call(*arguments: P.args, **named: P.kwargs) -> R:
            self.spent_steps += cost_steps
            return callback(*arguments, **named)

        return call


def _loop(
    run: TaskRun,
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    hook: _Hook | None,
    progress: Progress,
) -> None:
    """Trains and evaluates."""
    evaluating = 0.0
    started = time.perf_counter()
    marks = Marks(run.budget_steps)
    while True:
        run.seconds_total = time.perf_counter() - started - evaluating
        if marks.due(len(run.counted_after), run.counted_steps):
            _evaluate(run, problem, hook, progress)
            evaluating = time.perf_counter() - started - run.seconds_total
        if run.ended:
            return
        optimizer.zero_grad()
        loss = problem.batch_loss(len(run.counted_after))
        if not math.isfinite(float(loss.detach())):
            run.diverged = True
            return
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
        spent = 0.0 if hook is None else hook.spent_steps
        run.counted_after.append(len(run.counted_after) + 1 + spent)


def _evaluate(run: TaskRun, problem: Problem, hook: _Hook | None, progress: Progress) -> None:
    """One more point of the curve; a loss that is not finite is none."""
    with nullcontext() if hook is None else hook.ahead.evaluating():
        loss = problem.target_loss()
    if not math.isfinite(loss):
        run.diverged = True
        return
    run.counted.append(run.counted_steps)
    run.seconds.append(run.seconds_total)
    run.loss.append(loss)
    progress(run.counted_steps, loss)


def _optimizer(problem: Problem, tuned: Tuned, budget_steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    trained = [parameter for parameter in problem.model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(tuned.optimizer, trained, tuned.learning_rate)
    return optimizer, make_scheduler(optimizer, tuned.schedule, budget_steps)


def _warm_up(task: Task, tuned: Tuned, seed: int) -> None:
    """Some steps of a network that is thrown away: what is slow only at first is not this run's."""
    problem = task.make(seed)
    optimizer, _ = _optimizer(problem, tuned, task.budget_steps)
    for step in range(_WARM_UP_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(problem.batch_loss(step))
        optimizer.step()
