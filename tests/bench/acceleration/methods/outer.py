"""Methods that treat some steps of training as one step of an outer optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import torch

from acceleration.methods.running import Beside, Start
from acceleration.methods.weights import Tensors

__all__ = ["lookahead", "snoo"]

_LOOKAHEAD_STEPS: Final = 5
_LOOKAHEAD_ALPHA: Final = 0.5
_SNOO_STEPS: Final = 20
_SNOO_RATE: Final = 0.8
_SNOO_MOMENTUM: Final = 0.5


class _Lookahead(Beside):
    def __init__(self, start: Start) -> None:
        self._fast = Tensors.trained(start.problem.model)
        self._slow = self._fast.copies()
        self._steps = 0

    def after_step(self) -> float:
        self._steps += 1
        if self._steps % _LOOKAHEAD_STEPS == 0:
            torch._foreach_lerp_(self._slow, self._fast.live, _LOOKAHEAD_ALPHA)
            self._fast.write(self._slow)
        return 0.0

    def evaluated(self) -> AbstractContextManager[None]:
        return self._fast.swapped(self._slow)


class _OuterNesterov(Beside):
    def __init__(self, start: Start) -> None:
        self._fast = Tensors.trained(start.problem.model)
        self._slow = self._fast.copies()
        self._momenta = [torch.zeros_like(slow) for slow in self._slow]
        self._steps = 0

    def after_step(self) -> float:
        self._steps += 1
        if self._steps % _SNOO_STEPS == 0:
            for slow, fast, momentum in zip(self._slow, self._fast.live, self._momenta, strict=True):
                difference = slow - fast
                momentum.mul_(_SNOO_MOMENTUM).add_(difference)
                slow.sub_(difference.add_(momentum, alpha=_SNOO_MOMENTUM), alpha=_SNOO_RATE)
            self._fast.write(self._slow)
        return 0.0


def lookahead(start: Start) -> _Lookahead:
    """Lookahead: every k = 5 steps the slow weights go half-way (α = 0.5) to the fast ones, which go back to them.

    Zhang, Lucas, Hinton & Ba, "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019 (arXiv 1907.08610).
    The slow weights are handed out; the inner optimizer keeps its state.
    """
    return _Lookahead(start)


def snoo(start: Start) -> _OuterNesterov:
    """SNOO: every 20 steps a Nesterov step with what they moved as gradient; rate 0.8, momentum 0.5.

    Kallusky et al., "SNOO: Step-K Nesterov outer optimizer", 2025 (arXiv 2510.15830); DiLoCo's outer step with one
    worker. PyTorch's form of Nesterov momentum: m ← μ m + g, w ← w - η (g + μ m). The weights being trained are handed
    out; the inner optimizer keeps its state.
    """
    return _OuterNesterov(start)
