"""The plain optimizers of the suite, and the learning rates and schedules that they were tuned to.

`tests/bench/acceleration/optimizers.py` has them for the suite's own runs; a test holds that both are the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from koopcast_server.demo.data import DemoError

__all__ = ["OPTIMIZERS", "Tuned", "UnknownOptimizer", "load_tuned", "make_optimizer", "make_scheduler"]


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
"""All but the momentum is PyTorch's default."""

_TUNED: Final = Path(__file__).resolve().parents[1] / "tuned.json"


class UnknownOptimizer(DemoError):
    """No tuned rate is known for this optimizer; the message names those that have one."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best plain training that was found for a task and an optimizer.

    Attributes:
        optimizer: its name.
        learning_rate: at the start.
        schedule: "constant", or how it falls to zero over the budget: "linear", "cosine".
    """

    optimizer: str
    learning_rate: float
    schedule: str


def load_tuned(task: str, optimizer: str) -> Tuned:
    """The tuned rate and schedule, from `tuned.json`.

    Raises:
        UnknownOptimizer: this optimizer was not tuned on this task.
    """
    entries = json.loads(_TUNED.read_text(encoding="utf-8")).get(task, {})
    known = [name for name in OPTIMIZERS if name in entries]
    if optimizer not in known:
        raise UnknownOptimizer(f"the optimizer must be one of {', '.join(known)}, not {optimizer!r}")
    entry = entries[optimizer]
    return Tuned(optimizer, float(entry["learning_rate"]), str(entry["schedule"]))


def make_optimizer(tuned: Tuned, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer at its tuned rate."""
    return OPTIMIZERS[tuned.optimizer](parameters, lr=tuned.learning_rate)


def make_scheduler(tuned: Tuned, optimizer: torch.optim.Optimizer, budget_steps: int) -> LambdaLR:
    """The tuned schedule, to be stepped once after every optimizer step."""

    def factor(step: int) -> float:
        done = min(step / budget_steps, 1.0)
        falling = {"linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return 1.0 if tuned.schedule == "constant" else falling[tuned.schedule]

    return LambdaLR(optimizer, factor)
