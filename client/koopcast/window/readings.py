"""What a window tells an operator of its blocks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["WindowProducts", "WindowRow", "WindowVectors"]


class WindowProducts(NamedTuple):
    """All that an operator needs to know of long blocks, on the CPU. M velocities, oldest first; B blocks.

    Attributes:
        velocity_gram: (B, M, M) float64, <v_i, v_j>.
        velocity_dot_last: (B, M) float64, <v_j, w_last>; None for a window without state.
        last_squared: (B,) float64, <w_last, w_last>; 0 before the first snapshot.
        snapshot_epsilon: relative spacing of the snapshots' dtype.
        window_epsilon: relative spacing of the stored velocities' dtype.
    """

    velocity_gram: Tensor
    velocity_dot_last: Tensor | None
    last_squared: Tensor
    snapshot_epsilon: float
    window_epsilon: float


class WindowRow(NamedTuple):
    """What the last snapshot added to the products of long blocks, on the CPU. M velocities, oldest first; B blocks.

    Attributes:
        velocity: (B, M) float64, <v_new, v_j>, itself last.
        weight: (B, M) float64, <w_new, v_j>; (B, 0) for a window without state.
        squared: (B,) float64, <w_new, w_new>.
    """

    velocity: Tensor
    weight: Tensor
    squared: Tensor


class WindowVectors(NamedTuple):
    """Blocks as they are, on the CPU. M velocities, oldest first; b blocks of s elements.

    Attributes:
        velocities: (b, M, s) float64; a view of contiguous (M, b, s).
        last: (b, s) float64, the last snapshot; zeros before the first.
        snapshot_epsilon: relative spacing of the snapshots' dtype.
        window_epsilon: relative spacing of the stored velocities' dtype.
    """

    velocities: Tensor
    last: Tensor
    snapshot_epsilon: float
    window_epsilon: float
