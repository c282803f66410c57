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

from koopcast.hook.memory import Arena, TensorMemory

__all__ = ["TOLERANCE", "Departure", "went_wrong"]

TOLERANCE: Final = 0.1
"""How much worse than before the jump the loss may be, as a share of its size, before the jump is undone: losses
that go up and down by a little on their own are no reason."""


class Departure:
    """Weights, buffers and optimizer state at the moment before a jump.

    Not the optimizer's settings: a learning rate that a schedule changed since must stay changed.
    """

    def __init__(
        self, weights: TensorMemory, optimizer: torch.optim.Optimizer, arena: Arena | None = None
    ) -> None:
        """Go back to `weights`, and to the optimizer state of now: copied, as far as it goes in `arena`.

        The arena is released when there is no going back any more.
        """
        self._arena = arena
        state = TensorMemory(arena, besides=weights)
        state.remember(optimizer.state)
        self._memories: tuple[TensorMemory, ...] = (weights, state)

    def restore(self) -> None:
        """Put them back."""
        for memory in self._memories:
            memory.restore()

    def forget(self) -> None:
        """Free the copies: there is no going back any more."""
        self._memories = ()
        if self._arena is not None:
            self._arena.release()


def went_wrong(loss_before: float, loss_now: float) -> bool:
    """Whether a jump is to be undone, given the loss before it and a stride after it. Pure; NaN is wrong."""
    if not math.isfinite(loss_now):
        return True
    return loss_now > loss_before + TOLERANCE * abs(loss_before)
