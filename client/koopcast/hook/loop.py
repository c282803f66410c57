"""The training loop that is attached to: whose optimizer it is, which steps are real, and with which learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from koopcast.hook.optimizer_state import OptimizerPolicy
from koopcast.hook.rates import LearningRate
from koopcast.hook.selection import Selection
from koopcast.hook.stats import RateChange

__all__ = ["LoopSettings", "RateWatch", "Trainer", "is_break", "parameters_of", "unwrapped", "was_skipped"]

_BREAK: Final = 2.0
"""A rate that rises or falls by this factor from one step to the next is a break, not a schedule's slope.

Of a small network, a window of ten snapshots that spans a change by the factor 0.5 predicts 4 strides ahead with a
relative error of 0.07 to 1.1, by 0.1 or 2 mostly worse than staying, by 0.7 and 0.9 with 0.04 to 0.6; one that does not
with 0.0002 to 0.06. To wait for a new window costs least where the old one is no use; where rates change often and by
little, a window would never be whole, and a probe can still find some use for what is predicted.
"""


@dataclass(frozen=True, slots=True)
class Trainer:
    """What trains.

    Attributes:
        model: the model.
        optimizer: its optimizer, unwrapped.
        selection: the parameters that take part.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    selection: Selection


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the loop is treated.

    Attributes:
        off: only count steps.
        strict: let errors through.
        optimizer_state: what becomes of the optimizer's state at a jump.
        learning_rate: the schedule as it was given; None: not known.
    """

    off: bool = False
    strict: bool = False
    optimizer_state: OptimizerPolicy = "keep"
    learning_rate: LearningRate | None = None


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that does the steps: of Accelerate's wrapper the one inside, which steps only when it should."""
    while hasattr(optimizer, "gradient_state") and isinstance(
        getattr(optimizer, "optimizer", None), torch.optim.Optimizer
    ):
        optimizer = optimizer.optimizer
    return optimizer


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters in an optimizer's groups."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    return [parameter for group in groups for parameter in group["params"]]


def was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer under GradScaler found infinite gradients and left the weights alone."""
    found: Any = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


class RateWatch:
    """The learning rates of an optimizer's groups, step by step.

    Attributes:
        rate: of the first group in the last step; None where it lives on a device and would cost a synchronisation.
    """

    def __init__(self) -> None:
        """No step yet."""
        self.rate: float | None = None
        self._rates: list[float | None] = []

    def step(self, optimizer: torch.optim.Optimizer, step: int) -> RateChange | None:
        """Look at the rates of a step that was made; the largest change, where some differ from the step before."""
        before, self._rates = self._rates, [_rate(group) for group in optimizer.param_groups]
        self.rate = self._rates[0] if self._rates else None
        if before == self._rates:
            return None
        changes = [
            RateChange(step, group, old, new)
            for group, (old, new) in enumerate(zip(before, self._rates, strict=False))  # groups may be added
            if old is not None and new is not None and old != new
        ]
        return max(changes, key=_factor, default=None)


def is_break(change: RateChange) -> bool:
    """Whether a change is so large that the path before it says nothing of the path after it."""
    return _factor(change) >= _BREAK


def _factor(change: RateChange) -> float:
    """By how much the rate grew or shrank, >= 1."""
    low, high = sorted((abs(change.before), abs(change.after)))
    return high / low if low > 0.0 else math.inf


def _rate(group: dict[str, Any]) -> float | None:
    rate: Any = group.get("lr")
    if isinstance(rate, Tensor):
        return float(rate) if rate.device.type == "cpu" else None
    return rate if isinstance(rate, int | float) else None
