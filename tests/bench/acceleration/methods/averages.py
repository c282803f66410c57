"""Methods that leave training alone and hand out an average of its weights."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import Tensor

from acceleration.methods.running import Beside, Start
from acceleration.methods.weights import Tensors

__all__ = ["ema", "lawa"]

_DECAY: Final = 0.99
_CHECKPOINTS: Final = 5
_INTERVALS: Final = 100


class _ExponentialAverage(Beside):
    def __init__(self, start: Start) -> None:
        self._tensors = Tensors.averaged(start.problem.model)
        self._averages = self._tensors.copies()
        self._steps = 0

    def after_step(self) -> float:
        self._steps += 1
        decay = min(_DECAY, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._averages, self._tensors.live, 1.0 - decay)
        return 0.0

    def evaluated(self) -> AbstractContextManager[None]:
        return self._tensors.swapped(self._averages)


class _LatestAverage(Beside):
    def __init__(self, start: Start) -> None:
        self._tensors = Tensors.averaged(start.problem.model)
        self._every = max(1, start.budget_steps // _INTERVALS)
        self._checkpoints: deque[list[Tensor]] = deque(maxlen=_CHECKPOINTS)
        self._steps = 0

    def after_step(self) -> float:
        self._steps += 1
        if self._steps % self._every == 0:
            self._checkpoints.append(self._tensors.copies())
        return 0.0

    def evaluated(self) -> AbstractContextManager[None]:
        if not self._checkpoints:
            return nullcontext()
        means = [torch.stack(held).mean(dim=0) for held in zip(*self._checkpoints, strict=True)]
        return self._tensors.swapped(means)


def ema(start: Start) -> _ExponentialAverage:
    """Exponential moving average of the weights after every step (Polyak & Juditsky 1992; as in timm and torch-ema).

    Decay 0.99, warmed up: at step t no more than (1 + t) / (10 + t). Buffers of real numbers are averaged likewise.
    """
    return _ExponentialAverage(start)


def lawa(start: Start) -> _LatestAverage:
    """LAWA: the mean of the last k = 5 checkpoints (Kaddour, "Stop wasting my time!", 2022, arXiv 2209.14981).

    A checkpoint every hundredth of the budget, where the paper has one an epoch. Buffers of real numbers are averaged
    likewise. Before the first checkpoint: the weights as they are.
    """
    return _LatestAverage(start)
