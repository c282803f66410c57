"""Many windows of a recorded run as one batch of blocks, and the truth that followed each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.records import RECORD_STEPS, Record
from koopcast_server.koopman import Products

__all__ = ["AHEAD", "LONGEST", "Windows", "windows_of"]

LONGEST = 16
"""Snapshots of the longest window."""
AHEAD = 64
"""Strides that are known beyond each window."""

_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Windows:
    """B windows of M velocities of one block.

    Attributes:
        products: of the windows, each one a block.
        grams: (B, M + 64, M + 64) float64, of the velocities in the window and of those that followed.
    """

    products: Products
    grams: Tensor

    def true_errors(self, coefficients: Tensor, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Squared lengths of (predicted - true) and of the true displacement, (H, B) each.

        Args:
            coefficients: (H, B, M) float64 of the window's velocities.
            horizons: strides ahead of the window's last snapshot, in 1..64.
        """
        width = coefficients.shape[-1]
        wrong, moved = [], []
        for one, horizon in zip(coefficients, horizons, strict=True):
            truth = torch.zeros_like(self.grams[:, 0])
            truth[:, width : width + horizon] = 1.0
            missed = -truth
            missed[:, :width] += one
            wrong.append(torch.einsum("bi,bij,bj->b", missed, self.grams, missed))
            moved.append(torch.einsum("bi,bij,bj->b", truth, self.grams, truth))
        return torch.stack(wrong), torch.stack(moved)


def windows_of(record: Record, snapshots: int, stride: int, count: int, *, averaged: bool) -> Windows:
    """Evenly spread windows of a whole network; windows of other lengths end at the same steps.

    Args:
        record: of a run; all its tensors are one block.
        snapshots: in a window, at most 16.
        stride: steps between these, 5 or 10.
        count: windows.
        averaged: the record holds means of five steps: with a stride of 10, take means of ten.
    """
    factor = stride // RECORD_STEPS
    moves = _strides(record, factor, averaged=averaged)
    gram = moves @ record.grams.sum(0) @ moves.T
    ends = torch.linspace(LONGEST - 1, len(moves) - AHEAD, count).round().long()
    places = ends[:, None] + torch.arange(1 - snapshots, AHEAD)
    grams = gram[places[:, :, None], places[:, None, :]]
    velocities = snapshots - 1
    products = Products(
        grams[:, :velocities, :velocities].contiguous(),
        torch.zeros_like(grams[:, :velocities, 0]),  # for the state observable only
        record.squared.sum(0)[ends * factor],
        snapshot_epsilon=_EPSILON,
        window_epsilon=_EPSILON,
        elements=record.sizes.sum().double()[None],
    )
    return Windows(products, grams)


def _strides(record: Record, factor: int, *, averaged: bool) -> Tensor:
    """(K', K): moves from stride to stride as combinations of the recorded ones."""
    recorded = record.grams.shape[-1]
    points = torch.tril(
        torch.ones(recorded + 1, recorded, dtype=torch.float64), -1
    )  # each from the first one
    if averaged:
        whole = (recorded + 1) // factor * factor
        return points[:whole].reshape(-1, factor, recorded).mean(1).diff(dim=0)
    return points[::factor].diff(dim=0)
