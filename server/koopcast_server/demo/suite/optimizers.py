"""The plain optimizers and the learning-rate schedules of the suite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["OPTIMIZERS", "SCHEDULES", "make_optimizer", "make_scheduler", "rate_factor"]

SCHEDULES: Final = ("constant", "linear", "cosine")


class _Make(Protocol):
    def __call__(self, parameters: Iterable[nn.Parameter], /, *, lr: float) -> torch.optim.Optimizer: ...


def _sgd_momentum(parameters: Iterable[nn.Parameter], /, *, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


OPTIMIZERS: Final[Mapping[str, _Make]] = {
    "sgd-momentum": _sgd_momentum,
    "adamw": torch.optim.AdamW,
    "adadelta": torch.optim.Adadelta,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
}
"""All but the momentum, 0.9, is PyTorch's default."""


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer of this name.

    Raises:
        KeyError: there is none.
    """
    return OPTIMIZERS[name](parameters, lr=learning_rate)


def rate_factor(schedule: str, step: int, budget_steps: int) -> float:
    """What the learning rate is multiplied with at optimizer step 0, 1, …; 0 from the end of the budget on, if it falls.

    Raises:
        ValueError: no such schedule.
    """
    done = min(step / budget_steps, 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")


def make_scheduler(optimizer: torch.optim.Optimizer, schedule: str, budget_steps: int) -> LambdaLR:
    """The schedule as PyTorch's scheduler, to be stepped after every optimizer step."""
    return LambdaLR(optimizer, lambda step: rate_factor(schedule, step, budget_steps))
