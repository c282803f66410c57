"""Gram matrices of a window that stays with its trainers: rows in, and what `koopcast.window.Window` tells of it out.

Part of the engine's room. The same ring of rows as beside a window (`koopcast.window.gram`), for blocks of any length:
nothing here knows a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from koopcast.blocks import BlockGroup, BlockPlan
from koopcast.gram import GramRow
from koopcast.window import WindowProducts

__all__ = ["GramStore"]


class GramStore:
    """Products of the velocities that a job's trainers hold, and of their last weights.

    Attributes:
        length: weight snapshots that a full window holds.
    """

    def __init__(
        self, plan: BlockPlan, length: int, *, with_state: bool, epsilons: tuple[float, float]
    ) -> None:
        """Allocate `bytes_needed`; nothing is held.

        Args:
            plan: the blocks.
            length: weight snapshots in a full window, at least 2.
            with_state: whether the products of weights and velocities come too.
            epsilons: relative spacing of the snapshots' numbers and of the stored velocities'.
        """
        self.length = length
        self._epsilons = epsilons
        self._numbers = [_numbers(group) for group in plan.groups]
        rows, blocks = length - 1, plan.block_count
        self._rows = torch.zeros((blocks, rows, rows), dtype=torch.float64)
        self._weights = torch.zeros((blocks, rows if with_state else 0), dtype=torch.float64)
        self._squared = torch.zeros(blocks, dtype=torch.float64)
        self.clear()

    @staticmethod
    def bytes_needed(plan: BlockPlan, length: int, *, with_state: bool) -> int:
        """Bytes that stay allocated."""
        rows = length - 1
        return 8 * plan.block_count * (rows * rows + (rows if with_state else 0) + 1)

    @property
    def snapshots_held(self) -> int:
        """Weight snapshots in the window: 0 to `length`."""
        return self._count + 1 if self._has_last else 0

    def clear(self) -> None:
        """Forget all snapshots; the next row is the first one's."""
        self._next = 0  # the slot the next velocity's row goes to
        self._count = 0
        self._has_last = False

    def take(self, row: GramRow) -> None:
        """Add a snapshot. Its row has as many products as there are velocities with it."""
        held = row.velocity.shape[1]
        if held:
            self._count = held
            slot, self._next = self._next, (self._next + 1) % self._rows.shape[1]
            order = self._order()
            self._rows[:, slot, order] = torch.from_numpy(row.velocity)
            if self._weights.shape[1]:
                self._weights[:, order] = torch.from_numpy(row.weight)
        self._squared[:] = torch.from_numpy(row.squared)
        self._has_last = True

    def is_dual(self, group: int) -> bool:  # noqa: ARG002  # as a window says it, of each group
        """Always: whatever the blocks, their Gram matrices are all there is."""
        return True

    def products(self, group: int, first: int = 0, stop: int | None = None) -> WindowProducts:
        """See `koopcast.window.Window.products`."""
        blocks = self._numbers[group][first:stop]
        order = torch.tensor(self._order(), dtype=torch.long)
        lower = self._rows[blocks][:, order][:, :, order].tril_()
        squared = self._squared[blocks]
        return WindowProducts(
            velocity_gram=lower + lower.tril(-1).mT,
            velocity_dot_last=self._weights[blocks][:, order] if self._weights.shape[1] else None,
            last_squared=squared.clone() if self._has_last else torch.zeros_like(squared),
            snapshot_epsilon=self._epsilons[0],
            window_epsilon=self._epsilons[1],
        )

    def _order(self) -> list[int]:
        """Slots of the velocities held, oldest first."""
        rows = self._rows.shape[1]
        return [(self._next - self._count + index) % rows for index in range(self._count)]


def _numbers(group: BlockGroup) -> Tensor:
    return torch.tensor(list(group.numbers), dtype=torch.long)
