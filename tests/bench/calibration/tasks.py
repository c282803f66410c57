"""Small training runs, seconds each, whose weights the predictions are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from calibration.networks import Classifier, Trained, characters, convolution, digits, oscillator, regression

__all__ = ["RUN_STEPS", "TASKS", "Task", "Training"]

RUN_STEPS = 1600
"""Optimizer steps of a run. Schedules end there."""

Schedule = Literal["constant", "linear"]


@dataclass(frozen=True, slots=True)
class Training:
    """A run that goes on step by step.

    Attributes:
        parameters: by name, float32; they change with every step.
        step: makes one optimizer step.
    """

    parameters: dict[str, Tensor]
    step: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, and how.

    Attributes:
        network: makes the network and its data.
        optimizer: makes the optimizer of its parameters.
        schedule: the learning rate stays, or falls linearly to zero at the end of the run.
        batch: samples a step, drawn anew each time; None: all of them, so that the run is deterministic.
        fitted: whether constants may be fitted on this task; the others are there to check them.
    """

    network: Callable[[], Trained]
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    schedule: Schedule = "constant"
    batch: int | None = None
    fitted: bool = True

    def start(self, seed: int) -> Training:
        """A fresh run."""
        torch.manual_seed(seed)
        trained = self.network()
        optimizer = self.optimizer(list(trained.module.parameters()))
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        generator = torch.Generator().manual_seed(seed)

        def step() -> None:
            optimizer.zero_grad()
            rows = None
            if self.batch is not None:
                rows = torch.randint(trained.samples, (self.batch,), generator=generator)
            trained.loss(rows).backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
            optimizer.step()
            decay.step()

        return Training(dict(trained.module.named_parameters()), step)

    def _factor(self, step: int) -> float:
        return 1.0 if self.schedule == "constant" else max(0.0, 1.0 - step / RUN_STEPS)


def _digits() -> Trained:
    return digits(Classifier(64, 32, 10))


_sgd = partial(torch.optim.SGD, lr=0.1)
_momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
_adam = partial(torch.optim.Adam, lr=1e-3)
_adadelta = partial(torch.optim.Adadelta, lr=1.0)
_adagrad = partial(torch.optim.Adagrad, lr=1e-2)

TASKS: dict[str, Task] = {
    "digits, SGD": Task(_digits, _sgd),
    "digits, momentum": Task(_digits, _momentum, fitted=False),
    "digits, Adam": Task(_digits, _adam),
    "digits, Adam 0.003, linear decay": Task(
        _digits, partial(torch.optim.Adam, lr=3e-3), "linear", fitted=False
    ),
    "digits, Adadelta": Task(_digits, _adadelta, fitted=False),
    "digits, Adagrad": Task(_digits, _adagrad),
    "regression, Adam": Task(regression, _adam, fitted=False),
    "regression, Adadelta": Task(regression, _adadelta),
    "regression, momentum, linear decay": Task(regression, _momentum, "linear"),
    "oscillator, Adam": Task(oscillator, _adam),
    "oscillator, Adadelta": Task(oscillator, _adadelta, fitted=False),
    "convolution, Adam": Task(convolution, _adam, fitted=False),
    "digits, SGD, batch 64": Task(_digits, _sgd, batch=64),
    "digits, Adam, batch 64": Task(_digits, _adam, batch=64, fitted=False),
    "digits, Adam 0.003, linear decay, batch 64": Task(
        _digits, partial(torch.optim.Adam, lr=3e-3), "linear", batch=64
    ),
    "regression, Adam, batch 64": Task(regression, _adam, batch=64),
    "convolution, momentum, batch 64": Task(convolution, _momentum, batch=64, fitted=False),
    "characters, AdamW 0.003, linear decay, batch 16": Task(
        characters, partial(torch.optim.AdamW, lr=3e-3), "linear", batch=16, fitted=False
    ),
}
"""By the name in tables. Half of the deterministic and half of the stochastic ones are `fitted`."""
