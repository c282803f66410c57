"""Looks back after a jump: if training has not gone well from where it landed, everything is put back.

A probe sees the loss where a jump lands. Near the edge of stability the steps after it can still diverge from there,
though the loss had fallen. So a jump that a probe accepted is watched: one stride later the probe is asked once more,
and if the loss is worse than it was before the jump (by more than `TOLERANCE`), weights, buffers and optimizer state
go back to before the jump. The steps in between are lost; learning rates, data and random states go on.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import nn

from koopcast.hook.memory import TensorMemory

__all__ = ["TOLERANCE", "Departure", "went_wrong"]

TOLERANCE: Final = 0.1
"""How much worse than before the jump the loss may be, as a share of its size, before the jump is undone: losses
that go up and down by a little on their own are no reason."""


class Departure:
    """Weights, buffers and optimizer state at the moment before a jump.

    Not the optimizer's settings: a learning rate that a schedule changed since must stay changed.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy them."""
        self._memory = TensorMemory()
        for tensor in [*model.parameters(), *model.buffers()]:
            self._memory.remember(tensor)
        self._memory.remember(optimizer.state)

    def restore(self) -> None:
        """Put them back."""
        self._memory.restore()


def went_wrong(loss_before: float, loss_now: float) -> bool:
    """Whether a jump is to be undone, given the loss before it and a stride after it. Pure; NaN is wrong."""
    if not math.isfinite(loss_now):
        return True
    return loss_now > loss_before + TOLERANCE * abs(loss_before)
