"""The demo's training runs: the same network, optimizer and schedule, with and without the hook.

Counting: every optimizer step is 1 step, and so is every evaluation of the probe, which like a step sees the whole
batch, with or without a backward pass; refining a jump is made of such evaluations. The loss curve is that of the forward
pass each step makes anyway.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

import koopcast
from koopcast.hook import Stats

__all__ = ["BUDGET_STEPS", "LEARNING_RATES", "Progress", "Recipe", "Run", "Task", "train"]

BUDGET_STEPS: Final = 1000
"""Steps of a run; the learning rate falls linearly to zero over them."""
LEARNING_RATES: Final = (0.2, 0.3, 0.4, 0.5, 0.8)
"""The grid that the plain optimizer is tuned on."""
MOMENTUM: Final = 0.9
PENALTY: Final = 5e-4
"""Factor of the squared weights in the loss: a weight decay of 1e-3, written where every loss sees it."""
LAYERS: Final = (784, 20, 20, 20, 10)

Progress = Callable[[int, float], None]
"""Told the steps counted so far and the loss, after each step."""


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        images: float32 (n, 784).
        labels: int64 (n,).
        penalty: factor of the squared weights in the loss.
    """

    images: Tensor
    labels: Tensor
    penalty: float = PENALTY

    def loss(self, model: nn.Module) -> Tensor:
        """Cross entropy over the whole batch plus the penalty."""
        squared = sum((parameter.square().sum() for parameter in model.parameters()), torch.zeros(()))
        return nn.functional.cross_entropy(model(self.images), self.labels) + self.penalty * squared

    def accuracy(self, model: nn.Module) -> float:
        """Share of the images that the network labels right."""
        with torch.no_grad():
            return float((model(self.images).argmax(dim=1) == self.labels).float().mean())


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        learning_rate: at the start; it falls linearly to zero over `BUDGET_STEPS` optimizer steps.
        seed: of the first weights.
        adam: Adam instead of SGD with momentum.
    """

    learning_rate: float
    seed: int
    adam: bool = False

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer."""
        if self.adam:
            return torch.optim.Adam(parameters, lr=self.learning_rate)
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=MOMENTUM)


@dataclass
class Run:
    """One training run.

    Attributes:
        learning_rate: at the start.
        steps: counted steps at each entry of `losses`.
        losses: the loss of the weights after so many counted steps.
        seconds: time since the start at each entry.
        optimizer_steps: real optimizer steps.
        stats: the hook's counts; None for a plain run.
        status: the service's view of the job at the end; None for a plain run.
        accuracy: on the training images, at the end.
    """

    learning_rate: float
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    optimizer_steps: int = 0
    stats: Stats | None = None
    status: koopcast.JobStatus | None = None
    accuracy: float = 0.0

    @property
    def final_loss(self) -> float:
        """The last loss within the budget: the last jump may have ended beyond it."""
        within = [loss for steps, loss in zip(self.steps, self.losses, strict=True) if steps <= BUDGET_STEPS]
        return within[-1]

    @property
    def rank_loss(self) -> float:
        """The final loss for comparing runs: one that diverged to NaN loses."""
        return math.inf if math.isnan(self.final_loss) else self.final_loss

    def first_at(self, target: float) -> tuple[int, float] | None:
        """Counted steps and seconds when the loss first was at most `target`; None if it never was."""
        for steps, loss, seconds in zip(self.steps, self.losses, self.seconds, strict=True):
            if loss <= target:
                return steps, seconds
        return None


def train(
    task: Task,
    recipe: Recipe,
    target: str | None,
    progress: Progress,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Trains within the budget of counted steps.

    Args:
        task: what to train on.
        recipe: how to train on it.
        target: address of a koopcast service, or None to train plainly.
        progress: told how far it is.
        options: further arguments of `koopcast.attach`.
    """
    torch.manual_seed(recipe.seed)
    model = _network()
    optimizer = recipe.optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, BUDGET_STEPS)
    run = Run(recipe.learning_rate)
    if target is None:
        _loop(run, task, model, optimizer, schedule, lambda: 0, progress)
    else:
        job = f"demo-seed-{recipe.seed}"
        with koopcast.attach(
            model,
            optimizer,
            target=target,
            job=job,
            probe=lambda: task.loss(model),
            average=True,
            **(options or {}),
        ) as ahead:
            _loop(run, task, model, optimizer, schedule, lambda: ahead.stats().probe_evaluations, progress)
            run.stats = ahead.stats()
            with koopcast.connect(target) as client:
                run.status = client.job_status(job)
    run.accuracy = task.accuracy(model)
    return run


def _loop(
    run: Run,
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    evaluations: Callable[[], int],
    progress: Progress,
) -> None:
    started = time.perf_counter()
    while True:
        counted = run.optimizer_steps + evaluations()
        optimizer.zero_grad()
        loss = task.loss(model)
        value = float(loss.detach())
        run.steps.append(counted)
        run.losses.append(value)
        run.seconds.append(time.perf_counter() - started)
        progress(counted, value)
        if counted >= BUDGET_STEPS or run.optimizer_steps >= BUDGET_STEPS:
            return
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        schedule.step()
        run.optimizer_steps += 1


def _network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(LAYERS):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])
